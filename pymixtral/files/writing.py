"""The header of a GGUF file to write: metadata, and names, shapes, types and offsets of tensors.

Format: the GGUF specification in ggml, docs/gguf.md.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_VERSION = 3


@dataclass(frozen=True)
class TensorInfo:
    """A tensor to write.

    Attributes:
        name: the tensor's name.
        shape: numbers of elements, slowest dimension first.
        type: GGUF's number of the type.
        n_bytes: bytes of its data. The data follow the header in the order of the tensors, each
            padded to the alignment.
    """

    name: str
    shape: tuple[int, ...]
    type: int
    n_bytes: int


def encode_header(keys: Sequence[bytes], tensors: Iterable[TensorInfo], alignment: int) -> bytes:
    """Encode everything that comes before the data.

    Args:
        keys: the metadata, each entry a key with its type and value, encoded.
        tensors: the tensors, in the order of their data.
        alignment: alignment of the data of each tensor, in bytes.

    Returns:
        The header, padded to the alignment.
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
    """Encode a string as GGUF has it: its length in bytes as uint64, then its UTF-8.

    Args:
        text: the string.

    Returns:
        The bytes.
    """
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def padding(n_bytes: int, alignment: int) -> int:
    """Count the bytes of padding after some data.

    Args:
        n_bytes: bytes of data, which begin aligned.
        alignment: in bytes.

    Returns:
        How many bytes to add so that the next data are aligned.
    """
    return -n_bytes % alignment
