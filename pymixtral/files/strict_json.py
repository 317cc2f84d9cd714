"""JSON from strangers, read more strictly than Python does: one object, no name twice, no NaN."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from pymixtral.arguments import shown
from pymixtral.errors import CheckpointError
from pymixtral.files.kinds import HEAD_BYTES, found_instead
from pymixtral.files.places import check_place

MAX_FILE_BYTES = 1 << 25
"""Of a side file. The largest, tokenizer.json of vocabularies of 131072 tokens, have some 17 MB."""

MAX_VALUES = 1 << 18
"""Of JSON. A Mixtral 8x22B's header has 20000. A value of three bytes in a file can take 100 bytes
of memory, an object of one entry 250."""

MAX_TOKENIZER_VALUES = 1 << 21
"""Of tokenizer.json and tekken.json. Those of vocabularies of 131072 tokens have a million."""


def parse_object(data: bytes, where: str, max_values: int = MAX_VALUES) -> dict[str, Any]:
    """Parses a JSON object.

    Args:
        data: UTF-8.
        where: its place, for messages.
        max_values: how many values it may have.

    Returns:
        The object.

    Raises:
        CheckpointError: it is anything else.
    """
    n_values = sum(map(data.count, (b",", b"{", b"[")))  # those in texts too
    if n_values > max_values:
        raise CheckpointError(f"{where}: expected JSON of at most {max_values} values, found {n_values}")

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
    max_values = MAX_TOKENIZER_VALUES if path.name in ("tokenizer.json", "tekken.json") else MAX_VALUES
    return parse_object(read_limited(path), str(path), max_values)


def read_limited(path: Path, limit: int = MAX_FILE_BYTES) -> bytes:
    """The bytes of a side file.

    Args:
        path: the file.
        limit: its size at most, in bytes.

    Returns:
        Its content.

    Raises:
        CheckpointError: it cannot be read, lies outside the checkpoint, is too large, or is
            something else in its place, such as a pointer of git-lfs.
    """
    check_place(path)
    try:
        size = path.stat().st_size
        if size > limit:
            raise CheckpointError(f"{path}: expected at most {limit} bytes, found {size}")
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    head = data[:HEAD_BYTES]
    if not head.lstrip().startswith(b"{") and (found := found_instead(path, head)):
        raise CheckpointError(f"{path}: expected a file of the checkpoint, found {found}")
    return data
