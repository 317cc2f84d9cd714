"""The file of texts: JSON lines that belong to the lines of a file of prompts.

It grows a record at a time, so a program that was killed leaves all records but perhaps the last
complete, and another run goes on behind them.
"""

from __future__ import annotations

from collections.abc import Iterator

from pymixtral.bulk.prompts import Prompt
from pymixtral.errors import OutputError
from pymixtral.files.growing import GrowingFile
from pymixtral.files.kinds import named

_PIECE = 1 << 20
"""Bytes of a record that are looked at at once, behind its head."""


class Records(GrowingFile):
    """A file of texts; see GrowingFile. skip() comes before the first append()."""

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
        with self.reading() as file:
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
        self.cut(end)
        return n, n_failed

    def _strange(self, line: int, prompt: Prompt | None) -> str:
        wanted = f"the text of prompt {prompt.index}" if prompt else "no more texts than prompts"
        return (
            f"{named(self.path)}, line {line}: expected {wanted}, found something else: it is not of the same model, "
            "prompts and options; choose another name, or replace it with force=True"
        )


def _begins(piece: bytes, head: bytes) -> bool:
    """Whether an incomplete line is the beginning of a record."""
    return piece.startswith(head) or head.startswith(piece)
