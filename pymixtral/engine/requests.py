"""Requests: what the engine computes for its callers. They know no model and no thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pymixtral.arrays import F32, I32
from pymixtral.engine.scheduler import Entry
from pymixtral.engine.trace import Trace
from pymixtral.errors import CanceledError, DeadlineError
from pymixtral.model.adapter import Adapter
from pymixtral.model.kv_cache import Sequence
from pymixtral.ops import PAGE

Abort = Literal["cancelled", "deadline"]
"""Why a request ends before its own end: its caller wants it no more, or its time is over."""


@dataclass(frozen=True)
class Progress:
    """Tells how much of a long prompt is computed.

    Attributes:
        done: tokens in the cache.
        total: tokens of the prompt.
    """

    done: int
    total: int


@dataclass(frozen=True)
class Finished:
    """Tells that a request has ended.

    Attributes:
        result: what it has to give.
    """

    result: Any


Event = Any
"""What a request delivers: Progress, pieces of its own kind, and last Finished or an exception."""


class Request:
    """A text that the engine computes for a caller.

    Args:
        ids: the text, int32 [1 or more].
        room: how many ids may follow.
        rows: the positions whose rows read() wants. They are computed, whatever the cache has.
        priority: requests of a lower number come first.
        deadline: when it ends at the latest, as time.monotonic() counts; None: never.
        namespace: what the keys and values depend on beside the ids; see PrefixCache.
        adapters: those that the text is computed with, and their scales; None: none.
        trace: takes the routers' choices; None: nobody wants them. Tokens that it does not have are
            computed, whatever the cache has.

    Attributes:
        ids: the ids so far and room for more, int32.
        n_ids: the number of ids so far.
        n_prompt: ids at the beginning.
        n_cached: those of them that the cache had.
        n_cut: ids that the text has given up; see cut().
        rows: the positions whose rows read() still wants.
        sequence: the text in the cache, while the request runs.
        entry: what the scheduler knows of it; None before the engine has it.
        abort: set by any thread to end the request soon.
        failed: what went wrong with this request alone in a pass.
        ended: whether it has ended, for whatever reason.
        begun: whether it has run.
        arrived: when it was made, as time.perf_counter() counts.
        began: when its first pass began, likewise; 0 before that.
        drawn: tokens that were drawn in the present pass.
        siblings: requests for other texts of the same prompt, which begin when it is computed.
        dropped: notices that the caller has gone.
        n_indexed: positions that the prefix cache has.
        shifted: whether keys and values are not those that its ids give: the prefix cache must not
            have them.
        reads_hidden: whether read() takes rows after the last norm, in place of logits.
    """

    reads_hidden = False

    def __init__(
        self,
        ids: I32,
        *,
        room: int = 0,
        rows: range,
        priority: int = 0,
        deadline: float | None = None,
        namespace: Hashable = None,
        adapters: Mapping[Adapter, float] | None = None,
        trace: Trace | None = None,
    ) -> None:
        self.ids: I32 = np.empty(len(ids) + room, np.int32)
        self.ids[: len(ids)] = ids
        self.n_ids = self.n_prompt = len(ids)
        self.n_cached = self.n_cut = 0
        self.rows = rows
        self.priority = priority
        self.deadline = deadline
        self.namespace = namespace
        self.adapters: Mapping[Adapter, float] = adapters or {}
        self.trace = trace
        self.sequence: Sequence | None = None
        self.entry: Entry | None = None
        self.abort: Abort | None = None
        self.failed: BaseException | None = None
        self.ended = False
        self.begun = False
        self.arrived = time.perf_counter()
        self.began = 0.0
        self._progressed = False
        self._last: Event = None
        self.drawn: list[int] = []
        self.siblings: list[Request] = []
        self.dropped: object = None
        self.n_indexed = 0
        self.shifted = False
        self._listener: Callable[[Event], object] | None = None

    def listen(self, listener: Callable[[Event], object]) -> None:
        """Set who is given the events. This comes before the engine has the request.

        Args:
            listener: is called on the engine's thread, and must not block.
        """
        self._listener = listener

    def unread(self, begin: int, end: int) -> range:
        """Say which rows of a pass read() wants.

        Args:
            begin: the first position of the pass.
            end: the position after its last.

        Returns:
            Their positions.
        """
        first = min(max(begin, self.rows.start), end)
        return range(first, max(first, min(self.rows.stop, end)))

    def read(self, position: int, rows: F32) -> None:
        """Take rows that unread() asked for, in the order of the text.

        Args:
            position: the position of the first row.
            rows: logits, float32 [n, n_vocab], or with reads_hidden [n, hidden]. They are not kept.
        """

    def propose(self) -> int:
        """Put proposed tokens behind those that are certain.

        Returns:
            How many.
        """
        return 0

    def follow(self, other: Request) -> None:
        """Begin after the prompt, which another request has computed.

        Args:
            other: the request.
        """
        self.begun = True
        self.began = other.began
        self.n_cached = other.n_prompt
        self.rows = range(0)
        if self.trace is not None and other.trace is not None:
            self.trace.follow(other.trace)
        if not self.drawn:
            self.failed = self.failed or other.failed

    def surplus(self) -> range:
        """Say which whole pages the text has to give up, as its context is full.

        Returns:
            Their numbers; none if there is room.
        """
        return range(0)

    def cut(self, pages: range) -> None:
        """Forget the ids of pages.

        Args:
            pages: as surplus() said.
        """
        assert self.entry
        n = len(pages) * PAGE
        self.ids[pages.start * PAGE : self.n_ids - n] = self.ids[pages.stop * PAGE : self.n_ids].copy()
        self.n_ids -= n
        self.n_cut += n
        self.entry.n_ids = self.n_ids

    def over(self) -> bool:
        """End the request at once if there is nothing to compute.

        Returns:
            Whether it has ended.
        """
        return self.ended

    def account(self, seconds: float) -> None:
        """Note the time of a pass that the request was part of.

        Args:
            seconds: the pass's time.
        """

    def advance(self) -> None:
        """Go on after a pass, once all its rows were read."""
        assert self.entry
        if self.entry.n_left:
            self.tell_progress()
        else:
            if self._progressed:
                self.tell_progress()
            self.finish(self.result())

    def tell_progress(self) -> None:
        """Deliver how much of the text is computed. A text that one pass computes tells nothing."""
        assert self.entry
        self._progressed = True
        self.deliver(Progress(min(self.entry.n_computed, self.n_prompt), self.n_prompt))

    def result(self) -> Any:
        """Make what there is to give when the text is computed."""

    def overdue(self) -> Abort | None:
        """Say why the request has to end now; None if it does not."""
        if self.abort is None and self.deadline is not None and time.monotonic() >= self.deadline:
            self.abort = "deadline"
        return self.abort

    def stop(self, reason: Abort | BaseException) -> None:
        """End the request before its own end.

        Args:
            reason: why. An exception is raised in the caller.
        """
        self.finish(reason if isinstance(reason, BaseException) else self.aborted(reason))

    def aborted(self, reason: Abort) -> Event:
        """Make the last event of a request that was cancelled or whose deadline is over."""
        if reason == "deadline":
            return DeadlineError("expected the result before the deadline, found it not ready: allow more time")
        return CanceledError("expected a result, found that the request was cancelled: ask again")

    def finish(self, result: Any) -> None:
        """End the request. The engine tells its caller once its pages are given back.

        Args:
            result: what the request has to give, or an exception for its caller.
        """
        if not self.ended:
            self.ended = True
            self._last = result if isinstance(result, BaseException) else Finished(result)

    def tell_end(self) -> None:
        """Deliver the last event of a request that has ended."""
        if self._last is not None:
            last, self._last = self._last, None
            self.deliver(last)
            self._listener = None  # which may hold this request

    def deliver(self, event: Event) -> None:
        """Hand an event to the caller. Whatever that raises ends this request only."""
        try:
            if self._listener:
                self._listener(event)
        except BaseException:  # the reader is gone, such as a closed event loop
            self.abort = self.abort or "cancelled"


class Rows(Request):
    """A request for numbers of a text that is given.

    Args:
        ids: the text, int32 [1 or more].
        reader: takes each group of rows, with the position of the first.
        reads_hidden: whether it takes rows after the last norm, in place of logits.
        **options: as for Request.
    """

    def __init__(
        self, ids: I32, reader: Callable[[int, F32], None], *, reads_hidden: bool = False, **options: Any
    ) -> None:
        super().__init__(ids, **options)
        self.reads_hidden = reads_hidden
        self._reader = reader

    def read(self, position: int, rows: F32) -> None:
        """Take rows; see Request."""
        self._reader(position, rows)

    def result(self) -> int:
        """How many of the ids the cache had."""
        return self.n_cached
