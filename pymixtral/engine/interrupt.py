"""Long calls into C that Ctrl-C can end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from pymixtral.threads import starting_threads

T = TypeVar("T")


def run_beside(call: Callable[[], T], cancel: Callable[[], None]) -> T:
    """Run a call on another thread while this one waits and receives signals.

    An interrupt of the wait cancels the call. It is raised again once the call has ended or can no
    longer start.

    Args:
        call: what to run.
        cancel: makes a running call end soon. It may be called many times, from this thread.

    Returns:
        What call() returns.

    Raises:
        BaseException: whatever call() raises, or the interrupt.
    """
    results: list[T] = []
    errors: list[BaseException] = []
    # Whoever takes this lock first decides: the thread starts the call, an interrupt prevents it.
    claim = threading.Lock()
    # A plain lock: an interrupt inside an Event's or a Condition's own code leaves that broken.
    ended = threading.Lock()
    ended.acquire()

    def work() -> None:
        if claim.acquire(blocking=False):
            try:
                results.append(call())
            except BaseException as error:
                errors.append(error)
            finally:
                ended.release()

    try:
        with starting_threads():
            threading.Thread(target=work, name="pymixtral", daemon=True).start()
        ended.acquire()
    except BaseException:
        over = False
        while not over:
            with suppress(KeyboardInterrupt):  # an impatient user's second Ctrl-C
                over = bool(results or errors) or claim.acquire(blocking=False)
                if not over:
                    cancel()  # repeatedly, as a pass that begins clears the flag
                    ended.acquire(timeout=0.02)  # seconds: too short to notice, too long to burn CPU
        raise
    if errors:
        raise errors[0]
    return results[0]
