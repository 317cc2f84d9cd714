"""One text being generated: tokens drawn, decoded, cut at stop strings, counted and timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pymixtral.arrays import F32, I32
from pymixtral.sampling.sampler import Sampler
from pymixtral.text.stops import StopStrings
from pymixtral.text.streaming import StreamDecoder

FinishReason = Literal["stop", "length", "context"]

# Given all ids of a text so far, int32 [n]: the logits of the next one, float32 [n_vocab], and how many of the ids were in the cache.
NextLogits = Callable[[I32], tuple[F32, int]]


@dataclass(frozen=True)
class Stats:
    """What a generation took.

    prompt_tokens: ids of the prompt; cached_tokens: those of them that an earlier call had left in the cache.
    generated_tokens: ids generated, without the end token. prompt_seconds: computing the prompt and drawing the first token, which is
    the time to the first token. generation_seconds: the passes after it, one token each; passes: their number; pass_bytes: the
    weights that each of them reads. Time that passes between two pieces in the caller's hands isn't counted.
    """

    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    prompt_seconds: float
    generation_seconds: float
    passes: int
    pass_bytes: int

    @property
    def prompt_tokens_per_second(self) -> float:
        """Of the prompt tokens that were computed; 0 if there was no time."""
        return _per_second(self.prompt_tokens - self.cached_tokens, self.prompt_seconds)

    @property
    def tokens_per_second(self) -> float:
        """Passes after the prompt per second; 0 if there were none."""
        return _per_second(self.passes, self.generation_seconds)

    @property
    def gigabytes_per_second(self) -> float:
        """10^9 bytes of weights read per second in the passes after the prompt; 0 if there were none."""
        return _per_second(self.passes * self.pass_bytes / 1e9, self.generation_seconds)


@dataclass(frozen=True)
class Completion:
    """A generated text; str() of it is the text.

    text: what follows the prompt, up to the end token or stop string. tokens: the ids generated, those of a stop string included,
    the end token not. finish_reason: "stop" at an end token or stop string, "length" at max_tokens, "context" where the context is full.
    """

    text: str
    tokens: list[int]
    finish_reason: FinishReason
    stats: Stats

    def __str__(self) -> str:
        return self.text


class Generation(Iterator[str]):
    """Yields a text in pieces, none empty, as its tokens come; the model works only while the next piece is asked for.

    tokens: the ids generated so far. finish_reason: None until the end is known. stats: of the work so far. An exception, such as
    KeyboardInterrupt, leaves what has been generated in place.
    """

    def __init__(
        self,
        next_logits: NextLogits,
        prompt: I32,
        *,
        n_ctx: int,
        max_tokens: int | None,
        sampler: Sampler,
        decoder: StreamDecoder | None,
        stop: StopStrings,
        eos_ids: frozenset[int],
        pass_bytes: int,
    ) -> None:
        """prompt: int32 [1 to n_ctx]. At most max_tokens are generated, and never more than the context gives logits for:
        n_ctx - len(prompt) + 1, the last of which no pass has read. Without a decoder there is no text, only tokens."""
        room = n_ctx - len(prompt) + 1
        self._limit = room
        self._at_limit: FinishReason = "context"
        if max_tokens is not None and max_tokens <= room:
            self._limit, self._at_limit = max_tokens, "length"
        self._ids = np.empty(len(prompt) + self._limit, np.int32)
        self._ids[: len(prompt)] = prompt
        self._next_logits = next_logits
        self._sampler = sampler
        self._decoder = decoder
        self._stop = stop
        self._eos_ids = eos_ids
        self._pass_bytes = pass_bytes
        self._n_prompt = len(prompt)
        self._n_cached = 0
        self._prompt_seconds = 0.0
        self._generation_seconds = 0.0
        self._passes = -1  # the prompt's own is not counted
        self._closed = False
        self.tokens: list[int] = []
        self.finish_reason: FinishReason | None = None

    def __next__(self) -> str:
        while self.finish_reason is None and not self._closed:
            text = self._step()
            if text:
                return text
        raise StopIteration

    def close(self) -> None:
        """Ends the iteration; a Generation that is simply dropped does no harm either."""
        self._closed = True

    @property
    def stats(self) -> Stats:
        return Stats(
            prompt_tokens=self._n_prompt,
            cached_tokens=self._n_cached,
            generated_tokens=len(self.tokens),
            prompt_seconds=self._prompt_seconds,
            generation_seconds=self._generation_seconds,
            passes=max(self._passes, 0),
            pass_bytes=self._pass_bytes,
        )

    def _step(self) -> str:
        """Draws one token; the text that is certain with it."""
        if len(self.tokens) == self._limit:  # max_tokens is 0
            return self._finish(self._at_limit)
        token = self._draw()
        if token in self._eos_ids:
            return self._finish("stop")
        self._ids[self._n_prompt + len(self.tokens)] = token
        self.tokens.append(token)
        text, stopped = self._stop.push(self._decoder.push(token)) if self._decoder else ("", False)
        if stopped:
            self.finish_reason = "stop"
        elif len(self.tokens) == self._limit:
            text += self._finish(self._at_limit)
        return text

    def _draw(self) -> int:
        begin = time.perf_counter()
        ids = self._ids[: self._n_prompt + len(self.tokens)]
        logits, n_cached = self._next_logits(ids)
        token = self._sampler.sample(logits, ids)
        seconds = time.perf_counter() - begin
        if self._passes < 0:
            self._n_cached, self._prompt_seconds = n_cached, seconds
        else:
            self._generation_seconds += seconds
        self._passes += 1
        return token

    def _finish(self, reason: FinishReason) -> str:
        text, stopped = self._stop.push(self._decoder.flush()) if self._decoder else ("", False)
        self.finish_reason = "stop" if stopped else reason
        return text if stopped else text + self._stop.flush()


def _per_second(amount: float, seconds: float) -> float:
    return amount / seconds if seconds > 0 else 0.0
