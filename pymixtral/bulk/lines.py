"""A file of JSON lines: each asks for something, and gets a record in another file."""

from __future__ import annotations

import codecs
import hashlib
import json
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pymixtral.bulk import parquet
from pymixtral.errors import InvalidArgumentError, PymixtralError
from pymixtral.escapes import escaped_json
from pymixtral.files.kinds import named

MAX_LINE = 1 << 24
"""Bytes of a line: above any prompt that a context holds."""


@dataclass(frozen=True)
class Line:
    """A line; each kind of file has a class of its own.

    Attributes:
        number: its number in the file, from 1.
        index: its number among those that are not empty, from 0.
        head: how its record begins, as JSON without the closing brace; no other line has the same.
    """

    number: int
    index: int
    head: str


L = TypeVar("L", bound=Line)


@dataclass(frozen=True)
class Place:
    """Where in a file a line begins: what somebody needs who reads from there on.

    Attributes:
        offset: bytes before it, or rows before it in a Parquet file.
        number: lines before it.
        index: those of them that are not empty.
    """

    offset: int = 0
    number: int = 0
    index: int = 0


def read_lines(path: Path, noun: str, key: str, parse: Callable[[bytes, int, int, str], L]) -> Iterator[L]:
    """Read a file of lines, one at a time. Empty ones are left out, and so is a byte order mark.

    Args:
        path: the file: JSON lines in UTF-8, or Parquet, whose rows are such lines.
        noun: what a line asks with, such as "prompt".
        key: what the records depend on but for their lines.
        parse: makes a line of its bytes, its number, its index, and a digest of key and bytes.

    Yields:
        The lines, in the order of the file.

    Raises:
        InvalidArgumentError: for a line that is too long or that parse refuses, with the file's name
            and the line's number; and for what is no regular file, as it is read more than once.
        UnsupportedError: for a Parquet file without pyarrow.
        OSError: if it cannot be read.
    """
    return (line for _, line in read_places(path, noun, key, parse))


def read_places(
    path: Path, noun: str, key: str, parse: Callable[[bytes, int, int, str], L], start: Place = Place()
) -> Iterator[tuple[Place, L]]:
    """Read lines as read_lines() does, with the place of each.

    Args:
        path: see read_lines().
        noun: see read_lines().
        key: see read_lines().
        parse: see read_lines().
        start: the place of the first line to read; it comes from a call of this function.

    Yields:
        The places and lines.
    """
    index = start.index
    begun = hashlib.sha256(key.encode("utf-8", "surrogatepass") + b"\0")
    if not stat.S_ISREG(path.stat().st_mode):
        raise InvalidArgumentError(
            f"{named(path)}: expected a file of {noun}s that can be read twice, found something else: "
            f"save the {noun}s in a file first"
        )
    read, unit = (parquet.rows, "row") if parquet.is_parquet(path) else (_text_lines, "line")
    number = start.number
    lines = read(path, start.offset)
    while True:
        number += 1
        try:
            offset, data = next(lines, (0, b""))
            if not data:
                break
            if data.isspace():
                continue
            if len(data) > MAX_LINE:
                raise InvalidArgumentError(f"expected a line of at most {MAX_LINE} bytes, found more: cut the {noun}")
            digest = begun.copy()
            digest.update(data.strip())
            line = parse(data, number, index, digest.hexdigest()[:32])
        except PymixtralError as error:
            raise InvalidArgumentError(f"{named(path)}, {unit} {number}: {error}") from error
        yield Place(offset, number - 1, index), line
        index += 1


def _text_lines(path: Path, offset: int) -> Iterator[tuple[int, bytes]]:
    """The lines from an offset on, each with its own."""
    with path.open("rb") as file:
        file.seek(offset)
        if offset == 0 and file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            file.seek(0)
        offset = file.tell()
        while data := file.readline(MAX_LINE + 1):
            yield offset, data
            offset += len(data)


def json_line(value: Any) -> str:
    """Make JSON of one line that is safe on a terminal, without an end of line.

    Args:
        value: what JSON can say.
    """
    return escaped_json(json.dumps(value, ensure_ascii=False, allow_nan=False))
