"""Files that grow line by line while a program works, and that no other program writes meanwhile.

A program that was killed leaves all lines but perhaps the last complete, so that another one can go
on behind them.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

from pymixtral.errors import OutputError, PymixtralError
from pymixtral.files.kinds import named

if TYPE_CHECKING:
    from typing_extensions import Self


class GrowingFile:
    """A file that is open for writing, and locked against other programs that write it.

    Args:
        path: the file; it is made if it is not there.
        force: empty it.

    Attributes:
        path: see above.

    Raises:
        OutputError: if it cannot be written, or another program writes it.
    """

    def __init__(self, path: Path, *, force: bool = False) -> None:
        self.path = path
        with self._errors():
            self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b", buffering=0)
        try:
            self._lock()
            if force:
                with self._errors():
                    self._file.truncate(0)
        except BaseException:
            self._file.close()
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                f"{named(self.path)}: expected a file that nobody else writes, found that another program does: "
                "wait for its end, or choose another name"
            ) from None
        except OSError as error:  # a file system without locks
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise OutputError(f"{named(self.path)}: expected to lock it, found an error ({error})") from error

    @contextmanager
    def reading(self) -> Iterator[BinaryIO]:
        """Read what is there: `with file.reading() as there:`. The stream stands at the beginning.

        Raises:
            OutputError: if it cannot be read.
        """
        with self._errors(), os.fdopen(os.dup(self._file.fileno()), "rb") as there:
            there.seek(0)
            yield there

    def cut(self, n_bytes: int) -> None:
        """Drop what stands behind, such as half a line, and go on there.

        Args:
            n_bytes: how many stay.

        Raises:
            OutputError: if that fails.
        """
        with self._errors():
            self._file.truncate(n_bytes)
            self._file.seek(n_bytes)

    def append(self, text: str) -> None:
        """Write lines.

        Args:
            text: lines with their ends.

        Raises:
            OutputError: if the disk is full, and the like. A part may have been written.
        """
        data = memoryview(text.encode("utf-8"))
        with self._errors():
            while data:
                data = data[self._file.write(data) :]

    def sync(self) -> None:
        """Bring everything to the disk.

        Raises:
            OutputError: if that fails.
        """
        with self._errors():
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Bring everything to the disk, and let others write the file.

        Raises:
            OutputError: if that fails.
        """
        with self._errors(), self._file:
            os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            return self.close()
        with suppress(OutputError):  # the first error counts
            self.close()
        return None

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except PymixtralError:
            raise
        except OSError as error:
            raise OutputError(
                f"{named(self.path)}: expected to write it, found an error ({error.strerror}): "
                "free some space or choose another place, then go on with the same command"
            ) from error
