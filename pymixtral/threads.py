"""Python's threads, which the system may refuse to start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pymixtral.errors import NativeError


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
