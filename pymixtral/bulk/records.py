"""The file of texts: JSON lines that belong to the lines of a file of prompts.

It grows a record at a time, so a program that was killed leaves all records but perhaps the last
complete, and another run goes on behind them.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from pymixtral.bulk.prompts import Prompt
from pymixtral.errors import OutputError, PymixtralError
from pymixtral.files.kinds import named

_PIECE = 1 << 20
"""Bytes of a record that are looked at at once, behind its head."""


class Records:
    """A file of texts that is open for writing, and locked against other programs that write it.

    Args:
        path: the file; it is made if it is not there.
        force: empty it.

    Raises:
        OutputError: if it cannot be written, or another program writes it.
    """

    def __init__(self, path: Path, *, force: bool) -> None:
        self._path = path
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
                f"{named(self._path)}: expected a file that nobody else writes, found that another program does: "
                "wait for its end, or choose another name"
            ) from None
        except OSError as error:  # a file system without locks
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise OutputError(f"{named(self._path)}: expected to lock it, found an error ({error})") from error

    def skip(self, prompts: Iterator[Prompt]) -> tuple[int, int]:
        """Find the records that are there, and drop a last one that is incomplete.

        Args:
            prompts: the prompts from the first on.

        Returns:
            How many records there are, and how many of them are errors.

        Raises:
            OutputError: if the file holds anything but the records of these prompts.
        """
        n, n_failed, end = 0, 0, 0
        with self._errors(), os.fdopen(os.dup(self._file.fileno()), "rb") as file:
            file.seek(0)
            while True:
                prompt = next(prompts, None)
                head = prompt.head.encode() if prompt else b""
                last = piece = file.readline(len(head) + _PIECE)
                if not piece:
                    break
                while not last.endswith(b"\n") and (more := file.readline(_PIECE)):
                    last = last[-1:] + more
                complete = last.endswith(b"}\n")
                if not prompt or (
                    not piece.startswith(head + b", ") if complete else last[-1:] == b"\n" or not _begins(piece, head)
                ):
                    raise OutputError(self._strange(n + 1, prompt))
                if not complete:
                    break
                n, end = n + 1, file.tell()
                n_failed += piece.startswith(head + b', "error": ')
            self._file.truncate(end)
            self._file.seek(end)
        return n, n_failed

    def append(self, record: str) -> None:
        """Write records.

        Args:
            record: lines with their ends.

        Raises:
            OutputError: if the disk is full, and the like. What was written in part is dropped by
                the next skip().
        """
        data = memoryview(record.encode("utf-8"))
        with self._errors():
            while data:
                data = data[self._file.write(data) :]

    def close(self) -> None:
        """Bring everything to the disk, and let others write the file.

        Raises:
            OutputError: if that fails.
        """
        with self._errors(), self._file:
            os.fsync(self._file.fileno())

    def __enter__(self) -> Records:
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
                f"{named(self._path)}: expected to write it, found an error ({error.strerror}): "
                "free some space or choose another place, then go on with the same command"
            ) from error

    def _strange(self, line: int, prompt: Prompt | None) -> str:
        wanted = f"the text of prompt {prompt.index}" if prompt else "no more texts than prompts"
        return (
            f"{named(self._path)}, line {line}: expected {wanted}, found something else: it is not of the same model, "
            "prompts and options; choose another name, or replace it with force=True"
        )


def _begins(piece: bytes, head: bytes) -> bool:
    """Whether an incomplete line is the beginning of a record."""
    return piece.startswith(head) or head.startswith(piece)
