"""The engine: many callers share one model."""

from __future__ import annotations

import atexit
import os
import queue
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

from pymixtral.engine.loop import Call, Loop, closed
from pymixtral.engine.pages import Pages
from pymixtral.engine.requests import Abort, Event, Request
from pymixtral.engine.stats import EngineStats
from pymixtral.engine.watch import Interest
from pymixtral.errors import ClosedError, InvalidArgumentError
from pymixtral.model.adapter import Adapter
from pymixtral.model.forward import Model
from pymixtral.threads import starting_threads

T = TypeVar("T")

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
        loop = Loop(model, name, **options)
        self._loop: Loop | None = loop
        self._thread = threading.Thread(target=loop.run, name="pymixtral", daemon=True)
        with starting_threads():
            threading.Thread(target=loop.watch.run, name="pymixtral-watch", daemon=True).start()
            try:
                self._thread.start()
            except BaseException:
                loop.watch.close()
                raise
        # Neither holds the engine: so it can go, and the thread with it.
        self._finalizer = weakref.finalize(self, Loop.close, loop)
        self._finalizer.atexit = False
        _engines.add(self)

    def submit(self, requests: Sequence[Request], others: Sequence[Request] = ()) -> Interest:
        """Send requests. Their events come on the engine's thread.

        Args:
            requests: new requests.
            others: more that the engine begins by itself, as their siblings.

        Returns:
            What the caller holds while he wants them: they are cancelled when it is dropped.

        Raises:
            ClosedError: after close(), and in a process that was forked.
            InvalidArgumentError: on the engine's own thread, which cannot wait for itself.
        """
        loop = self._open()
        if threading.current_thread() is self._thread:
            raise InvalidArgumentError(
                "expected a call from a thread of the program, found one from within the engine: "
                "a logits_processor cannot ask the model that it serves"
            )
        interest = loop.watch.interest([*requests, *others])
        for request in requests:
            loop.post(request)
        return interest

    def interrupt(self, request: Request, reason: Abort = "cancelled") -> None:
        """End a request soon, in whatever state it is. Any thread may call this at any time.

        Args:
            request: it may have ended already.
            reason: why.
        """
        loop = self._loop
        if loop is not None and os.getpid() == self._pid:
            loop.watch.end(request, reason)

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
        interest = self.submit([call])
        try:
            event = events.get()
        except BaseException:
            self.interrupt(call)  # a traceback may keep the interest
            raise
        del interest
        if isinstance(event, BaseException):
            raise event
        return cast("T", event.result)

    def call_with_pages(self, function: Callable[[Pages], T]) -> T:
        """Let the engine's thread call a function of its pages between two passes.

        Args:
            function: is given the pages.

        Returns:
            What it returns.

        Raises:
            ClosedError: after close().
        """
        pages = self._open().pages
        return self.call(lambda _: function(pages))

    def let_go(self, adapter: Adapter) -> None:
        """Give back soon what the model keeps for an adapter that was unloaded. Nobody waits for it.

        Args:
            adapter: texts that have it keep it until they end.

        Raises:
            ClosedError: after close().
        """
        self._open().let_go(adapter)

    def forget(self) -> None:
        """Empty the prefix cache.

        Raises:
            ClosedError: after close().
        """
        self.call_with_pages(Pages.clear)

    def stats(self) -> EngineStats:
        """Describe the state, and the work since the beginning.

        Returns:
            Numbers, which may be some microseconds old.

        Raises:
            ClosedError: after close().
        """
        return self._open().stats()

    def close(self, reason: BaseException | None = None) -> None:
        """End all requests and the thread, and free the memory. A second close() does nothing.

        What computes is ended at once; its callers get ClosedError.

        Args:
            reason: what they get in its place; None: nothing else.
        """
        loop = self._loop
        if loop is not None and os.getpid() == self._pid:
            self._finalizer.detach()
            _end(self._thread, loop, reason=reason)  # also for a second caller, who must not free what a pass reads
        self._loop = None

    def check_open(self) -> None:
        """Check that the engine is open.

        Raises:
            ClosedError: after close(), and in a process that was forked.
        """
        self._open()

    def _open(self) -> Loop:
        self.check_process()
        loop = self._loop
        if loop is not None and loop.fault:
            raise type(loop.fault)(str(loop.fault))
        if loop is None or not self._thread.is_alive():
            raise closed(self._name)
        return loop

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


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def _end(
    thread: threading.Thread,
    loop: Loop,
    timeout: float | None = None,
    *,
    reason: BaseException | None = None,
    silent: bool = False,
) -> None:
    loop.close(reason, silent=silent)
    if thread is not threading.current_thread():
        thread.join(timeout)


def _end_all() -> None:
    """Ends the threads while Python is whole: later they would be stopped anywhere in it."""
    for engine in list(_engines):
        loop = engine._loop
        if loop is not None and engine._thread.is_alive():
            _end(engine._thread, loop, _EXIT_SECONDS, silent=True)


atexit.register(_end_all)
