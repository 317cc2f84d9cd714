"""Files that are complete or not there."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pymixtral.errors import InvalidArgumentError


@contextmanager
def replacing(dest: Path) -> Iterator[Path]:
    """A temporary path beside `dest` that becomes `dest` when the block succeeds and disappears when it does not.

    After a crash at any moment `dest` is absent, old or complete.
    """
    temporary = dest.with_name(f".pymixtral-{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(dest)
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(dest.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


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
    """Raises InvalidArgumentError if the disk that `path` will be on has less free."""
    free = shutil.disk_usage(path.parent).free
    if free < n_bytes:
        raise InvalidArgumentError(f"{path}: needs {n_bytes} bytes, its disk has {free} bytes free; free some or choose another place")
