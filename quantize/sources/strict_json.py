"""JSON from strangers: one object, no duplicate names, no NaN, nothing that Python's parser would let through quietly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from pymixtral.errors import CheckpointError

MAX_FILE_BYTES = 100_000_000


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """The JSON object in `data` (UTF-8); `where` names its place in the CheckpointError raised for anything else."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = dict(pairs)
        if len(names) != len(pairs):
            seen: set[str] = set()
            twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise CheckpointError(f"{where}: the name {shown(twice)} occurs twice in one JSON object; expected it once")
        return names

    def refuse(constant: str) -> NoReturn:
        raise CheckpointError(f"{where}: {constant} is no JSON number")

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{where}: expected UTF-8 text, found byte 0x{data[error.start]:02x} at offset {error.start}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: invalid JSON ({error or 'nested too deeply'})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of at most 100 MB. Raises CheckpointError."""
    data = read_limited(path)
    return parse_object(data, str(path))


def read_limited(path: Path) -> bytes:
    """The bytes of a side file of at most 100 MB. Raises CheckpointError when it cannot be read or is larger."""
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise CheckpointError(f"{path}: {size} bytes; at most {MAX_FILE_BYTES} make sense for this file")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None


def shown(value: object) -> str:
    """A value from a file as an error message shows it: quoted, escaped, at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
