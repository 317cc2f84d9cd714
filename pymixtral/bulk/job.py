"""A file of lines becomes a file of records, which another run goes on with."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import ClassVar, Generic

from pymixtral.arguments import integer
from pymixtral.bulk.lines import L, Place, read_lines, read_places
from pymixtral.bulk.records import Record, Records
from pymixtral.engine.adapters import identity
from pymixtral.files.atomic import check_dest
from pymixtral.files.gguf import GGUFFile
from pymixtral.mixtral import Mixtral
from pymixtral.progress import progress_bar


class Job(ABC, Generic[L]):
    """A file of lines, and the file that their records are written into.

    A record that the output has is not computed again, so the same call goes on where an earlier one
    ended, even by SIGKILL. A subclass says what a line is, and makes its record.

    Args:
        model: answers.
        source: the file of lines.
        output: the file of records. It grows a record at a time, in the order of the lines.
        force: begin anew, whatever the output holds.
        key: what the records depend on but for their lines and the model.

    Attributes:
        noun: what a line asks with.
        n_lines: lines in the file; 0 before check().
        n_done: lines that have a record in the output.
        n_resumed: those of them that another run has made.
        n_failed: those of them that are errors.
        n_tokens: tokens generated in this run, as far as the records count them.
        seconds: time of this run.

    Raises:
        OutputError: if the output is one of the files that are read, or cannot be written.
    """

    noun: ClassVar[str]

    def __init__(self, model: Mixtral, source: Path, output: Path, *, force: bool, key: str = "") -> None:
        loaded = model.core.factory.adapters
        with GGUFFile(model.path) as file:  # all shards
            check_dest(output, [source, *file.paths, *(one.source for one in loaded.named.values())], force=True)
        self._source, self._output, self._force = source, output, force
        state = (model.path.name, model.path.stat().st_size, model.n_ctx, model.kv_type, model.config)
        if loaded.named:
            key = f" {loaded.digests()} {identity(loaded.chosen(None))}{key}"
        self._key = f"{state}{key}"
        self.n_lines = self.n_done = self.n_resumed = self.n_failed = self.n_tokens = 0
        self.seconds = 0.0

    def check(self) -> None:
        """Check all lines, but for what only computing tells, such as how long a prompt is.

        Raises:
            InvalidArgumentError: for a line that is not right; it names the file and the line.
            OSError: if the file cannot be read.
        """
        self.n_lines = sum(1 for _ in self._checked())

    def _checked(self) -> Iterator[tuple[Place, L]]:
        """Checks the lines one after the other; see check()."""
        known: dict[str, int] = {}

        def checked(data: bytes, number: int, index: int, digest: str) -> L:
            line = self._parse(data, number, index, digest)
            self._check(line, known)
            return line

        return read_places(self._source, self.noun, self._key, checked)

    def run(self, n_in_flight: int = 32, *, progress: bool = True) -> None:
        """Make the records that the output does not have. An exception, such as KeyboardInterrupt,
        leaves those that are complete.

        An error of one line, such as a prompt that is too long, becomes a record with "error", and
        the others go on.

        Args:
            n_in_flight: how many lines the engine has at a time; with twice the most that it computes
                together there is always one that waits.
            progress: show a bar where standard error is a terminal.

        Raises:
            InvalidArgumentError: as check(), which comes first.
            OutputError: if the output cannot be written, or holds something else.
            ModelFileError: if the model's file was shortened while in use.
            ClosedError: if the model is closed.
        """
        n_in_flight = integer("n_in_flight", n_in_flight, 1)
        if not self.n_lines:
            self.check()
        self._begin = time.perf_counter()
        with Records(self._output, force=self._force) as self._records:
            self.n_resumed, self.n_failed = self._records.skip(self._read(), self.noun)
            self.n_done = self.n_resumed
            unit = f" {self.noun}s"
            with progress_bar(total=self.n_lines, initial=self.n_done, unit=unit, shown=progress) as self._bar:
                self._answer_all(islice(self._read(), self.n_done, None), n_in_flight)

    def _read(self) -> Iterator[L]:
        return read_lines(self._source, self.noun, self._key, self._parse)

    def _write(self, record: Record) -> None:
        """Takes the records, in the order of the lines."""
        self._records.append(record.text)
        self.n_done += 1
        self.n_failed += record.failed
        self.n_tokens += record.n_tokens
        self.seconds = time.perf_counter() - self._begin
        self._bar.update()

    # --- What a subclass says ---------------------------------------------------------------------

    @abstractmethod
    def _parse(self, data: bytes, number: int, index: int, digest: str) -> L:
        """Makes a line of its bytes; see read_lines()."""

    @abstractmethod
    def _check(self, line: L, known: dict[str, int]) -> None:
        """Refuses a line that is not right; `known` is what it notes of the lines before."""

    @abstractmethod
    def _answer_all(self, lines: Iterator[L], n_in_flight: int) -> None:
        """Writes a record of each line."""
