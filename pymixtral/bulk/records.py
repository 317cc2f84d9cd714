"""The file of records: JSON lines that belong to the lines of another file.

It grows a record at a time, so a program that was killed leaves all records but perhaps the last
complete, and another run goes on behind them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pymixtral.bulk.lines import Line, json_line
from pymixtral.errors import OutputError
from pymixtral.files.growing import GrowingFile
from pymixtral.files.kinds import named

_PIECE = 1 << 20
"""Bytes of a record that are looked at at once, behind its head."""


class Record:
    """What is written for a line.

    Args:
        line: the line.
        fields: what stands behind its head. Those of a failure have an "error", which is put first:
            so another run knows it without reading all of it.
        failed: whether it is a failure.
        n_tokens: tokens generated for it.

    Attributes:
        index: that of the line.
        text: JSON in one line, with its end.
        failed: see above.
        n_tokens: see above.
    """

    def __init__(self, line: Line, fields: dict[str, Any], *, failed: bool = False, n_tokens: int = 0) -> None:
        ordered = {"error": fields["error"], **fields} if failed else fields
        self.index, self.failed, self.n_tokens = line.index, failed, n_tokens
        self.text = f"{line.head}, {json_line(ordered)[1:]}\n"


class Records(GrowingFile):
    """A file of records; see GrowingFile. skip() comes before the first append()."""

    def skip(self, lines: Iterator[Line], noun: str) -> tuple[int, int]:
        """Find the records that are there, and drop a last one that is incomplete.

        Args:
            lines: the lines from the first on.
            noun: what a line asks with, such as "prompt".

        Returns:
            How many records there are, and how many of them are errors.

        Raises:
            OutputError: if the file holds anything but the records of these lines.
        """
        n, n_failed, end = 0, 0, 0
        with self.reading() as file:
            while True:
                line = next(lines, None)
                head = line.head.encode() if line else b""
                last = piece = file.readline(len(head) + _PIECE)
                if not piece:
                    break
                while not last.endswith(b"\n") and (more := file.readline(_PIECE)):
                    last = last[-1:] + more
                complete = last.endswith(b"}\n")
                if not line or (
                    not piece.startswith(head + b", ") if complete else last[-1:] == b"\n" or not _begins(piece, head)
                ):
                    wanted = f"the record of {noun} {line.index}" if line else f"no more records than {noun}s"
                    raise OutputError(
                        f"{named(self.path)}, line {n + 1}: expected {wanted}, found something else: it is not of the "
                        f"same model, {noun}s and options; choose another name, or replace it with force=True"
                    )
                if not complete:
                    break
                n, end = n + 1, file.tell()
                n_failed += piece.startswith(head + b', "error": ')
        self.cut(end)
        return n, n_failed


def _begins(piece: bytes, head: bytes) -> bool:
    """Whether an incomplete line is the beginning of a record."""
    return piece.startswith(head) or head.startswith(piece)
