"""Python's threads, which the system may refuse to start."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TypeVar

from pymixtral.errors import NativeError

T = TypeVar("T")


def called_in_thread(function: Callable[[], T], name: str) -> Future[T]:
    """Call a function in a thread of its own, which the end of the program does not wait for.

    Args:
        function: what is called.
        name: of the thread.

    Returns:
        Gets what the function returns or raises. Nobody can cancel it.
    """
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()

    def call() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, name=name, daemon=True).start()
    return future


@contextmanager
def starting_threads() -> Iterator[None]:
    """Report a thread that cannot be started in the block.

    Raises:
        NativeError: where the system starts no more, or Python, as the program is ending.
    """
    try:
        yield
    except RuntimeError as error:  # of no class of its own
        if "interpreter shutdown" in str(error):
            raise NativeError(
                "expected a program that goes on, to start a further thread, found one that is ending: start earlier"
            ) from error
        if "start new thread" not in str(error):
            raise
        raise NativeError(
            "expected to start a further thread, found that the system allows no more: "
            "end other programs, or raise the limits (`ulimit -u` of threads, `ulimit -v` of memory)"
        ) from error
