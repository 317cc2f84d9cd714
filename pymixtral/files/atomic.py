"""Files that are complete or not there."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pymixtral.errors import InvalidArgumentError

_PREFIX = f".pymixtral-{zlib.crc32(os.uname().nodename.encode()):08x}-"
"""Of temporary files. It tells machines apart that share a disk, whose locks may be unknown to one another."""


@contextmanager
def replacing(dest: Path) -> Iterator[Path]:
    """A temporary file beside `dest`, empty, that becomes `dest` when the block succeeds and disappears when it does not.

    After a crash at any moment `dest` is absent, old or complete. What a killed process left in the directory, the next one removes.
    """
    remove_abandoned(dest.parent)
    temporary, fd = _locked(dest.parent)
    try:
        try:
            yield temporary
            os.fsync(fd)
            temporary.replace(dest)
        finally:
            temporary.unlink(missing_ok=True)
    finally:
        os.close(fd)
    directory = os.open(dest.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def remove_abandoned(directory: Path) -> None:
    """Removes the temporary files of this machine's processes that have died: a lock ends with the process that holds it."""
    with suppress(OSError):  # a directory that cannot be listed
        for path in [entry for entry in directory.iterdir() if entry.name.startswith(_PREFIX)]:
            with suppress(OSError):  # locked, gone meanwhile, or another user's
                fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
                finally:
                    os.close(fd)


def _locked(directory: Path) -> tuple[Path, int]:
    """A new file and its descriptor, which holds the lock."""
    while True:
        path = directory / f"{_PREFIX}{secrets.token_hex(8)}.tmp"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with suppress(OSError):  # a file system without locks: there nobody gets one, and nothing is removed
            fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:
            return path, fd
        os.close(fd)  # somebody saw it before it was locked, and removed it


def check_dest(path: Path, used: Iterable[str | os.PathLike[str]], force: bool) -> None:
    """Raises InvalidArgumentError where no file can be written, where one of those `used` is or, written later, will be, and, without
    force, where any is."""
    if not path.parent.is_dir():
        raise InvalidArgumentError(f"{path}: the directory {path.parent} does not exist; create it first")
    if not path.name or path.is_dir():
        raise InvalidArgumentError(f"{path} is a directory; expected the name of a file to write")
    if any(_same(path, Path(file)) for file in used):
        raise InvalidArgumentError(f"{path} is one of the files that are read or written otherwise; choose another destination")
    if not os.path.lexists(path):
        return
    if not path.is_file() and not path.is_symlink():
        raise InvalidArgumentError(f"{path} is no regular file; choose another destination")
    if not force:
        raise InvalidArgumentError(f"{path} exists; choose another destination or replace it with --force (force=True)")


def _same(a: Path, b: Path) -> bool:
    """Whether both are one file, or will be when they are there."""
    return a.samefile(b) if a.exists() and b.exists() else os.path.realpath(a) == os.path.realpath(b)


def check_space(path: Path, n_bytes: int) -> None:
    """Raises InvalidArgumentError if the disk that `path` will be on has less free, without what killed processes left beside it."""
    remove_abandoned(path.parent)
    free = shutil.disk_usage(path.parent).free
    if free < n_bytes:
        raise InvalidArgumentError(f"{path}: needs {n_bytes} bytes, its disk has {free} bytes free; free some or choose another place")
