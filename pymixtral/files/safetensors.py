"""A strict reader of safetensors files.

Format: https://github.com/huggingface/safetensors, section "Format". The file is 8 bytes of
little-endian header length, a JSON header, and the tensors' bytes. All of it is checked before a
byte of data is used: what this reader accepts covers the file exactly once, without holes or
overlaps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pymixtral.arguments import shown
from pymixtral.errors import CheckpointError
from pymixtral.files.kinds import HEAD_BYTES, found_instead
from pymixtral.files.places import check_place
from pymixtral.files.stored import SourceFile, StoredTensor, Type
from pymixtral.files.strict_json import parse_object
from pymixtral.files.types import FLOAT_TYPES, row_bytes

MAX_HEADER_BYTES = 1 << 24
"""Far above any real file: a Mixtral 8x22B in one file would have 200 kB."""

DTYPES: Mapping[str, Type] = {kind.name: kind for kind in FLOAT_TYPES}
"""The format's names of the types that weights may have."""


def read_safetensors(
    path: Path,
    types_of: Callable[[str], Mapping[str, Type]] | None = None,
    advice: Callable[[str, Mapping[str, Any]], str] | None = None,
) -> dict[str, StoredTensor]:
    """Opens a file.

    Args:
        path: the file.
        types_of: says of a tensor's name which types it may have: the format's names, with GGUF's types of the
            same size; None: DTYPES.
        advice: makes the end of the message about a tensor of another type, of its name and the file's
            header; None: there is none.

    Returns:
        All tensors by name; their data is read when it is asked for.

    Raises:
        CheckpointError: the file cannot be read or breaks the format; the message has the file, the
            tensor and the rule.
    """
    check_place(path)
    file = SourceFile(path)
    head = file.read(min(file.size, HEAD_BYTES), 0)
    looks_right = head[8:9] == b"{"
    if not looks_right and (found := found_instead(path, head)):
        raise CheckpointError(f"{path}: expected safetensors, found {found}")
    if file.size < 10:
        raise CheckpointError(
            f"{path}: expected at least 10 bytes (8 of header length, and '{{}}'), found {file.size} bytes: "
            "is it safetensors?"
        )
    n_header = int.from_bytes(head[:8], "little")
    if not 2 <= n_header <= MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{path}: header length at offset 0: expected 2 to {MAX_HEADER_BYTES}, found {n_header}: is it safetensors?"
        )
    if n_header > file.size - 8:
        raise CheckpointError(
            f"{path}: header at offset 8: expected {n_header} bytes, found {file.size - 8}: the file is truncated"
        )
    header = parse_object(file.read(n_header, 8), f"{path}: header")
    header.pop("__metadata__", None)
    start = 8 + n_header
    entries: dict[str, _Entry] = {}
    for name, value in header.items():
        types = types_of(name) if types_of else DTYPES
        entries[name] = _entry(path, name, value, types, lambda name: advice(name, header) if advice else "")
    _check_cover(path, entries, file.size - start)
    return {name: StoredTensor(file, entry.type, entry.shape, start + entry.begin) for name, entry in entries.items()}


@dataclass(frozen=True)
class _Entry:
    type: Type
    shape: tuple[int, ...]
    begin: int
    end: int


def _entry(path: Path, name: str, value: Any, types: Mapping[str, Type], advice: Callable[[str], str]) -> _Entry:
    where = f"{path}: tensor {shown(name)}"
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where}: expected an object of dtype, shape and data_offsets, found {shown(value)}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in types:
        *others, last = types
        expected = f"{', '.join(others)} or {last}" if others else last
        raise CheckpointError(f"{where}: dtype: expected {expected}, found {shown(dtype)}{advice(name)}")
    if not _natural_numbers(shape) or len(shape) > 8:
        raise CheckpointError(f"{where}: shape: expected a list of at most 8 whole numbers, found {shown(shape)}")
    if not _natural_numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{where}: data_offsets: expected [begin, end] with begin <= end, found {shown(offsets)}")
    needed = row_bytes(types[dtype], math.prod(shape))
    if offsets[1] - offsets[0] != needed:
        raise CheckpointError(
            f"{where}: data_offsets: expected the {needed} bytes that shape {shown(shape)} in {dtype} takes, "
            f"found {offsets}, which hold {offsets[1] - offsets[0]}"
        )
    return _Entry(types[dtype], tuple(shape), offsets[0], offsets[1])


def _natural_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _check_cover(path: Path, entries: dict[str, _Entry], available: int) -> None:
    """Tensors in order of offset must follow one another from 0 to the end of the file."""
    expected = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != expected:
            fault = "overlaps the one before" if entry.begin < expected else "leaves a hole before it"
            raise CheckpointError(
                f"{path}: tensor {shown(name)}: data_offsets: expected {expected} as the first, "
                f"found {entry.begin}: it {fault}"
            )
        if entry.end > available:
            raise CheckpointError(
                f"{path}: tensor {shown(name)}: data_offsets: expected to end within {available} bytes of data, "
                f"found {entry.end}: the file is truncated"
            )
        expected = entry.end
    if expected != available:
        raise CheckpointError(
            f"{path}: expected tensors that cover {available} bytes of data, found that they cover {expected}: "
            "the rest belongs to none"
        )
