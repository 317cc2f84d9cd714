"""JSON from strangers, read more strictly than Python does: one object, no name twice, no NaN."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from pymixtral.arguments import shown
from pymixtral.errors import CheckpointError

MAX_FILE_BYTES = 1 << 25
"""Of a side file. The largest, tokenizer.json of vocabularies of 131072 tokens, have some 17 MB."""


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """Parses a JSON object.

    Args:
        data: UTF-8.
        where: its place, for messages.

    Returns:
        The object.

    Raises:
        CheckpointError: it is anything else.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = dict(pairs)
        if len(names) != len(pairs):
            (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
            raise CheckpointError(f"{where}: expected each name of a JSON object once, found {shown(twice)} twice")
        return names

    def refuse(constant: str) -> NoReturn:
        raise CheckpointError(f"{where}: expected JSON, found {constant}")

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{where}: expected UTF-8 text, found byte 0x{data[error.start]:02x} at offset {error.start}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: expected JSON, found none ({error or 'nested too deeply'})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises as read_limited and parse_object do."""
    return parse_object(read_limited(path), str(path))


def read_limited(path: Path, limit: int = MAX_FILE_BYTES) -> bytes:
    """The bytes of a side file.

    Args:
        path: the file.
        limit: its size at most, in bytes.

    Returns:
        Its content.

    Raises:
        CheckpointError: it cannot be read, or is larger.
    """
    try:
        size = path.stat().st_size
        if size > limit:
            raise CheckpointError(f"{path}: expected at most {limit} bytes, found {size}")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
