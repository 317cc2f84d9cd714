"""Python's threads, which the system may refuse to start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pymixtral.errors import NativeError


@contextmanager
def starting_threads() -> Iterator[None]:
    """Report a thread that cannot be started in the block.

    Raises:
        NativeError: where the system starts no more.
    """
    try:
        yield
    except RuntimeError as error:  # of no class of its own
        if "start new thread" not in str(error):
            raise
        raise NativeError(
            "expected to start a further thread, found that the system allows no more: "
            "end other programs, or raise the limit (`ulimit -u`)"
        ) from error
