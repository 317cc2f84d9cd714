"""A long file of lines, cut into numbered chunks, and the folder where the records of each are a part."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pymixtral.bulk.lines import Line, Place
from pymixtral.errors import NativeError, OutputError, PymixtralError
from pymixtral.files.atomic import replacing
from pymixtral.files.kinds import named

_OURS = re.compile(
    r"part-\d{8,}-[0-9a-f]{32}\.jsonl|tries-\d{8,}|shared-[0-9a-f]+|\.pymixtral-[0-9a-f]{8}-[0-9a-f]{16}\.tmp"
)
"""Names in the folder, the last of them those of parts that are being written; see pymixtral.files.atomic."""

_MOST_TRIES = 8
"""How often the work on a chunk may end without a part, as it does when its worker is killed. So a chunk
that kills its workers ends the job."""

_SECONDS = 90.0
"""How long a file of another node may take to be seen: NFS remembers for a minute what a folder held."""


@dataclass(frozen=True)
class Chunk:
    """Lines that are computed together, and whose records appear together.

    Attributes:
        number: that of the chunk, from 0.
        place: where the first line begins.
        n_lines: lines in it.
        digest: of the heads of their records, which have the digests of the lines, of the options and
            of the model. So a part is the right one if it has the right name.
    """

    number: int
    place: Place
    n_lines: int
    digest: str

    @property
    def part(self) -> str:
        """The name of the file of its records."""
        return f"part-{self.number:08d}-{self.digest}.jsonl"

    @property
    def end(self) -> int:
        """The index of the first line behind it."""
        return self.place.index + self.n_lines

    def row(self) -> dict[str, Any]:
        """Say the same as a row of a table."""
        return {"chunk": self.number, **asdict(self.place), "n_lines": self.n_lines, "digest": self.digest}

    @classmethod
    def of_row(cls, row: dict[str, Any]) -> Chunk:
        """Make the chunk of its row, whose numbers may be NumPy's."""
        place = Place(*(int(row[name]) for name in ("offset", "number", "index")))
        return cls(int(row["chunk"]), place, int(row["n_lines"]), str(row["digest"]))


def cut(lines: Iterable[tuple[Place, Line]], most: int) -> Iterator[Chunk]:
    """Cut lines into chunks.

    Args:
        lines: all of them, with their places, from the first on.
        most: lines of a chunk; the last one may have fewer.

    Yields:
        The chunks, in the order of the lines.
    """
    rest = iter(lines)
    number = 0
    while first := next(rest, None):
        place, line = first
        digest, n = _add(hashlib.sha256(), line), 1
        for _, line in islice(rest, most - 1):
            _add(digest, line)
            n += 1
        yield Chunk(number, place, n, digest.hexdigest()[:32])
        number += 1


def _add(digest: Any, line: Line) -> Any:
    digest.update(line.head.encode("utf-8") + b"\n")
    return digest


class Parts:
    """The folder of the parts of a file of records. All nodes of the cluster must see it.

    Args:
        output: the file of records; the folder stands beside it, and has its name with ".parts".

    Attributes:
        path: the folder.
    """

    def __init__(self, output: Path) -> None:
        self.path = output.with_name(f"{output.name}.parts")

    def make(self) -> None:
        """Make the folder, if it is not there.

        Raises:
            OutputError: if that fails.
        """
        try:
            self.path.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{named(self.path)}: expected to make a folder, found an error ({error.strerror}): "
                "choose another place for the output"
            ) from error

    def names(self) -> set[str]:
        """List the parts that are there; those of other prompts, options or models may be among them."""
        with suppress(FileNotFoundError):
            return {path.name for path in self.path.iterdir() if path.name.startswith("part-")}
        return set()

    def remove(self) -> None:
        """Remove what belongs to a job, and the folder, unless something else is in it."""
        with suppress(FileNotFoundError):
            for path in list(self.path.iterdir()):
                if _OURS.fullmatch(path.name):
                    path.unlink(missing_ok=True)
        with suppress(OSError):
            self.path.rmdir()

    def publish(self, token: str) -> None:
        """Write a file by which another node knows this folder, and forget the tries of earlier jobs.

        Args:
            token: hexadecimal digits that no other job has.

        Raises:
            OutputError: if it cannot be written.
        """
        with suppress(FileNotFoundError):
            for path in list(self.path.iterdir()):
                if _OURS.fullmatch(path.name) and path.name.startswith(("tries-", "shared-")):
                    path.unlink(missing_ok=True)
        with replacing(self.path / f"shared-{token}", force=True):
            pass

    def is_shared(self, token: str) -> bool:
        """Say whether this is the folder in which publish() was called, perhaps on another node."""
        return _seen(self.path / f"shared-{token}")

    @contextmanager
    def trying(self, chunk: Chunk) -> Iterator[Path]:
        """Count a try to make a part: `with parts.trying(chunk) as path:`. Only what ends the process counts.

        Args:
            chunk: says which part.

        Yields:
            The path of the part.

        Raises:
            NativeError: if there were too many.
            OSError: if the folder cannot be written.
        """
        path = self.path / f"tries-{chunk.number:08d}"
        with path.open("ab") as tries:
            if tries.tell() >= _MOST_TRIES:
                raise NativeError(
                    f"expected workers to survive the prompts from {chunk.place.index} to {chunk.end - 1}, found that "
                    f"{_MOST_TRIES} were killed: look for a lack of memory, or ask for fewer texts at a time"
                )
            tries.write(b".")
        try:
            yield self.path / chunk.part
        finally:
            with suppress(FileNotFoundError):
                path.unlink()

    def lines(self, chunk: Chunk) -> Generator[bytes, None, None]:
        """Read the records of a chunk, whose part was written here or on another node.

        Args:
            chunk: see above.

        Yields:
            Each line with its end.

        Raises:
            OutputError: if the part is not there, or cannot be read.
        """
        path = self.path / chunk.part
        if not _seen(path):
            raise OutputError(
                f"{named(path)}: expected a part that another node has written, found none: "
                "put the output into a folder that all nodes share"
            )
        if not path.is_file():
            raise OutputError(f"{named(path)}: expected a file of records, found something else: remove it")
        try:
            with path.open("rb") as file:
                yield from file
        except PymixtralError:
            raise
        except OSError as error:
            raise OutputError(f"{named(path)}: expected to read it, found an error ({error.strerror})") from error


def _seen(path: Path) -> bool:
    """Whether a file is there, or comes in the time that a shared folder may take."""
    deadline = time.monotonic() + _SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        with suppress(OSError):
            list(path.parent.iterdir())  # makes NFS look again
        time.sleep(0.2)
    return True
