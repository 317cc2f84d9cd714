"""The watch: a thread that ends requests before their own end, even in the middle of a long pass.

Callers only put into a queue, which no signal can interrupt halfway. Locks are for this thread and
the engine's, which signals never meet.
"""

from __future__ import annotations

import heapq
import itertools
import queue
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pymixtral.engine.requests import Abort, Request
from pymixtral.model.forward import Model


class Interest:
    """The caller's interest in a request: it is gone when the caller has dropped this."""

    __slots__ = ("__weakref__",)


class _Dropped(weakref.ref[Interest]):
    """Is put into the queue when an interest is gone. That takes no Python code, so an exception from
    a signal handler cannot prevent it.
    """

    __slots__ = ("requests",)
    requests: Sequence[Request]


class Watch:
    """Ends requests at their callers' wish, when their callers are gone, and at their deadlines.

    A pass that runs is cancelled if nobody wants any of it.

    Args:
        model: computes the passes.
        wake: called after a request was ended, so that the engine looks at it.
    """

    def __init__(self, model: Model, wake: queue.SimpleQueue[Request | None]) -> None:
        self._model = model
        self._wake = wake
        self._wishes: queue.SimpleQueue[tuple[Request, Abort] | Request | _Dropped | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._current: Sequence[Request] = ()
        self._closing = False

    # --- For callers ------------------------------------------------------------------------------

    def interest(self, requests: Sequence[Request]) -> Interest:
        """Begin to watch new requests.

        Args:
            requests: they are cancelled when what this returns is dropped.

        Returns:
            What the caller holds while he wants them.
        """
        interest = Interest()
        dropped = _Dropped(interest, self._wishes.put)
        dropped.requests = requests
        for request in requests:
            request.dropped = dropped
            if request.deadline is not None:
                self._wishes.put(request)
        return interest

    def end(self, request: Request, reason: Abort) -> None:
        """End a request soon.

        Args:
            request: it may have ended already.
            reason: why.
        """
        self._wishes.put((request, reason))

    def close(self) -> None:
        """End the pass that runs and all later ones, and the thread."""
        self._wishes.put(None)

    # --- For the engine ---------------------------------------------------------------------------

    @contextmanager
    def cancelling(self, requests: Sequence[Request]) -> Iterator[bool]:
        """Let a pass be cancelled while the block runs.

        Args:
            requests: those that the pass is for.

        Yields:
            Whether somebody still wants it.
        """
        with self._lock:
            wanted = not self._closing and any(request.abort is None for request in requests)
            self._current = requests
        try:
            yield wanted
        finally:
            with self._lock:
                self._current = ()
                if not self._closing:
                    self._model.cancel(False)

    # --- The thread -------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until close()."""
        deadlines: list[tuple[float, int, weakref.ref[Request]]] = []  # which keep no request that has ended
        numbers = itertools.count()
        while True:
            try:
                left = max(deadlines[0][0] - time.monotonic(), 0) if deadlines else None
                wish = self._wishes.get(timeout=left)
            except queue.Empty:
                late = heapq.heappop(deadlines)[2]()
                if late is not None:
                    self._end(late, "deadline")
                late = None
                continue
            if wish is None:
                break
            if isinstance(wish, Request):
                assert wish.deadline is not None
                heapq.heappush(deadlines, (wish.deadline, next(numbers), weakref.ref(wish)))
            elif isinstance(wish, _Dropped):
                self._end_all(wish.requests)
            else:
                self._end(*wish)
            wish = None  # nor does this loop while it waits
        with self._lock:
            self._closing = True
            self._model.cancel()
        self._wake.put(None)

    def _end_all(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self._end(request, "cancelled")

    def _end(self, request: Request, reason: Abort) -> None:
        if request.ended or request.abort is not None:
            return
        request.abort = reason
        with self._lock:
            if request in self._current and all(other.abort is not None for other in self._current):
                self._model.cancel()
        self._wake.put(None)
