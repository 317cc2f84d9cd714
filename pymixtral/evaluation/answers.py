"""The file of answers: JSON lines that say who was asked what, each answer, and what it is worth.

    {"run": ID, "task": NAME, "settings": {...}, "model": {...}, ...}     begins a run
    {"run": ID, "item": ID, "group": NAME, "marks": {...}, "answer": ...}  an answer of that run
    {"run": ID, "items": N, "seconds": N, "figures": {...}}                what came out

A run is one model's work on one task with one setting, and its ID is a digest of all that. The file
may have several runs. It grows a line at a time, so a program that was killed leaves all lines but
perhaps the last complete, and another one goes on behind them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from pymixtral.errors import InvalidArgumentError, OutputError
from pymixtral.escapes import escaped_json
from pymixtral.evaluation.tasks.task import Answer, Marks
from pymixtral.files.growing import GrowingFile
from pymixtral.files.kinds import named


class Answers:
    """Answers, in a file that others cannot write meanwhile, or in memory alone.

    Args:
        path: the file; None: memory.
        force: empty it. Otherwise what it holds is kept, and not asked again.

    Attributes:
        runs: the first line of each run, by its ID.
        marks: of each answer, by the IDs of run and item.
        groups: of each answer, likewise.
        texts: the answers themselves.

    Raises:
        OutputError: if the file cannot be written, is written by another program, or is none of answers.
    """

    def __init__(self, path: Path | None = None, *, force: bool = False) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.marks: dict[str, dict[str, Marks]] = {}
        self.groups: dict[str, dict[str, str]] = {}
        self.texts: dict[str, dict[str, Answer]] = {}
        self._file: GrowingFile | None = None
        if path is None:
            return
        file = self._file = GrowingFile(path, force=force)
        try:
            with file.reading() as there:
                data = there.read()
            file.cut(self._load(data, path))
        except BaseException as error:
            file.__exit__(type(error), error, error.__traceback__)
            raise

    @classmethod
    def read(cls, path: Path) -> Answers:
        """Read a file of answers.

        Args:
            path: the file; it is not changed.

        Raises:
            InvalidArgumentError: if it holds anything else.
            OSError: if it cannot be read.
        """
        answers = cls()
        try:
            answers._load(path.read_bytes(), path)
        except OutputError as error:
            raise InvalidArgumentError(str(error)) from None
        return answers

    def begin(self, run: str, head: Mapping[str, Any]) -> None:
        """Begin a run, or go on with it.

        Args:
            run: its ID.
            head: what its first line says beside the ID.

        Raises:
            OutputError: if it cannot be written.
        """
        if run not in self.runs:
            self._take({"run": run, **head})
            self._write({"run": run, **head})

    def add(self, run: str, item: str, group: str, marks: Marks, answer: Answer) -> None:
        """Write an answer.

        Args:
            run: the ID of a run that has begun.
            item: the item's ID.
            group: its group.
            marks: what the answer is worth.
            answer: the answer, as JSON has it.

        Raises:
            OutputError: if it cannot be written.
        """
        line = {"run": run, "item": item, "group": group, "marks": dict(marks), "answer": answer}
        self._write(line)
        self._take(line)

    def end(self, run: str, summary: Mapping[str, Any]) -> None:
        """Write what came out of a run.

        Args:
            run: its ID.
            summary: figures and the like.

        Raises:
            OutputError: if it cannot be written.
        """
        self._write({"run": run, **summary})

    def close(self) -> None:
        """Bring everything to the disk, and let others write the file.

        Raises:
            OutputError: if that fails.
        """
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Answers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.__exit__(kind, error, trace)

    # --- Parts ------------------------------------------------------------------------------------

    def _load(self, data: bytes, path: Path) -> int:
        """Takes the lines of a file; gives the end of the last complete one."""
        end = data.rfind(b"\n") + 1
        for i, line in enumerate(data[:end].splitlines(), 1):
            try:
                self._take(_checked(json.loads(line)))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                raise OutputError(_strange(path, i)) from None
        if data[end:] and not (data[end:].startswith(b'{"run": "') or b'{"run": "'.startswith(data[end:])):
            raise OutputError(_strange(path, data[:end].count(b"\n") + 1))
        return end

    def _take(self, line: dict[str, Any]) -> None:
        run = line["run"]
        if "task" in line:
            self.runs[run] = {name: value for name, value in line.items() if name != "run"}
            self.marks[run], self.groups[run], self.texts[run] = {}, {}, {}
        elif "item" in line:
            item = line["item"]
            self.marks[run][item] = dict(line["marks"])
            self.groups[run][item], self.texts[run][item] = line["group"], line["answer"]
        elif "figures" not in line:
            raise KeyError("figures")

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._file.append(escaped_json(json.dumps(line, ensure_ascii=False, allow_nan=False)) + "\n")


def _strange(path: Path, line: int) -> str:
    return (
        f"{named(path)}, line {line}: expected answers of an evaluation, found something else: "
        "choose another name, or replace it with force=True"
    )


_LARGEST = 1e100
"""Above every mark, and below those of which the squares are infinite."""


def _checked(line: dict[str, Any]) -> dict[str, Any]:
    """A line of a file, which anybody may have edited.

    Raises:
        KeyError, TypeError, ValueError: for another one than Answers writes.
    """
    json.dumps(line, allow_nan=False)
    marks: Any = ()
    texts = ["run"]
    if "task" in line:
        texts += ["task"]
    elif "item" in line:
        texts += ["item", "group"]
        marks = line["marks"].values()
    if not all(isinstance(line[name], str) for name in texts):
        raise TypeError
    if not all(isinstance(mark, str) or abs(mark) < _LARGEST for mark in marks):
        raise ValueError
    return line
