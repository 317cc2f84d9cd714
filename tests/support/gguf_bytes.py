"""GGUF files byte by byte, also such as no writer makes, and how the reader refuses them."""

from __future__ import annotations

import struct
import time
import tracemalloc
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType, GGUFValueType

from pymixtral.errors import ModelFileError, PymixtralError
from pymixtral.files.gguf import GGUFFile

V = GGUFValueType
F32, Q8_0 = int(GGMLQuantizationType.F32), int(GGMLQuantizationType.Q8_0)


def u32(n: int) -> bytes:
    return struct.pack("<I", n)


def u64(n: int) -> bytes:
    return struct.pack("<Q", n)


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return u64(len(data)) + data


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return string(name) + u32(kind) + value


def tensor(name: str | bytes, dims: list[int], kind: int, offset: int, n_dims: int | None = None) -> bytes:
    return (
        string(name) + u32(len(dims) if n_dims is None else n_dims) + b"".join(map(u64, dims)) + u32(kind) + u64(offset)
    )


def build(
    keys: list[bytes], tensors: list[bytes], data: bytes = b"", *, version: int = 3, alignment: int = 32
) -> bytes:
    header = b"GGUF" + u32(version) + u64(len(tensors)) + u64(len(keys)) + b"".join(keys) + b"".join(tensors)
    return header + bytes(-len(header) % alignment if tensors else 0) + data


def refused(path: Path, *words: str, error: type[PymixtralError] = ModelFileError) -> None:
    """Opening fails with `error`, in one line that names the file and holds `words`, soon and in
    little memory.
    """
    tracemalloc.start()
    begin = time.perf_counter()
    try:
        with pytest.raises(error) as caught:
            GGUFFile(path)
        seconds = time.perf_counter() - begin
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message) < len(str(path)) + 400
    for word in words:
        assert word in message
    assert seconds < 2
    assert peak < path.stat().st_size + (1 << 20)
