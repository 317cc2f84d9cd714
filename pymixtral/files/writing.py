"""What comes before the data in a GGUF file that is written: metadata, and the names, shapes, types and offsets of the tensors."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_VERSION = 3


@dataclass(frozen=True)
class TensorInfo:
    """shape: slowest dimension first. type: GGUF's number. n_bytes: of its data, which are written in the order of the tensors, each padded
    to the alignment."""

    name: str
    shape: tuple[int, ...]
    type: int
    n_bytes: int


def encode_header(keys: Sequence[bytes], tensors: Iterable[TensorInfo], alignment: int) -> bytes:
    """The file without its data, padded. keys: each with its type and value."""
    infos, offset = [], 0
    for tensor in tensors:
        n_dims = len(tensor.shape)
        infos.append(encode_string(tensor.name) + struct.pack(f"<I{n_dims}QIQ", n_dims, *reversed(tensor.shape), tensor.type, offset))
        offset += tensor.n_bytes + -tensor.n_bytes % alignment
    header = b"GGUF" + struct.pack("<IQQ", _VERSION, len(infos), len(keys)) + b"".join([*keys, *infos])
    return header + bytes(-len(header) % alignment)


def encode_string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
