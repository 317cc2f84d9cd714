"""The engine's loop: one thread that owns the model, the cache and all texts."""

from __future__ import annotations

import itertools
import queue
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from pymixtral.arrays import F32, I32
from pymixtral.engine.generation import Continuation
from pymixtral.engine.pace import Pace
from pymixtral.engine.pages import Pages
from pymixtral.engine.requests import Abort, Request
from pymixtral.engine.scheduler import Entry, Scheduler
from pymixtral.engine.stats import Counts, EngineStats
from pymixtral.engine.watch import Watch
from pymixtral.errors import CanceledError, ClosedError, PymixtralError
from pymixtral.model.forward import EVERY, Model
from pymixtral.ops import PAGE
from pymixtral.sampling.sampler import draw

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

    Attributes:
        pages: the model's cache.
        watch: ends requests early; its run() needs a thread, too.

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
    ) -> None:
        self.pages = Pages(model.new_cache(n_pages * PAGE, kv_type))
        self._model = model
        self._name = name
        self._scheduler = Scheduler(self.pages, max_running)
        self._pace = Pace(pace, n_batch)
        self._check_file = check_file
        self._n_rows = max(_LOGITS // model.config.n_vocab, 1)
        self._mailbox: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._requests = self.pages.requests
        self._n_arrived = 0
        self._counts = Counts()
        self._closing = self._silent = False
        self.watch = Watch(model, self._mailbox)

    # --- For other threads ------------------------------------------------------------------------

    def post(self, request: Request) -> None:
        """Hand a request over.

        Args:
            request: a new request.
        """
        self._mailbox.put(request)
        if self._closing:  # perhaps nobody takes it any more
            self._refuse(request, closed(self._name))

    def close(self, *, silent: bool = False) -> None:
        """End all requests and the loop soon. A second close() does nothing.

        Args:
            silent: tell no caller. At the end of the program those left are threads that end with it.
        """
        self._silent |= silent
        self._closing = True
        self.watch.close()

    def stats(self) -> EngineStats:
        """Describe the state, and the work since the beginning."""
        counts, running, n_cached = self._counts, list(self._scheduler.running), self.pages.n_cached
        n_decoding = sum(entry.n_left == 1 for entry in running)
        n_pages = self.pages.cache.n_pages
        return EngineStats(
            waiting=len(self._scheduler.waiting) + self._mailbox.qsize(),
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
        reason = closed(self._name)
        try:
            while not self._closing:
                self._turn()
        except BaseException as error:  # a fault of ours, or no memory: nobody may wait for ever
            if not self._closing:
                reason = ClosedError(
                    f"expected an engine that runs, found one that {type(error).__name__} has ended ({self._name}): "
                    "open the model again"
                )
                reason.__cause__ = error
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
        batch = self._scheduler.plan(self._pace.budget(n_decoding))
        if batch and not self._closing:
            self._pass([(self._requests[entry], n) for entry, n in batch])

    def _receive(self) -> None:
        """Takes what callers sent, and waits for it if there is nothing else to do."""
        while not self._closing and not (self._requests and self._mailbox.empty()):
            request = self._mailbox.get()
            if isinstance(request, Call):
                self._call(request)
            elif request is not None:
                self._accept(request)

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
        self._counts.finished += 1
        if not self._silent:
            request.tell_end()

    def _enter(self, request: Request) -> Entry:
        self._n_arrived += 1
        entry = request.entry = Entry(request.priority, self._n_arrived, request.n_ids)
        self._requests[entry] = request
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
            call.stop(closed(self._name) if self._closing else call.abort or "cancelled")
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
        self._promote(request)

    # --- A pass -----------------------------------------------------------------------------------

    def _pass(self, batch: list[tuple[Request, int]]) -> None:
        """Computes the next tokens of some texts."""
        begin = time.perf_counter()
        try:
            hidden = self._forward(batch)
            self._check_file()
        except CanceledError:  # the next turn sees whose pass it was
            return
        except Exception as error:
            if len(batch) > 1:  # the bits do not depend on the batch: each is tried alone
                for one in batch:
                    self._pass([one])
            else:
                self._fail(batch[0][0], error)
            return
        drawing: list[tuple[Continuation, slice]] = []
        reading: list[tuple[Request, range, F32]] = []
        at = 0
        for request, n in batch:
            read, last = self._wanted(request, n)
            if read:
                reading.append((request, read, hidden[at : at + len(read)]))
                at += len(read)
            if last:
                assert isinstance(request, Continuation)
                drawing.append((request, slice(at, at + last)))
                at += last
        rows, logits = self._draw_logits(drawing, hidden)
        for request, positions, states in reading:
            self._read(request, positions, states)
        if rows:
            self._draw(rows, logits)
        self._advance(batch, time.perf_counter() - begin)

    def _forward(self, batch: list[tuple[Request, int]]) -> F32:
        """The rows that are wanted after the last layer. The sequences advance."""
        ids: list[I32] = []
        runs = []
        rows: list[range] = []
        n_new, at = 0, 0
        for request, n in batch:
            entry, sequence = request.entry, request.sequence
            assert entry
            assert sequence
            begin = entry.n_computed
            if sequence.length > begin:  # a pass that was computed and then failed for another reason
                sequence.truncate(begin)
            n_new += entry.n_new_pages(n)
            ids.append(request.ids[begin : begin + n])
            runs.append((sequence, n))
            read, last = self._wanted(request, n)
            rows.append(range(at + read.start - begin, at + read.stop - begin))
            rows.append(range(at + n - last, at + n))
            at += n
        self.pages.make_free(n_new)
        every = sum(map(len, rows)) == at
        with self.watch.cancelling([request for request, _ in batch]) as somebody:
            if not somebody:
                raise CanceledError
            return self._model.forward(
                ids[0] if len(ids) == 1 else np.concatenate(ids),
                runs,
                self.pages.cache,
                rows=EVERY if every else np.concatenate([np.arange(r.start, r.stop) for r in rows]),
            )

    @staticmethod
    def _wanted(request: Request, n: int) -> tuple[range, int]:
        """The positions whose rows are read in a pass, and how many of its last rows are drawn from."""
        entry = request.entry
        assert entry
        end = entry.n_computed + n
        n_draw = max(end - entry.n_ids + 1, 0) if isinstance(request, Continuation) else 0
        return request.unread(entry.n_computed, end - n_draw), n_draw

    def _draw_logits(
        self, drawing: list[tuple[Continuation, slice]], hidden: F32
    ) -> tuple[list[tuple[Continuation, F32]], F32]:
        """The logits of each text's rows, in one product if none of them fails; and that product."""
        parts = [hidden[rows] for _, rows in drawing]
        if not parts:
            return [], hidden[:0]
        try:
            whole = len(hidden) == sum(map(len, parts))
            logits = self._model.logits(hidden if whole else np.concatenate(parts))
        except Exception as error:
            if len(drawing) == 1:
                drawing[0][0].failed = error
                return [], hidden[:0]
            each = [self._draw_logits([one], hidden) for one in drawing]
            return [pair for pairs, _ in each for pair in pairs], np.concatenate(
                [rows for pairs, rows in each if pairs]
            )
        ends = itertools.accumulate(map(len, parts))
        return [
            (request, logits[end - len(part) : end])
            for (request, _), part, end in zip(drawing, parts, ends, strict=True)
        ], logits

    def _read(self, request: Request, positions: range, hidden: F32) -> None:
        try:
            for i in range(0, len(positions), self._n_rows):
                rows = hidden[i : i + self._n_rows]
                rows = self._model.head_input(rows) if request.reads_hidden else self._model.logits(rows)
                request.read(positions[i], rows)
        except BaseException as error:  # of a caller's function, too
            request.failed = error
        request.rows = range(positions.stop, request.rows.stop)

    def _draw(self, drawing: list[tuple[Continuation, F32]], logits: F32) -> None:
        """Draws from the rows of each text in turn, as long as they confirm what was proposed."""
        going = list(drawing)
        for request, rows in drawing:
            going += [(sibling, rows) for sibling in request.siblings if isinstance(sibling, Continuation)]
        r = 0
        while going:
            one_each = r == 0 and len(drawing) == len(going) == len(logits)  # no siblings, and no drafts
            plain = one_each and not any(request.processor for request, _ in going)
            prepared = list(logits) if plain else [self._prepared(request, rows[r]) for request, rows in going]
            ready = [(*pair, row) for pair, row in zip(going, prepared, strict=True) if row is not None]
            drawn = draw(
                self._model.context,
                [request.sampler for request, _, _ in ready],
                logits if plain else np.stack([row for _, _, row in ready]) if ready else logits[:0],
                [request.text_ids for request, _, _ in ready],
            )
            going = []
            for (request, rows, _), token in zip(ready, drawn, strict=True):
                if isinstance(token, PymixtralError):
                    request.failed = token
                elif self._takes(request, token, rows, r):
                    going.append((request, rows))
            r += 1

    @staticmethod
    def _prepared(request: Continuation, logits: F32) -> F32 | None:
        """A row as the request's processor leaves it; None if that fails."""
        try:
            return request.prepare(logits)
        except BaseException as error:  # of a caller's function
            request.failed = error
            return None

    @staticmethod
    def _takes(request: Continuation, token: int, rows: F32, r: int) -> bool:
        """Whether the token that was drawn is the one that was proposed."""
        try:
            return request.draw(token, rows[r], len(rows) - 1)
        except Exception as error:
            request.failed = error
            return False

    def _advance(self, batch: list[tuple[Request, int]], seconds: float) -> None:
        """Notes what a pass has computed, and tells the callers."""
        counts = self._counts
        counts.passes += 1
        counts.texts += len(batch)
        counts.seconds += seconds
        n_decoding = n_prompt = 0
        for request, n in batch:
            entry, sequence = request.entry, request.sequence
            assert entry
            assert sequence
            if not request.begun:
                request.begun = True
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
            request.stop(closed(self._name) if self._closing else request.failed)
        if request.ended:
            self._drop(entry, request)

    def _fail(self, request: Request, error: Exception) -> None:
        assert request.entry
        request.failed = error
        self._end(request.entry, request, error)


def closed(name: str) -> ClosedError:
    """Make the error of a call after close().

    Args:
        name: the model's name in messages.
    """
    return ClosedError(f"expected an open model, found one that was closed ({name}): open it again")
