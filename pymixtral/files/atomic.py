"""Files that are complete or not there."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pymixtral.errors import OutputError, PymixtralError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)
_PREFIX = f".pymixtral-{zlib.crc32(os.uname().nodename.encode()):08x}-"
"""Of temporary files. It tells machines apart that share a disk, whose locks may be unknown to one another."""


@contextmanager
def replacing(dest: Path, *, force: bool) -> Iterator[Path]:
    """A temporary file beside `dest`, empty, that becomes `dest` when the block succeeds and disappears when it does not.

    After a crash at any moment `dest` is absent, old or complete. What a killed process left in the
    directory, the next one removes.

    Args:
        dest: the file to write.
        force: whether a file that is there when the block ends is replaced.

    Raises:
        OutputError: for any error of the system, such as a full disk, in the block too, and, without
            force, when `dest` is there.
    """
    with replacing_all([dest], force=force) as (temporary,):
        yield temporary


@contextmanager
def replacing_all(dests: Sequence[Path], *, force: bool) -> Iterator[list[Path]]:
    """As replacing(), for files of one directory that belong together: the first appears last.

    Without force, all of them appear or none. With force, a crash while they get their names can
    leave the last ones new and the first ones old.
    """
    directory = dests[0].parent
    remove_abandoned(directory)
    made: list[tuple[Path, int]] = []
    published: list[Path] = []
    try:
        for _ in dests:
            made.append(_locked(directory))
        yield [temporary for temporary, _ in made]
        for (temporary, fd), dest in reversed(list(zip(made, dests, strict=True))):
            os.fsync(fd)
            _publish(temporary, dest, force)
            published.append(dest)
    except BaseException as error:
        for dest in published if not force else ():
            dest.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, PymixtralError):
            raise _output_error(dests[0], error) from error
        raise
    finally:
        for temporary, fd in made:
            temporary.unlink(missing_ok=True)
            os.close(fd)
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _publish(temporary: Path, dest: Path, force: bool) -> None:
    """Gives the file its name. Without force nothing that has the name is lost, whenever it came."""
    if force:
        temporary.replace(dest)
        return
    try:
        try:
            dest.hardlink_to(temporary)  # fails where the name is taken
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # A file system without hard links: taking the name first is as safe, except that a crash between the two leaves it empty.
            os.close(os.open(dest, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
            temporary.replace(dest)
    except FileExistsError as error:
        raise OutputError(
            f"{dest}: expected a new file, found one that appeared meanwhile: choose another name, or replace it with force=True"
        ) from error


def _output_error(dest: Path, error: OSError) -> OutputError:
    advice = "free some space or choose another place" if error.errno in _FULL else "choose another place"
    found = OutputError(f"{dest}: could not be written ({error.strerror or error}): {advice}")
    found.errno = error.errno
    return found


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
    """Says before the work whether a file can be written.

    Args:
        path: the file to write.
        used: files that are read, or written otherwise, none of which `path` may be.
        force: whether a file that is there may be replaced.

    Raises:
        OutputError: where no file can be written, where one of those `used` is or, written later, will
            be, and, without force, where any is.
    """
    if not path.parent.is_dir():
        raise OutputError(f"{path}: expected a place in a directory, found none: create {path.parent} first")
    if not path.name or path.is_dir():
        raise OutputError(f"{path}: expected the name of a file to write, found a directory: add a name to it")
    if any(_same(path, Path(file)) for file in used):
        raise OutputError(f"{path}: expected a file of its own to write, found one that is read or written otherwise: choose another name")
    if path.exists() and not path.is_file():
        raise OutputError(f"{path}: expected a regular file to write, found something else: choose another name")
    if os.path.lexists(path) and not force:
        raise OutputError(f"{path}: expected a new file, found one that exists: choose another name, or replace it with force=True")


def _same(a: Path, b: Path) -> bool:
    """Whether both are one file, or will be when they are there."""
    return a.samefile(b) if a.exists() and b.exists() else os.path.realpath(a) == os.path.realpath(b)


def check_space(path: Path, n_bytes: int) -> None:
    """Raises OutputError if the disk that `path` will be on has less free, without what killed processes left beside it."""
    remove_abandoned(path.parent)
    free = shutil.disk_usage(path.parent).free
    if free < n_bytes:
        raise OutputError(f"{path}: expected {n_bytes} bytes of free space, found {free}: free some or choose another place")
