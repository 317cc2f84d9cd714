"""The part before the data of a GGUF file that is written.

It holds the metadata, and the names, shapes, types and offsets of the tensors.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_VERSION = 3


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of a tensor.

    Attributes:
        name: the tensor's name.
        shape: slowest dimension first.
        type: GGUF's number.
        n_bytes: of its data. Data is written in the order of the tensors, each padded to the
            alignment.
    """

    name: str
    shape: tuple[int, ...]
    type: int
    n_bytes: int


def encode_header(keys: Sequence[bytes], tensors: Iterable[TensorInfo], alignment: int) -> bytes:
    """The file without its data, padded.

    Args:
        keys: each metadata key with its type and value.
        tensors: in the order of their data.
        alignment: of the data of each tensor, in bytes.

    Returns:
        The bytes of the header.
    """
    infos, offset = [], 0
    for tensor in tensors:
        n_dims = len(tensor.shape)
        numbers = struct.pack(f"<I{n_dims}QIQ", n_dims, *reversed(tensor.shape), tensor.type, offset)
        infos.append(encode_string(tensor.name) + numbers)
        offset += tensor.n_bytes + padding(tensor.n_bytes, alignment)
    header = b"GGUF" + struct.pack("<IQQ", _VERSION, len(infos), len(keys)) + b"".join([*keys, *infos])
    return header + bytes(padding(len(header), alignment))


def encode_string(text: str) -> bytes:
    """A string as GGUF has it: its length and its UTF-8."""
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def padding(n_bytes: int, alignment: int) -> int:
    """How many bytes follow n_bytes so that the next ones are aligned."""
    return -n_bytes % alignment
