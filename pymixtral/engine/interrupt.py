"""Long calls into C that Ctrl-C ends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


def run_beside(call: Callable[[], T], cancel: Callable[[], None]) -> T:
    """The result of call(), run on another thread while this one waits and takes signals.

    If the wait is interrupted, the call is canceled and has ended, or will never start, when the interrupt goes on.
    """
    results: list[T] = []
    errors: list[BaseException] = []
    claim = threading.Lock()  # whoever takes it first decides: the thread, that the call runs; an interrupt, that it does not
    done = threading.Event()

    def work() -> None:
        if claim.acquire(blocking=False):
            try:
                results.append(call())
            except BaseException as error:
                errors.append(error)
            finally:
                done.set()

    try:
        threading.Thread(target=work, name="pymixtral", daemon=True).start()
        done.wait()
    except BaseException:
        ended = False
        while not ended:
            with suppress(KeyboardInterrupt):  # an impatient second one
                ended = done.is_set() or claim.acquire(blocking=False)
                if not ended:
                    cancel()  # again and again: a pass that begins clears the flag
                    done.wait(0.02)
        raise
    if errors:
        raise errors[0]
    return results[0]
