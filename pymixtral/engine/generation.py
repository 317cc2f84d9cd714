"""The generation of one text as a request: tokens come in, text goes out, cut at stop strings."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pymixtral.arrays import F32, I32, U32
from pymixtral.engine.completion import Completion, FinishReason, Stats, TokenLogprob
from pymixtral.engine.logprobs import PromptLogprobs, token_logprobs
from pymixtral.engine.requests import Abort, Request
from pymixtral.engine.speculation import PromptLookup
from pymixtral.errors import InvalidArgumentError
from pymixtral.model.kv_cache import n_pages_for
from pymixtral.model.routing import Routing
from pymixtral.ops import PAGE
from pymixtral.sampling.matcher import Matcher
from pymixtral.sampling.sampler import Sampler
from pymixtral.text.stops import StopStrings
from pymixtral.text.streaming import StreamDecoder

LogitsProcessor = Callable[[I32, F32], "F32 | None"]
"""Given all ids so far, int32 [n], and logits, float32 [n_vocab]: changes them in place, or returns
others of the same shape."""

_MOST_FORCED = 64
"""Tokens that a grammar forces and that one pass computes. It bounds the memory of their logits."""


@dataclass(frozen=True)
class Piece:
    """A piece of a text.

    Attributes:
        text: what is certain, perhaps "".
        tokens: the ids generated since the last piece.
        logprobs: theirs, if they were asked for.
    """

    text: str
    tokens: list[int]
    logprobs: list[TokenLogprob]


class Continuation(Request):
    """A request for the text that follows a prompt.

    Args:
        prompt: int32 [1 to n_ctx].
        n_ctx: positions of the context.
        max_tokens: most tokens to generate; None: as many as the context has room for.
        sampler: draws each token.
        decoder: turns tokens into text; None: there is no text, only tokens.
        stop: the strings that end the text.
        eos_ids: the tokens that end the text.
        pass_bytes: bytes of weights that a pass of one token reads.
        n_logprobs: log-probabilities of each token are wanted, with this many of the most likely
            ones; None: none are.
        n_prompt_logprobs: likewise of the prompt's tokens.
        processor: changes the logits before each token is drawn.
        lookup: proposes tokens; None: none are proposed.
        matcher: says which tokens may be drawn; None: all. Tokens that it forces are proposed, too.
        streams: whether pieces are delivered as they come; else only the end is.
        kept: tokens at the beginning that stay when the context is full and the text goes on without
            some of the others; None: it ends then.
        **options: as for Request.

    Attributes:
        tokens: the ids generated so far.
        sampler: see above.
        processor: see above.
        matcher: see above.
        mask: the tokens that may be drawn after prepare(), as sampling.sampler.draw() has them.
    """

    def __init__(
        self,
        prompt: I32,
        *,
        n_ctx: int,
        max_tokens: int | None,
        sampler: Sampler,
        decoder: StreamDecoder | None,
        stop: StopStrings,
        eos_ids: frozenset[int],
        pass_bytes: int,
        n_logprobs: int | None = None,
        n_prompt_logprobs: int | None = None,
        processor: LogitsProcessor | None = None,
        lookup: PromptLookup | None = None,
        matcher: Matcher | None = None,
        streams: bool = True,
        kept: int | None = None,
        **options: Any,
    ) -> None:
        room = n_ctx - len(prompt) + 1  # one more than free positions: no pass reads the last token
        self.limit, self._at_limit = (room, "context") if kept is None else (sys.maxsize, "length")
        if max_tokens is not None and max_tokens <= self.limit:
            self.limit, self._at_limit = max_tokens, "length"
        rows = range(0 if n_prompt_logprobs is None else len(prompt) - 1)
        super().__init__(prompt, room=min(self.limit, room), rows=rows, **options)
        self.sampler = sampler
        self.processor = processor
        self.matcher = matcher
        self.mask: U32 | None = None
        self.tokens: list[int] = []
        self._decoder = decoder
        self._stop = stop
        self._eos_ids = eos_ids
        self._pass_bytes = pass_bytes
        self._n_logprobs = n_logprobs
        self._prompt_logprobs = None if n_prompt_logprobs is None else PromptLogprobs(prompt, 1, n_prompt_logprobs)
        self._lookup = lookup
        self._looked_up = False
        self._streams = streams
        self._n_ctx = n_ctx
        self._kept = kept
        self._text: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._n_delivered = 0
        self._prompt_seconds = 0.0
        self._generation_seconds = 0.0
        self._passes = 0
        self._n_drafted = self._n_accepted = 0
        self._first = self._over = 0.0

    # --- The engine's side ------------------------------------------------------------------------

    def read(self, position: int, rows: F32) -> None:
        """Take rows of the prompt; see Request."""
        if self._prompt_logprobs:
            self._prompt_logprobs(position, rows)

    def propose(self) -> int:
        """Put proposed tokens behind those that are certain; see Request."""
        if (self._lookup is None and self.matcher is None) or not self.tokens:
            return 0
        most = min(self.limit - len(self.tokens), len(self.ids) - self.n_ids) - 1
        drafts: Sequence[int] | I32 = self.matcher.forced()[: min(most, _MOST_FORCED)] if self.matcher else ()
        self._looked_up = not len(drafts) and self._lookup is not None
        if self._looked_up:
            assert self._lookup
            drafts = self._lookup.propose(self.ids[: self.n_ids], most)
            if self.matcher and len(drafts):
                drafts = drafts[: self.matcher.n_allowed(drafts.tolist())]
        self.ids[self.n_ids : self.n_ids + len(drafts)] = drafts
        return len(drafts)

    def prepare(self, logits: F32) -> F32 | None:
        """Make the logits and the mask that a token is drawn from.

        Args:
            logits: of the model, float32 [n_vocab], which are not changed.

        Returns:
            float32 [n_vocab]; None if the text is complete.

        Raises:
            InvalidArgumentError: if the processor returns something else, or no token may follow.
            Exception: whatever the processor raises.
        """
        if self.matcher is not None:
            self.mask = self.matcher.mask()
            if self.mask is None:
                return None
        if self.processor is None:
            return logits
        n, logits = len(logits), logits.copy()
        try:
            changed = self.processor(self.text_ids.copy(), logits)
        except (StopIteration, StopAsyncIteration) as error:  # would end an iteration over the text without a word
            raise RuntimeError("expected logits_processor to return, found that it raised StopIteration") from error
        changed = np.asarray(logits if changed is None else changed)  # it may have changed the shape in place, too
        if changed.shape != (n,) or changed.dtype.kind != "f":
            raise InvalidArgumentError(
                f"expected logits_processor to return {n} logits or None, "
                f"found {changed.dtype} of shape {changed.shape}"
            )
        with np.errstate(over="ignore"):  # beyond float32 is infinity, which the draw refuses
            return np.ascontiguousarray(changed, np.float32)

    @property
    def _complete(self) -> bool:
        return self.matcher is not None and self.matcher.complete

    @property
    def text_ids(self) -> I32:
        """All ids so far, with those drawn in this pass, int32 [n]."""
        return self.ids[: self.n_ids + len(self.drawn)]

    def draw(self, token: int, logits: F32, n_drafted: int) -> bool:
        """Take a token that was drawn.

        Args:
            token: its id.
            logits: of the model, float32 [n_vocab].
            n_drafted: proposed tokens in this pass.

        Returns:
            Whether the token was the proposed one, so that the next row counts too.

        Raises:
            InvalidArgumentError: if the grammar is beyond its limits after this token.
        """
        if self.matcher is not None and token not in self._eos_ids:
            self.matcher.accept(token)
        r = len(self.drawn)
        agreed = r < n_drafted and self.ids[self.n_ids + r] == token and token not in self._eos_ids
        if token not in self._eos_ids and self._n_logprobs is not None:
            self._logprobs += token_logprobs(logits[None], np.array([token], np.int32), self._n_logprobs)
        if self.n_ids + r < len(self.ids):
            self.ids[self.n_ids + r] = token
        self.drawn.append(token)
        return bool(agreed)

    def account(self, seconds: float) -> None:
        """Note the time of a pass; see Request."""
        if self.tokens:
            self._generation_seconds += seconds
            self._passes += bool(self.drawn)
        else:
            self._prompt_seconds += seconds

    def advance(self) -> None:
        """Go on after a pass; see Request."""
        assert self.entry
        drawn, self.drawn = self.drawn, []
        if not drawn:
            if self._complete:
                return self._end("stop", None)
            if not self.tokens:
                self.tell_progress()
            return None
        self._first = self._first or time.perf_counter()
        if self._progressed and not self.tokens:
            self.tell_progress()
        n_drafted, self.entry.n_drafted = self.entry.n_drafted, 0
        if n_drafted:
            self._n_drafted += n_drafted
            self._n_accepted += len(drawn) - 1
            if self._lookup and self._looked_up:
                self._lookup.learn(n_drafted, len(drawn) - 1)
        text = ""
        for token in drawn:
            if token in self._eos_ids:
                return self._end("stop", token, text)
            self.tokens.append(token)
            self.n_ids += 1
            self.entry.n_ids = self.n_ids
            more, stopped = self._stop.push(self._decoder.push(token)) if self._decoder else ("", None)
            text += more
            if stopped is not None:
                self._write(text, last=True)
                return self.finish(self._completion("stop", stopped))
            if len(self.tokens) == self.limit and not self._complete:
                return self._end(self._at_limit, None, text)
        if self._complete:
            return self._end("stop", None, text)
        self._write(text)
        return None

    def _end(self, reason: Any, stop_reason: int | None, text: str = "") -> None:
        """Ends the text where it is, but for a character or stop string that is held back."""
        more, stopped = self._stop.push(self._decoder.flush()) if self._decoder else ("", None)
        self._write(text + more + ("" if stopped is not None else self._stop.flush()), last=True)
        self.finish(
            self._completion(reason if stopped is None else "stop", stop_reason if stopped is None else stopped)
        )

    def follow(self, other: Request) -> None:
        """Begin after the prompt, which another request has computed; see Request."""
        super().follow(other)
        if isinstance(other, Continuation):
            self._prompt_logprobs = other._prompt_logprobs

    def surplus(self) -> range:
        """Half of the whole pages after those that are kept, once the context is full; see Request."""
        if self._kept is None or self.n_ids <= self._n_ctx:
            return range(0)
        first = n_pages_for(self._kept)
        return range(first, first + max((self._n_ctx // PAGE - first) // 2, 1))

    def cut(self, pages: range) -> None:
        """Forget the ids of pages; see Request."""
        super().cut(pages)
        self.sampler.row.shorten(len(pages) * PAGE)

    def over(self) -> bool:
        """End the request at once if no token is wanted; see Request."""
        if not self.limit:
            self._end(self._at_limit, None)
        return self.ended

    def stop(self, reason: Abort | BaseException) -> None:
        """End the request before its own end; see Request."""
        if isinstance(reason, BaseException):
            self.finish(reason)
        elif not self.ended:
            self._end(reason, None)

    def _write(self, text: str, *, last: bool = False) -> None:
        self._text.append(text)
        if self._streams and (text or last):
            n, self._n_delivered = self._n_delivered, len(self.tokens)
            self.deliver(Piece(text, self.tokens[n:], self._logprobs[n : len(self.tokens)]))

    def _completion(self, reason: FinishReason, stop_reason: str | int | None) -> Completion:
        logprobs = self._prompt_logprobs
        self._over = time.perf_counter()
        return Completion(
            "".join(self._text),
            self.tokens,
            reason,
            self.stats,
            stop_reason,
            None if self._n_logprobs is None else self._logprobs[: len(self.tokens)],
            None if logprobs is None else [None, *logprobs.tokens],
            routing=self.routing(len(self.tokens) + (stop_reason in self._eos_ids)),
        )

    def routing(self, n_tokens: int) -> Routing | None:
        """Make the experts of the tokens that were read to draw some of the text's.

        Args:
            n_tokens: how many tokens were drawn, with the end token if there was one.

        Returns:
            Those of the prompt, as far as it is computed, and of the tokens but the last; None if
            nobody asked for them.
        """
        if self.trace is None:
            return None
        return self.trace.routing(self.n_prompt, self.n_prompt + max(n_tokens - 1, 0))

    @property
    def stats(self) -> Stats:
        """The work and the time so far."""
        now = self._over or time.perf_counter()
        return Stats(
            prompt_tokens=self.n_prompt,
            cached_tokens=self.n_cached,
            generated_tokens=len(self.tokens),
            prompt_seconds=self._prompt_seconds,
            generation_seconds=self._generation_seconds,
            passes=self._passes,
            pass_bytes=self._pass_bytes,
            drafted_tokens=self._n_drafted,
            accepted_tokens=self._n_accepted,
            queue_seconds=(self.began or now) - self.arrived,
            first_seconds=self._first - self.arrived if self._first else 0.0,
            seconds=now - self.arrived,
        )
