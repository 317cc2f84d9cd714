"""Atomic writing: a file appears under its name when it is complete, or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pymixtral.errors import OutputError, PymixtralError
from pymixtral.files.kinds import named

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)
_PREFIX = f".pymixtral-{zlib.crc32(os.uname().nodename.encode()):08x}-"
"""Begins the names of temporary files. It has a hash of the machine's name, because machines that
share a disk may not see each other's locks."""


@dataclass(frozen=True)
class Identity:
    """Tells a file from one that took its name later, and from itself with other content.

    Attributes:
        device: the file system's number.
        inode: the file's number there.
        n_bytes: its size.
        changed: when its content was last written, in nanoseconds.
    """

    device: int
    inode: int
    n_bytes: int
    changed: int

    @classmethod
    def of(cls, path: Path) -> Identity | None:
        """The identity of the file that has a name now; None where there is none.

        Raises:
            OutputError: the system refuses to look.
        """
        try:
            with _output_errors(path):
                found = path.stat()
        except OutputError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


@contextmanager
def replacing(dest: Path, *, force: bool, own: Identity | None = None) -> Iterator[Path]:
    """Write a file through a temporary file beside it.

    The temporary file becomes `dest` when the block succeeds, and is removed when it fails. After a
    crash at any moment `dest` is absent, old or complete. The next call removes what a killed
    process left in the directory.

    Args:
        dest: the file to write.
        force: whether a file of this name is replaced.
        own: one that is replaced without force too: what the caller wrote or read there before.

    Yields:
        The temporary file, empty.

    Raises:
        OutputError: for any error of the system, such as a full disk, even one raised in the block;
            and, without force, if another file than `own` is there when the block ends.
    """
    with replacing_all([dest], force=force, own=own) as (temporary,):
        yield temporary


@contextmanager
def reading_back(dest: Path, temporary: Path) -> Iterator[None]:
    """Read a finished temporary file as `dest` will be read, before it gets that name.

    Args:
        dest: the file to write.
        temporary: its content, complete.

    Raises:
        OutputError: where the block raises what a reader raises.
    """
    try:
        yield
    except PymixtralError as error:
        problem = str(error).removeprefix(f"{temporary}: ").replace(str(temporary), "it")
        raise OutputError(
            f"{dest}: expected to write a file that can be read again, found one that cannot, and dropped it: {problem}"
        ) from error


@contextmanager
def replacing_all(dests: Sequence[Path], *, force: bool, own: Identity | None = None) -> Iterator[list[Path]]:
    """Write several files of one directory that belong together, as replacing() writes one.

    The first file appears last. Without force, all files appear or none. With force, a crash while
    they get their names can leave the last ones new and the first ones old.

    Args:
        dests: the files to write, all in one directory.
        force: whether files of these names are replaced.
        own: as of replacing().

    Yields:
        The temporary files, empty, in the same order.

    Raises:
        OutputError: as replacing() does.
    """
    directory = dests[0].parent
    with _output_errors(dests[0]):
        remove_abandoned(directory)
        for dest in dests:
            with suppress(OSError):  # a name that can be, whatever is there
                dest.lstat()
    temporaries: list[Path] = []  # named before they are there, so that no interrupt leaves one behind
    fds: list[int] = []
    published: list[Path] = []
    try:
        while len(fds) < len(dests):
            temporaries.append(directory / f"{_PREFIX}{secrets.token_hex(8)}.tmp")
            fd = _locked(temporaries[-1])
            if fd is None:
                temporaries.pop()
            else:
                fds.append(fd)
        yield list(temporaries)
        for temporary, fd, dest in reversed(list(zip(temporaries, fds, dests, strict=True))):
            os.fsync(fd)
            # A file could still come between this comparison and the renaming: Unix has no call for
            # both.
            _publish(temporary, dest, force or (own is not None and own == Identity.of(dest)))
            published.append(dest)
    except BaseException as error:
        for dest in published if not force else ():
            dest.unlink(missing_ok=True)
        if isinstance(error, OSError):
            with _output_errors(dests[0]):
                raise
        raise
    finally:
        try:
            for temporary in temporaries:
                with suppress(OSError):  # published, or never made
                    temporary.unlink()
        except BaseException:  # an interrupt of the cleaning up itself
            for temporary in temporaries:
                with suppress(OSError):
                    temporary.unlink()
            raise
        finally:
            for fd in fds:
                os.close(fd)
    # The files are there. Not every file system has this for directories, and not everybody who may
    # write in one may read it.
    with suppress(OSError):
        fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _publish(temporary: Path, dest: Path, force: bool) -> None:
    """Gives the file its name. Without force it never replaces a file, however late that came."""
    if force:
        temporary.replace(dest)
        return
    try:
        try:
            dest.hardlink_to(temporary)  # fails if the name is taken
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # A file system without hard links. Taking the name first is as safe, except that a
            # crash between the two steps leaves an empty file.
            os.close(os.open(dest, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
            temporary.replace(dest)
    except FileExistsError as error:
        found = OutputError(
            f"{dest}: expected a new file, found one that appeared meanwhile: "
            "choose another name, or replace it with force=True"
        )
        found.errno = errno.EEXIST
        raise found from error


@contextmanager
def _output_errors(dest: Path) -> Iterator[None]:
    """Raises an error of the system in the block as an OutputError that names the file to write.

    So is a ValueError: of Python, for a name with a NUL or half a surrogate pair.
    """
    try:
        yield
    except PymixtralError:  # OutputError is an OSError too
        raise
    except (OSError, ValueError) as error:
        number, reason = (error.errno, error.strerror) if isinstance(error, OSError) else (None, None)
        advice = "free some space or choose another place" if number in _FULL else "choose another place"
        found = OutputError(f"{named(dest)}: expected to write it, found an error ({reason or error}): {advice}")
        found.errno = number
        raise found from error


def remove_abandoned(directory: Path) -> None:
    """Remove the temporary files of dead processes of this machine.

    A process locks its temporary files, and the system drops a lock when the process ends.

    Args:
        directory: the directory to clean; nothing happens if it cannot be listed.
    """
    with suppress(OSError):  # a directory that cannot be listed
        for path in [entry for entry in directory.iterdir() if entry.name.startswith(_PREFIX)]:
            with suppress(OSError):  # locked, gone meanwhile, or another user's
                fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
                finally:
                    os.close(fd)


def _locked(path: Path) -> int | None:
    """Create a file and lock it.

    Returns:
        Its descriptor, which holds the lock; None where another process removed the file before it
        was locked.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    with suppress(OSError):  # a file system without locks, where no process can remove files as abandoned
        fcntl.flock(fd, fcntl.LOCK_EX)
    if os.fstat(fd).st_nlink:
        return fd
    os.close(fd)
    return None


def check_dest(path: Path, used: Iterable[str | os.PathLike[str]], force: bool) -> None:
    """Check, before the work begins, that a file can be written.

    Args:
        path: the file to write.
        used: files that are read or written otherwise. `path` must be none of them.
        force: whether an existing file may be replaced.

    Raises:
        OutputError: if no file can be written there, if `path` is or will be one of those `used`,
            and, without force, if it exists.
    """
    with _output_errors(path):
        _check_dest(path, used, force)


def _check_dest(path: Path, used: Iterable[str | os.PathLike[str]], force: bool) -> None:
    with suppress(FileNotFoundError, NotADirectoryError):
        path.lstat()  # raises where the name cannot be, or is not to be looked at
    if not path.parent.is_dir():
        raise OutputError(
            f"{named(path)}: expected a place in a directory, found none: create {named(path.parent)} first"
        )
    if not path.name or path.is_dir():
        raise OutputError(f"{named(path)}: expected the name of a file to write, found a directory: add a name to it")
    if any(_same(path, Path(file)) for file in used):
        raise OutputError(
            f"{named(path)}: expected a file of its own to write, found one that is read or written otherwise: "
            "choose another name"
        )
    if path.exists() and not path.is_file():
        raise OutputError(f"{named(path)}: expected a regular file to write, found something else: choose another name")
    if os.path.lexists(path) and not force:
        raise OutputError(
            f"{named(path)}: expected a new file, found one that exists: choose another name, or "
            "replace it with force=True"
        )


def _same(a: Path, b: Path) -> bool:
    """Whether two paths are one file, or will be once it is written."""
    return a.samefile(b) if a.exists() and b.exists() else os.path.realpath(a) == os.path.realpath(b)


def check_space(path: Path, n_bytes: int) -> None:
    """Check that the disk has space for a file, after removing abandoned temporary files.

    Args:
        path: the file to write.
        n_bytes: its size.

    Raises:
        OutputError: if less is free.
    """
    with _output_errors(path):
        remove_abandoned(path.parent)
        free = shutil.disk_usage(path.parent).free
    if free < n_bytes:
        raise OutputError(
            f"{named(path)}: expected {n_bytes} bytes of free space, found {free}: free some or choose another place"
        )
