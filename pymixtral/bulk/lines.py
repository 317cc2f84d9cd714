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


def read_lines(path: Path, noun: str, key: str, parse: Callable[[bytes, int, int, str], L]) -> Iterator[L]:
    """Read a file of lines, one at a time. Empty ones are left out, and so is a byte order mark.

    Args:
        path: the file, in UTF-8.
        noun: what a line asks with, such as "prompt".
        key: what the records depend on but for their lines.
        parse: makes a line of its bytes, its number, its index, and a digest of key and bytes.

    Yields:
        The lines, in the order of the file.

    Raises:
        InvalidArgumentError: for a line that is too long or that parse refuses, with the file's name
            and the line's number; and for what is no regular file, as it is read more than once.
        OSError: if it cannot be read.
    """
    index = number = 0
    begun = hashlib.sha256(key.encode("utf-8", "surrogatepass") + b"\0")
    with path.open("rb") as file:
        if not stat.S_ISREG(path.stat().st_mode):
            raise InvalidArgumentError(
                f"{named(path)}: expected a file of {noun}s that can be read twice, found something else: "
                f"save the {noun}s in a file first"
            )
        if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            file.seek(0)
        while data := file.readline(MAX_LINE + 1):
            number += 1
            if data.isspace():
                continue
            try:
                if len(data) > MAX_LINE:
                    raise InvalidArgumentError(
                        f"expected a line of at most {MAX_LINE} bytes, found more: cut the {noun}"
                    )
                digest = begun.copy()
                digest.update(data.strip())
                line = parse(data, number, index, digest.hexdigest()[:32])
            except PymixtralError as error:
                raise InvalidArgumentError(f"{named(path)}, line {number}: {error}") from error
            yield line
            index += 1


def json_line(value: Any) -> str:
    """Make JSON of one line that is safe on a terminal, without an end of line.

    Args:
        value: what JSON can say.
    """
    return escaped_json(json.dumps(value, ensure_ascii=False, allow_nan=False))
