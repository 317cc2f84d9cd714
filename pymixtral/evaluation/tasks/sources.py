"""Files of tasks, read with care: JSON, JSON lines, CSV, each perhaps compressed by gzip."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pymixtral.arguments import shown
from pymixtral.errors import InvalidArgumentError
from pymixtral.files.kinds import named

MAX_BYTES = 1 << 30
"""The most bytes of a file, decompressed: above any of these data sets."""


def found(folder: Path, *patterns: str) -> list[Path]:
    """Find files of a task.

    Args:
        folder: the task's folder.
        patterns: names or patterns of names; those of the first that any file fits count.

    Returns:
        The files in the order of their names, at least one.

    Raises:
        InvalidArgumentError: if no file fits.
    """
    for pattern in patterns:
        paths = sorted(path for path in folder.glob(pattern) if path.is_file())
        if paths:
            return paths
    raise InvalidArgumentError(
        f"{named(folder)}: expected a file {' or '.join(patterns)}, found none: put the data there, or name another "
        "folder"
    )


def text_of(path: Path) -> str:
    """Read a file of text in UTF-8, of .gz what it holds.

    Args:
        path: the file.

    Raises:
        InvalidArgumentError: for another encoding, a broken file, or one of more than MAX_BYTES.
        OSError: if it cannot be read.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InvalidArgumentError(f"{named(path)}: expected a file of gzip, found a broken one ({error})") from None
    if len(data) > MAX_BYTES:
        raise InvalidArgumentError(f"{named(path)}: expected at most {MAX_BYTES} bytes, found more: divide the file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(
            f"{named(path)}: expected UTF-8, found the byte 0x{data[error.start]:02x} at offset {error.start}"
        ) from None


def json_of(path: Path) -> Any:
    """Read a file of JSON.

    Raises:
        InvalidArgumentError: for anything else.
        OSError: if it cannot be read.
    """
    return _parsed(text_of(path), named(path))


def records(path: Path, **kinds: type | tuple[type, ...]) -> Iterator[dict[str, Any]]:
    """Read JSON lines, or a JSON list, of objects.

    Args:
        path: the file. Empty lines are left out.
        **kinds: what each object has, and of which type.

    Yields:
        The objects.

    Raises:
        InvalidArgumentError: for anything else; it names the file and the line.
        OSError: if the file cannot be read.
    """
    text = text_of(path)
    if text.lstrip().startswith("["):
        values: Any = _parsed(text, named(path))
        places = [f"{named(path)}, object {i + 1}" for i in range(len(values))]
    else:
        lines = [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
        places = [f"{named(path)}, line {i}" for i, _ in lines]
        values = [_parsed(line, place) for (_, line), place in zip(lines, places, strict=True)]
    for place, value in zip(places, values, strict=True):
        yield checked(value, place, **kinds)


def checked(value: Any, place: str, **kinds: type | tuple[type, ...]) -> dict[str, Any]:
    """Check that a value is an object with fields of these types.

    Raises:
        InvalidArgumentError: if it is not.
    """
    if not isinstance(value, Mapping):
        raise InvalidArgumentError(f"{place}: expected an object of JSON, found {shown(value)}")
    for name, kind in kinds.items():
        if name not in value or not isinstance(value[name], kind):
            wanted = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
            found = shown(value[name]) if name in value else "none"
            raise InvalidArgumentError(f'{place}: expected "{name}" of type {wanted}, found {found}')
    return dict(value)


def rows(path: Path, n_columns: int) -> list[list[str]]:
    """Read CSV.

    Args:
        path: the file.
        n_columns: fields of each row.

    Raises:
        InvalidArgumentError: for rows of another length.
        OSError: if the file cannot be read.
    """
    try:
        read = [row for row in csv.reader(io.StringIO(text_of(path), newline="")) if row]
    except csv.Error as error:
        raise InvalidArgumentError(f"{named(path)}: expected CSV, found an error ({error})") from None
    for i, row in enumerate(read, 1):
        if len(row) != n_columns:
            raise InvalidArgumentError(f"{named(path)}, row {i}: expected {n_columns} fields, found {len(row)}")
    return read


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"{place}: expected JSON, found an error ({shown(str(error))})") from None
