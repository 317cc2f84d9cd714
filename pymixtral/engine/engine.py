"""The engine: many callers share one model."""

from __future__ import annotations

import atexit
import os
import queue
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

from pymixtral.engine.loop import Call, Loop
from pymixtral.engine.requests import Abort, Event, Request
from pymixtral.engine.stats import EngineStats
from pymixtral.errors import ClosedError
from pymixtral.model.forward import Model
from pymixtral.threads import starting_threads

T = TypeVar("T")
E = TypeVar("E")

_EXIT_SECONDS = 10
"""How long the end of the program waits for a thread that is in somebody's function."""


class Engine:
    """A model that any number of threads and coroutines ask for texts at the same time.

    One thread owns the model and computes for all. A caller sends a request and waits for its
    events, so an exception in the caller, such as KeyboardInterrupt, never meets the computation.
    An engine that nobody refers to ends by itself.

    Args:
        model: the engine owns it from here on; close() closes it.
        name: the model's name in messages.
        **options: as for Loop.

    Raises:
        InvalidArgumentError: for a kv_type that does not fit the model.
        NativeError: if there is no memory for the cache, or the thread cannot be started.
    """

    def __init__(self, model: Model, name: str, **options: Any) -> None:
        self._pid = os.getpid()
        self._name = name
        self._closed = False
        self._loop = Loop(model, name, **options)
        self._thread = threading.Thread(target=self._loop.run, name="pymixtral", daemon=True)
        with starting_threads():
            self._thread.start()
        # Neither holds the engine: so it can go, and the thread with it.
        self._finalizer = weakref.finalize(self, Loop.close, self._loop)
        self._finalizer.atexit = False
        _running[self._thread] = self._loop

    def submit(self, request: Request) -> None:
        """Send a request. Its events come on the engine's thread.

        Args:
            request: a new request.

        Raises:
            ClosedError: after close(), and in a process that was forked.
        """
        self.check_open()
        self._loop.post(request)
        if not self._thread.is_alive():  # it ended in between
            request.stop(self._loop.closed())

    def interrupt(self, request: Request, reason: Abort = "cancelled") -> None:
        """End a request soon, in whatever state it is. Any thread may call this at any time.

        Args:
            request: it may have ended already.
            reason: why.
        """
        if os.getpid() == self._pid:
            self._loop.interrupt(request, reason)

    def call(self, function: Callable[[Model], T]) -> T:
        """Let the engine's thread call a function between two passes, and wait for the result.

        Args:
            function: is given the model. Its exceptions come to the caller.

        Returns:
            What it returns.

        Raises:
            ClosedError: after close().
        """
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        call = Call(function)
        call.listen(events.put)
        self.submit(call)
        try:
            event = events.get()
        except BaseException:
            self.interrupt(call)
            raise
        if isinstance(event, BaseException):
            raise event
        return cast("T", event.result)

    def forget(self) -> None:
        """Empty the prefix cache.

        Raises:
            ClosedError: after close().
        """
        self.call(lambda _: self._loop.forget())

    def stats(self) -> EngineStats:
        """Describe the state, and the work since the beginning.

        Returns:
            Numbers, which may be some microseconds old.

        Raises:
            ClosedError: after close().
        """
        self.check_open()
        return self._loop.stats()

    def close(self) -> None:
        """End all requests and the thread, and free the memory. A second close() does nothing.

        What computes is ended at once; its callers get ClosedError.
        """
        self._closed = True
        if os.getpid() == self._pid:
            _end(self._thread, self._loop)

    def check_open(self) -> None:
        """Check that the engine is open.

        Raises:
            ClosedError: after close(), and in a process that was forked.
        """
        self.check_process()
        if self._closed or not self._thread.is_alive():
            raise self._loop.closed()

    def check_process(self) -> None:
        """Check that this is the process that opened the model.

        Raises:
            ClosedError: in a process that was forked from it.
        """
        if os.getpid() != self._pid:
            raise ClosedError(
                f"expected the process that opened the model, found one forked from it ({self._name}): "
                "open the model after the fork"
            )


def next_event(events: queue.SimpleQueue[E], requests: Sequence[Request], engine: Engine) -> E:
    """Wait for the next event of some requests. Their deadlines are kept even within a long pass.

    Args:
        events: where they deliver.
        requests: what is waited for.
        engine: has the requests.

    Returns:
        The event.

    Raises:
        ClosedError: in a process that was forked.
    """
    engine.check_process()
    while True:
        timed = [
            (left, r) for r in requests if not r.ended and r.abort is None and (left := r.seconds_left) is not None
        ]
        if not timed:
            return events.get()
        left, first = min(timed, key=lambda pair: pair[0])
        if left <= 0:
            engine.interrupt(first, "deadline")
            continue
        try:
            return events.get(timeout=left)
        except queue.Empty:
            continue


_running: weakref.WeakKeyDictionary[threading.Thread, Loop] = weakref.WeakKeyDictionary()


def _end(thread: threading.Thread, loop: Loop, timeout: float | None = None) -> None:
    loop.close()
    if thread is not threading.current_thread():
        thread.join(timeout)


def _end_all() -> None:
    """Ends the threads while Python is whole: later they would be stopped anywhere in it."""
    for thread, loop in list(_running.items()):
        if thread.is_alive():
            _end(thread, loop, _EXIT_SECONDS)


atexit.register(_end_all)
