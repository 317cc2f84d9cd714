"""Whether a file is still the one that was opened."""

from __future__ import annotations

import os
from pathlib import Path

from pymixtral.errors import PymixtralError

Identity = tuple[int, int, int, int]


def identity(status: os.stat_result) -> Identity:
    """What differs after a file was overwritten in place or replaced.

    Args:
        status: of the file, from os.stat() or os.fstat().

    Returns:
        Device, inode, bytes, and the time of the last change in nanoseconds.
    """
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def check_unchanged(path: Path, before: Identity, error: type[PymixtralError]) -> None:
    """Compares a file with what it was when it was opened.

    Args:
        path: the file.
        before: its identity when it was opened.
        error: what to raise.

    Raises:
        PymixtralError: the file changed or is gone, so that what was read may be a part of the old
            file and a part of the new one.
    """
    try:
        same = identity(path.stat()) == before
    except OSError:
        same = False
    if not same:
        raise error(
            f"{path}: expected a file that stays as it is while it is read, found that it was changed: "
            "try again when nothing writes it any more"
        )
