"""A worker of a batch: an actor of Ray that has the model open, and makes the parts of chunks."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from pymixtral.bulk.generate import Bulk
from pymixtral.bulk.lines import read_places
from pymixtral.bulk.records import Record
from pymixtral.cluster.chunks import Chunk, Parts, cut
from pymixtral.errors import InvalidArgumentError, PymixtralError, UnsupportedError
from pymixtral.files.atomic import replacing
from pymixtral.files.kinds import named
from pymixtral.mixtral import Mixtral
from pymixtral.progress import progress_bar


@dataclass(frozen=True)
class Work:
    """What a worker needs to know of its job. It goes to other nodes as a pickle.

    Attributes:
        model: the model file.
        opening: how it is opened: arguments of Mixtral.
        prompts: the file of prompts.
        output: the file of texts, whose name the folder of parts has.
        options: of Mixtral.generate(), for prompts that have none of their own.
        key: what the records depend on but for their lines, as the node that started the job finds it.
        token: of the folder of parts; see Parts.publish().
        n_in_flight: lines of a chunk that the engine has at a time.
        version: that of pymixtral on the node that started the job.
    """

    model: Path
    opening: Mapping[str, Any]
    prompts: Path
    output: Path
    options: Mapping[str, Any]
    key: str
    token: str
    n_in_flight: int
    version: str


class Part(Bulk):
    """The records of a chunk, in a file of its own.

    Args:
        model: generates.
        prompts: the file of all prompts.
        path: the file of the records.
        **options: as Bulk has them.
    """

    def __init__(self, model: Mixtral, prompts: Path, path: Path, **options: Any) -> None:
        super().__init__(model, prompts, path, **options)
        self.key = self._key
        self._bar = progress_bar(shown=False)

    def make(self, chunk: Chunk, n_in_flight: int) -> None:
        """Write the file; it appears when it is complete.

        Args:
            chunk: says which prompts.
            n_in_flight: as of Bulk.run().

        Raises:
            InvalidArgumentError: if the prompts are not those of the chunk.
            OutputError: if the file cannot be written.
        """

        def prompts() -> Iterator[Any]:
            return islice(read_places(self._source, self.noun, self._key, self._parse, chunk.place), chunk.n_lines)

        found = next(cut(prompts(), chunk.n_lines), None)
        if found is None or (found.n_lines, found.digest) != (chunk.n_lines, chunk.digest):
            raise InvalidArgumentError(
                f"{named(self._source)}: expected the prompts from {chunk.place.index} on as they were when the job "
                "began, found others: leave the file as it is, and see that all nodes have the same one"
            )
        self.n_done = chunk.place.index
        with replacing(self._output, force=True) as temporary, temporary.open("wb") as self._file:
            self._answer_all((line for _, line in prompts()), n_in_flight)

    def _write(self, record: Record) -> None:
        self._file.write(record.text.encode("utf-8"))


class Worker:
    """Makes parts; Ray Data calls it with a row for each chunk, of which two may come at a time.

    The model is opened by the first call, so that what is wrong with it becomes an answer.

    Args:
        work: the job.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._parts = Parts(work.output)
        self._opening = threading.Lock()
        self._model: Mixtral | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Make the part of a chunk, unless it is there.

        Args:
            row: the chunk; see Chunk.row().

        Returns:
            "chunk", its number, and "error", a sentence, or nothing.
        """
        chunk = Chunk.of_row(row)
        try:
            self._make(chunk)
        except (PymixtralError, OSError) as error:
            return {"chunk": chunk.number, "error": f"node {socket.gethostname()}: {error}"}
        return {"chunk": chunk.number, "error": ""}

    def _make(self, chunk: Chunk) -> None:
        with self._opening:
            if self._model is None:
                self._model = self._opened()
        if not (self._parts.path / chunk.part).exists():  # else the answer alone was lost
            with self._parts.trying(chunk) as path:
                self._part(self._model, path).make(chunk, self._work.n_in_flight)

    def _opened(self) -> Mixtral:
        """The model, on a node that has what the job needs."""
        work = self._work
        if (found := version("pymixtral")) != work.version:
            raise UnsupportedError(
                f"expected pymixtral {work.version}, as where the job began, found {found}: "
                "install the same one on all nodes"
            )
        if not self._parts.is_shared(work.token):
            raise UnsupportedError(
                f"expected the folder {named(self._parts.path)} of the node where the job began, found another or "
                "none: put prompts, output and model into a folder that all nodes share"
            )
        model = Mixtral(work.model, **work.opening)
        if self._part(model, self._parts.path / "part").key != work.key:
            model.close()
            raise UnsupportedError(
                f"{named(work.model)}: expected the same model, opened in the same way, as where the job began, found "
                "another: put it into a folder that all nodes share"
            )
        return model

    def _part(self, model: Mixtral, path: Path) -> Part:
        return Part(model, self._work.prompts, path, **self._work.options)
