"""The engine's loop: one thread that owns the model, the cache and all texts."""

from __future__ import annotations

import queue
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from pymixtral.arrays import F32
from pymixtral.engine.adapters import Adapters
from pymixtral.engine.batch import Batch
from pymixtral.engine.drawing import draw_tokens
from pymixtral.engine.pace import Pace
from pymixtral.engine.pages import Pages
from pymixtral.engine.requests import Abort, Request
from pymixtral.engine.scheduler import Entry, Scheduler
from pymixtral.engine.stats import Counts, EngineStats
from pymixtral.engine.watch import Watch
from pymixtral.errors import CanceledError, ClosedError, HostLostError, NativeError
from pymixtral.model.adapter import Adapter
from pymixtral.model.forward import Model
from pymixtral.ops import PAGE

_LOGITS = 1 << 22
"""Logits that are computed at once where rows of a text are read: 16 MB of float32."""


class Call(Request):
    """A function that the engine's thread calls between two passes.

    Args:
        function: is given the model. A pass that it runs is cancelled with the request.
    """

    def __init__(self, function: Callable[[Model], Any]) -> None:
        super().__init__(np.empty(0, np.int32), rows=range(0))
        self.function = function


class Loop:
    """What the engine's thread runs. Other threads call post(), close() and stats() alone.

    Args:
        model: the loop owns it from here on.
        name: the model's name in messages.
        n_pages: pages of the cache.
        kv_type: the type of the cache.
        max_running: most requests that run at once.
        n_batch: the most tokens of given texts in a pass.
        pace: the longest pass while texts are generated, in seconds; None: by measurement.
        check_file: called after each pass; it raises if the model's file was shortened.
        adapters: those that are loaded: the model keeps what they need for longer than a text.

    Attributes:
        pages: the model's cache.
        watch: ends requests early; its run() needs a thread, too.
        fault: why the loop has ended, if nobody closed it.

    Raises:
        InvalidArgumentError: for a kv_type that does not fit the model.
        NativeError: if there is no memory for the cache.
    """

    def __init__(
        self,
        model: Model,
        name: str,
        *,
        n_pages: int,
        kv_type: str,
        max_running: int,
        n_batch: int,
        pace: float | None,
        check_file: Callable[[], None],
        adapters: Adapters,
    ) -> None:
        self.pages = Pages(model.new_cache(n_pages * PAGE, kv_type))
        self._model = model
        self._name = name
        self._scheduler = Scheduler(self.pages, max_running)
        self._pace = Pace(pace, n_batch)
        self._check_file = check_file
        self._adapters = adapters
        self._adapted: Counter[Adapter] = Counter()  # the texts that have each adapter
        self._n_rows = max(_LOGITS // model.config.n_vocab, 1)
        self._mailbox: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._requests = self.pages.requests
        self._arriving: set[Request] = set()
        self._n_arrived = 0
        self._counts = Counts()
        self._closing = self._silent = False
        self._reason: BaseException | None = None
        self.fault: BaseException | None = None
        self.watch = Watch(model, self._mailbox)

    # --- For other threads ------------------------------------------------------------------------

    def post(self, request: Request) -> None:
        """Hand a request over.

        Args:
            request: a new request.
        """
        if not isinstance(request, Call):
            self._arriving.add(request)
        self._mailbox.put(request)
        if self._closing:  # perhaps nobody takes it any more
            request.stop(self._closed())
            if not self._silent:
                request.tell_end()

    def close(self, reason: BaseException | None = None, *, silent: bool = False) -> None:
        """End all requests and the loop soon. A second close() does nothing.

        Args:
            reason: what callers are told; None: that the model was closed.
            silent: tell no caller. At the end of the program those left are threads that end with it.
        """
        self._reason = self._reason or reason
        self._silent |= silent
        self._closing = True
        self.watch.close()

    def let_go(self, adapter: Adapter) -> None:
        """Give back soon what the model keeps for an adapter that was unloaded. Texts that have it keep it.

        Args:
            adapter: it may be loaded again.
        """
        self.post(Call(lambda _: self._let_go(adapter)))

    def stats(self) -> EngineStats:
        """Describe the state, and the work since the beginning."""
        counts, running, n_cached = self._counts, list(self._scheduler.running), self.pages.n_cached
        n_decoding = sum(entry.n_left == 1 for entry in running)
        n_pages = self.pages.cache.n_pages
        return EngineStats(
            waiting=len(self._scheduler.waiting) + len(self._arriving),
            prefilling=len(running) - n_decoding,
            decoding=n_decoding,
            finished=counts.finished,
            preempted=self._scheduler.n_preempted,
            passes=counts.passes,
            batch_size=counts.texts / max(counts.passes, 1),
            prompt_tokens=counts.prompt_tokens,
            cached_tokens=counts.cached_tokens,
            generated_tokens=counts.generated_tokens,
            seconds=counts.seconds,
            experts_read=self._model.experts_read,
            pages=n_pages,
            used_pages=n_pages - self.pages.cache.n_free_pages - n_cached,
            cached_pages=n_cached,
        )

    # --- The thread -------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until close()."""
        try:
            while not self._closing:
                self._turn()
        except HostLostError as error:  # with the keys and values of all texts
            self._reason = self.fault = self._reason or error
        except BaseException as error:  # a fault of ours, or no memory: nobody may wait for ever
            if not self._closing:
                self._reason = self.fault = ClosedError(
                    f"expected an engine that runs, found one that {type(error).__name__} has ended ({self._name}): "
                    "open the model again"
                )
                self._reason.__cause__ = error
        reason = self._closed()
        self._closing = True
        self.watch.close()
        while self._requests:
            _, request = self._requests.popitem()
            request.sequence = None
            for one in (request, *request.siblings):
                self._refuse(one, reason)
        while not self._mailbox.empty():
            late = self._mailbox.get()
            if late is not None:
                self._refuse(late, reason)
        self.pages.clear()
        self._model.close()

    def _turn(self) -> None:
        """Takes what was sent, ends what must end, and computes a pass of the rest."""
        self._receive()
        for entry, request in list(self._requests.items()):
            for sibling in [other for other in request.siblings if other.overdue() is not None]:
                request.siblings.remove(sibling)
                self._refuse(sibling, sibling.overdue() or "cancelled")
            reason = request.overdue()
            if reason is not None:
                self._end(entry, request, reason)
        n_decoding = 0
        for entry in self._scheduler.running:
            if entry.n_left == 1:
                n_decoding += 1
                entry.n_drafted = self._requests[entry].propose()
        plan = self._scheduler.plan(self._pace.budget(n_decoding))
        if plan and not self._closing:
            self._pass([(self._requests[entry], n) for entry, n in plan])

    def _receive(self) -> None:
        """Takes what callers sent, and waits for it if there is nothing else to do."""
        n = self._mailbox.qsize()  # what comes meanwhile waits for its turn, as long calls may come without end
        while not self._closing and (n > 0 or not self._requests):
            if n <= 0:  # nothing runs: what came during a call begins together
                n = self._mailbox.qsize()
            request = self._mailbox.get()
            n -= 1
            if isinstance(request, Call):
                self._call(request)
            elif request is not None:
                self._arriving.discard(request)
                self._accept(request)
            del request  # which may hold an adapter, while this waits

    def _accept(self, request: Request) -> None:
        reason = request.overdue()
        if reason is not None:
            self._refuse(request, reason)
        elif request.over():
            self._tell_end(request)
        else:
            self._scheduler.add(self._enter(request))
        if request.ended:
            self._promote(request)

    def _refuse(self, request: Request, reason: Abort | BaseException) -> None:
        """Ends a request that has no pages."""
        request.stop(reason)
        self._tell_end(request)

    def _tell_end(self, request: Request) -> None:
        self._counts.finished += not isinstance(request, Call)
        # Both lead back to the request, so that it and the model would wait for the garbage collector.
        request.failed = request.dropped = None
        if not self._silent:
            request.tell_end()

    def _enter(self, request: Request) -> Entry:
        self._n_arrived += 1
        entry = request.entry = Entry(request.priority, self._n_arrived, request.n_ids)
        self._requests[entry] = request
        self._adapted.update(request.adapters.keys())
        return entry

    def _promote(self, request: Request) -> None:
        """Lets the first of the siblings of a request that has ended compute the prompt."""
        if request.siblings:
            first, *first.siblings = request.siblings
            request.siblings = []
            self._accept(first)

    def _call(self, call: Call) -> None:
        try:
            with self.watch.cancelling([call]) as wanted:
                if not wanted:
                    raise CanceledError
                call.finish(call.function(self._model))
        except CanceledError:
            call.stop(self._closed() if self._closing else call.abort or "cancelled")
        except BaseException as error:
            call.stop(error)
        self._tell_end(call)

    def _end(self, entry: Entry, request: Request, reason: Abort | BaseException) -> None:
        """Ends a request before its own end."""
        request.stop(reason)
        self._drop(entry, request)

    def _drop(self, entry: Entry, request: Request) -> None:
        self._scheduler.remove(entry)
        del self._requests[entry]
        self.pages.leave(request)
        self._tell_end(request)
        self._promote(request)  # whose siblings have the same adapters
        adapters, request.adapters = request.adapters, {}  # a reader may keep the request
        self._adapted.subtract(adapters.keys())
        for adapter in adapters:
            self._let_go(adapter)

    def _let_go(self, adapter: Adapter) -> None:
        """Gives back what the model keeps for an adapter, unless it has a name or a text has it."""
        if self._adapted[adapter] <= 0:
            del self._adapted[adapter]
            if not self._adapters.has(adapter):
                self._model.release(adapter)

    # --- A pass -----------------------------------------------------------------------------------

    def _pass(self, texts: list[tuple[Request, int]]) -> None:
        """Computes the next tokens of some texts."""
        begin = time.perf_counter()
        try:
            batch = Batch(texts)
            hidden, choices = batch.compute(self._model, self.pages, self.watch)
            self._check_file()
        except CanceledError:  # the next turn sees whose pass it was
            return
        except HostLostError:
            raise
        except Exception as error:
            if len(texts) > 1:  # the bits do not depend on the batch: each is tried alone
                for one in texts:
                    self._pass([one])
            else:
                self._fail(texts[0][0], error)
            return
        if choices is not None:
            batch.trace(choices)
        reading, drawing = batch.divided(hidden)
        for request, positions, rows in reading:
            self._read(request, positions, rows)
        if drawing:
            draw_tokens(self._model, drawing)
        self._advance(texts, time.perf_counter() - begin)

    def _read(self, request: Request, positions: range, hidden: F32) -> None:
        try:
            for i in range(0, len(positions), self._n_rows):
                rows = hidden[i : i + self._n_rows]
                rows = self._model.head_input(rows) if request.reads_hidden else self._model.logits(rows)
                request.read(positions[i], rows)
        except BaseException as error:  # of a caller's function, too
            request.failed = error
        request.rows = range(positions.stop, request.rows.stop)

    def _advance(self, texts: list[tuple[Request, int]], seconds: float) -> None:
        """Notes what a pass has computed, and tells the callers."""
        counts = self._counts
        counts.passes += 1
        counts.texts += len(texts)
        counts.seconds += seconds
        n_decoding = n_prompt = 0
        for request, n in texts:
            entry, sequence = request.entry, request.sequence
            assert entry
            assert sequence
            if not request.begun:
                request.begun = True
                request.began = time.perf_counter() - seconds
                request.n_cached = entry.n_computed
                counts.cached_tokens += entry.n_computed
            counts.prompt_tokens += min(n, max(request.n_prompt - request.n_cut - entry.n_computed, 0))
            if entry.n_left == 1:
                n_decoding += 1
            else:
                n_prompt += n
            entry.n_computed += n
            entry.shares_tail = False
            siblings = self._fork(request)
            for one in (request, *siblings):
                one.account(seconds)
                self._go_on(one)
        self._pace.observe(n_decoding, n_prompt, seconds)

    def _fork(self, request: Request) -> list[Request]:
        """Lets the other texts of a prompt begin, once it is computed."""
        entry = request.entry
        assert entry
        if not request.siblings or entry.n_computed < request.n_prompt:
            return []
        siblings, request.siblings = request.siblings, []
        for sibling in siblings:
            other = self._enter(sibling)
            sibling.follow(request)
            if len(self._scheduler.running) < self._scheduler.max_running:
                self.pages.fork(entry, other)
                self._scheduler.running.append(other)
            else:
                self._scheduler.add(other)
        return siblings

    def _go_on(self, request: Request) -> None:
        """Lets a request take what a pass has given it."""
        entry = request.entry
        assert entry
        try:
            n_drawn = len(request.drawn)
            if n_drawn and entry.n_computed > request.n_ids + n_drawn - 1:  # proposed tokens that were wrong
                assert request.sequence
                entry.n_computed = request.n_ids + n_drawn - 1
                request.sequence.truncate(entry.n_computed)
                if request.trace is not None:
                    request.trace.truncate(request.n_cut + entry.n_computed)
            self._counts.generated_tokens += n_drawn
            if n_drawn or request.failed is None:
                request.advance()
                if request.ended:  # what failed came after the end
                    request.failed = None
            if request.sequence and request.failed is None and not request.ended:
                surplus = request.surplus()
                if surplus:
                    request.cut(surplus)
                    self.pages.shift(entry, surplus, self._model)
                self.pages.index(request)
        except BaseException as error:
            request.failed = error
        if request.failed is not None:
            request.stop(self._closed() if self._closing else request.failed)
        if request.ended:
            self._drop(entry, request)

    def _closed(self) -> BaseException:
        """What callers are told once the loop is closing."""
        return self._reason or closed(self._name)

    def _fail(self, request: Request, error: Exception) -> None:
        assert request.entry
        if isinstance(error, MemoryError):
            error = NativeError(
                f"expected memory for the next tokens of a text of {request.n_ids}, found too little ({error}): "
                "set a smaller n_batch, or end other programs"
            )
        request.failed = error
        self._end(request.entry, request, error)


def closed(name: str) -> ClosedError:
    """Make the error of a call after close().

    Args:
        name: the model's name in messages.
    """
    return ClosedError(f"expected an open model, found one that was closed ({name}): open it again")
