"""The generation of one text: tokens are drawn, decoded, cut at stop strings, counted and timed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pymixtral.arrays import F32, I32
from pymixtral.errors import InvalidArgumentError
from pymixtral.text.stops import StopStrings
from pymixtral.text.streaming import StreamDecoder

FinishReason = Literal["stop", "length", "context"]
"""Why a text ends: an end token or stop string, max_tokens, or a full context."""

NextLogits = Callable[[I32], tuple[F32, int]]
"""From all ids of a text so far, int32 [n], to the logits of the next id, float32 [n_vocab], and
how many of the ids were in the cache."""


Draw = Callable[[F32, I32], int]
"""From the logits of the next id, float32 [n_vocab], and all ids so far, int32 [n], to the next id."""


@dataclass(frozen=True)
class Stats:
    """The work and the time of a generation. The caller's time between two pieces is not counted.

    Attributes:
        prompt_tokens: ids of the prompt.
        cached_tokens: ids of the prompt that an earlier call had left in the cache.
        generated_tokens: ids generated, without the end token.
        prompt_seconds: time to the first token: to compute the prompt and to draw the token.
        generation_seconds: time of the passes after the prompt, of one token each.
        passes: number of these passes.
        pass_bytes: bytes of weights that each of them reads.
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
        """Prompt tokens computed per second, without cached ones; 0 if none were computed."""
        return _per_second(self.prompt_tokens - self.cached_tokens, self.prompt_seconds)

    @property
    def tokens_per_second(self) -> float:
        """Passes after the prompt per second; 0 if there were none."""
        return _per_second(self.passes, self.generation_seconds)

    @property
    def gigabytes_per_second(self) -> float:
        """Weights read per second after the prompt, in 10^9 bytes; 0 if there were no passes."""
        return _per_second(self.passes * self.pass_bytes / 1e9, self.generation_seconds)


@dataclass(frozen=True)
class Completion:
    """A generated text. str() returns the text.

    Attributes:
        text: what follows the prompt, up to the end token or stop string.
        tokens: the ids generated, with those of a stop string and without the end token.
        finish_reason: "stop" at an end token or stop string, "length" at max_tokens, "context" if
            the context is full.
        stats: the work and the time that it took.
    """

    text: str
    tokens: list[int]
    finish_reason: FinishReason
    stats: Stats

    def __str__(self) -> str:
        return self.text


class Generation(Iterator[str]):
    """An iterator over the pieces of a text, none of them empty.

    The model computes only while the caller waits for the next piece. After an exception such as
    KeyboardInterrupt, tokens and stats are those of the work so far.

    Args:
        next_logits: computes the logits of the next token.
        prompt: int32 [1 to n_ctx].
        n_ctx: positions of the context.
        max_tokens: most tokens to generate; None: as many as the context has room for.
        draw: chooses each token.
        decoder: turns tokens into text; None: there is no text, only tokens.
        stop: the strings that end the text.
        eos_ids: the tokens that end the text.
        pass_bytes: bytes of weights that a pass of one token reads.

    Attributes:
        tokens: the ids generated so far.
        finish_reason: None until the text has ended.
    """

    def __init__(
        self,
        next_logits: NextLogits,
        prompt: I32,
        *,
        n_ctx: int,
        max_tokens: int | None,
        draw: Draw,
        decoder: StreamDecoder | None,
        stop: StopStrings,
        eos_ids: frozenset[int],
        pass_bytes: int,
    ) -> None:
        room = n_ctx - len(prompt) + 1  # one more than free positions: no pass reads the last token
        self._limit = room
        self._at_limit: FinishReason = "context"
        if max_tokens is not None and max_tokens <= room:
            self._limit, self._at_limit = max_tokens, "length"
        self._ids = np.empty(len(prompt) + self._limit, np.int32)
        self._ids[: len(prompt)] = prompt
        self._next_logits = next_logits
        self._draw_token = draw
        self._decoder = decoder
        self._stop = stop
        self._eos_ids = eos_ids
        self._pass_bytes = pass_bytes
        self._n_prompt = len(prompt)
        self._n_cached = 0
        self._prompt_seconds = 0.0
        self._generation_seconds = 0.0
        self._passes = -1  # the prompt's own pass is not counted
        self._closed = False
        self._reading = threading.Lock()
        self.tokens: list[int] = []
        self.finish_reason: FinishReason | None = None

    def __next__(self) -> str:
        if not self._reading.acquire(blocking=False):
            raise InvalidArgumentError(
                "expected one reader of a generation at a time, found another thread in it: read it from one thread"
            )
        try:
            while self.finish_reason is None and not self._closed:
                text = self._step()
                if text:
                    return text
        finally:
            self._reading.release()
        raise StopIteration

    def close(self) -> None:
        """End the iteration. A Generation may also be dropped without close()."""
        self._closed = True

    @property
    def stats(self) -> Stats:
        """The work and the time so far."""
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
        """Draws one token, and returns the text that is certain with it."""
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
        token = self._draw_token(logits, ids)
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
