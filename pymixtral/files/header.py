"""The header of one GGUF file, versions 2 and 3, little endian: strictly read, memory-mapped.

Format: the GGUF specification in ggml (docs/gguf.md). Files come from strangers, so every count, length, dimension and offset is a
Python integer that is compared with the bytes that are there before it is used; nothing in a header can cause an allocation larger
than the bytes it occupies in the file, and no sum or product can wrap.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType
from numpy.typing import NDArray

from pymixtral.errors import ModelFileError, UnsupportedError
from pymixtral.files.types import block_weights, row_bytes

Value = int | float | bool | str | list[str] | NDArray[Any]

# Ceilings far above any real file (the largest headers, with vocabularies of 262144 tokens and their merges, are some 20 MB with
# 780000 strings): they bound the time that a header can take to some hundred milliseconds.
MAX_HEADER_BYTES = 1 << 26
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 16
MAX_STRINGS = 1 << 20
MAX_KEY_BYTES = (1 << 16) - 1
MAX_NAME_BYTES = 63
MAX_DIMS = 4
MAX_ALIGNMENT = 1 << 24

_MIN_KEY_BYTES = 8 + 1 + 4 + 1  # key length, key, value type, smallest value
_MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8  # name length, name, n_dims, one dimension, type, offset

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")

_DTYPES: dict[GGUFValueType, np.dtype[Any]] = {
    GGUFValueType.UINT8: np.dtype("u1"),
    GGUFValueType.INT8: np.dtype("i1"),
    GGUFValueType.UINT16: np.dtype("<u2"),
    GGUFValueType.INT16: np.dtype("<i2"),
    GGUFValueType.UINT32: np.dtype("<u4"),
    GGUFValueType.INT32: np.dtype("<i4"),
    GGUFValueType.FLOAT32: np.dtype("<f4"),
    GGUFValueType.BOOL: np.dtype("u1"),
    GGUFValueType.UINT64: np.dtype("<u8"),
    GGUFValueType.INT64: np.dtype("<i8"),
    GGUFValueType.FLOAT64: np.dtype("<f8"),
}

# Types that once were in files and that ggml has since removed.
_RETIRED_TYPES = {4: "Q4_2", 5: "Q4_3"} | {31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8"}
_RETIRED_TYPES |= {36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8"}


def quoted(value: object) -> str:
    """Something from a file, fit for a message of one line: its repr, shortened, control characters escaped; of an array its length."""
    if isinstance(value, list | np.ndarray):
        return f"an array of {len(value)}"
    shown = repr(value[:81] if isinstance(value, str) else value)
    return shown if len(shown) <= 80 else shown[:77] + "..."


@dataclass(frozen=True, eq=False)
class Tensor:
    """One tensor of a file.

    shape: elements, slowest dimension first (the file's order reversed).
    data: uint8 [*shape[:-1], row_bytes], a read-only view of the mapped file, where row_bytes holds shape[-1] elements of `type`.
    """

    name: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]
    data: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Shard:
    """One file by itself, of `count` that make up the model. header_bytes: before the data, n_bytes: of the file."""

    path: str
    version: int
    alignment: int
    metadata: dict[str, Value]
    encoded: dict[str, memoryview]
    tensors: dict[str, Tensor]
    count: int
    header_bytes: int
    n_bytes: int
    mapped: mmap.mmap


def read_shard(path: str) -> Shard:
    """Reads and checks the header of one file. Raises as GGUFFile (pymixtral.files.gguf) does."""
    header = _Header(path)
    version, n_tensors, n_keys = _read_counts(header)
    metadata, encoded = _read_metadata(header, n_keys)
    alignment = _alignment(header, metadata)
    count = metadata.get("split.count", 1)
    if type(count) is not int:  # bool is an int to Python
        raise ModelFileError(f"{path}: metadata key 'split.count': expected an integer, found {quoted(count)}")
    tensors = _read_tensors(header, n_tensors, alignment)
    return Shard(path, version, alignment, metadata, encoded, tensors, count, header.pos, header.size, header.data)


class _Header:
    """The mapped file and a position in it; whatever is read is first compared with what is left."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.pos = 0
        self.n_strings = 0
        try:
            if not Path(path).is_file():  # before open, which would wait for the writer of a pipe
                Path(path).stat()  # says why, where nothing is there
                raise ModelFileError(f"{path}: expected a GGUF file, found something that is not a regular file")
            with Path(path).open("rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                if self.size == 0:
                    raise ModelFileError(f"{path}: expected a GGUF file, found an empty one")
                self.data = mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path, or a file that shrank since fstat
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise ModelFileError(f"{path}: cannot be opened: {reason}") from error
        self.end = min(self.size, MAX_HEADER_BYTES)

    def fail(self, what: str, pos: int, problem: str) -> NoReturn:
        raise ModelFileError(f"{self.path}: {what} at byte {pos}: {problem}")

    def need(self, n_bytes: int, what: str) -> None:
        left = self.end - self.pos
        if n_bytes > left:
            limit = "are left in the file" if self.end == self.size else f"are left of the {MAX_HEADER_BYTES} that a header may have"
            self.fail(what, self.pos, f"needs {n_bytes} bytes, but {left} {limit}")

    def take(self, n_bytes: int, what: str) -> int:
        """Moves past n_bytes and returns where they begin."""
        self.need(n_bytes, what)
        pos = self.pos
        self.pos = pos + n_bytes
        return pos

    def u32(self, what: str) -> int:
        return int(_U32.unpack_from(self.data, self.take(4, what))[0])

    def u64(self, what: str) -> int:
        return int(_U64.unpack_from(self.data, self.take(8, what))[0])

    def count(self, what: str, min_bytes: int, limit: int) -> int:
        pos = self.pos
        n = self.u64(what)
        if n * min_bytes > self.end - self.pos:
            self.fail(what, pos, f"{n} entries need at least {n * min_bytes} bytes, but {self.end - self.pos} are left")
        if n > limit:
            self.fail(what, pos, f"{n} entries are more than the limit of {limit}")
        return n

    def string(self, what: str, limit: int = MAX_HEADER_BYTES) -> str:
        pos = self.pos
        if pos + 8 > self.end:
            self.need(8, what)
        (n_bytes,) = _U64.unpack_from(self.data, pos)
        begin = pos + 8
        self.pos = begin + n_bytes
        if n_bytes > limit or self.pos > self.end:
            self.pos = begin
            self.need(n_bytes, what)
            self.fail(what, pos, f"{n_bytes} bytes are more than the limit of {limit}")
        try:
            return self.data[begin : self.pos].decode("utf-8")
        except UnicodeDecodeError as error:
            self.fail(what, pos, f"expected UTF-8, found {quoted(self.data[begin : min(self.pos, begin + 20)])} ({error.reason})")

    def numbers(self, kind: GGUFValueType, n: int, what: str) -> NDArray[Any]:
        dtype = _DTYPES[kind]
        pos = self.take(n * dtype.itemsize, what)
        values: NDArray[Any] = np.frombuffer(self.data, dtype, n, pos).copy()  # a view would keep the mapping alive after close()
        if kind == GGUFValueType.BOOL and values.max(initial=0) > 1:
            self.fail(what, pos, f"expected booleans of 0 or 1, found {values.max()}")
        return values.astype(np.bool_) if kind == GGUFValueType.BOOL else values


def _read_counts(header: _Header) -> tuple[int, int, int]:
    """Version, number of tensors, number of metadata keys."""
    magic = header.data[header.take(4, "magic") : 4]
    if magic != b"GGUF":
        header.fail("magic", 0, f"expected b'GGUF', found {magic!r}: this is not a GGUF file")
    version = header.u32("version")
    if version not in (2, 3):
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        if 1 <= swapped <= 0xFFFF:
            header.fail("version", 4, f"the file is big-endian (version {swapped}) but must be little-endian: convert the model again")
        header.fail("version", 4, f"expected 2 or 3, found {version}: convert the model again")
    n_tensors_pos = header.pos
    n_tensors = header.count("number of tensors", _MIN_TENSOR_BYTES, MAX_TENSORS)
    n_keys = header.count("number of metadata keys", _MIN_KEY_BYTES, MAX_KEYS)
    least = n_tensors * _MIN_TENSOR_BYTES + n_keys * _MIN_KEY_BYTES
    if least > header.end - header.pos:
        header.fail(
            "numbers of tensors and metadata keys",
            n_tensors_pos,
            f"{n_tensors} and {n_keys} entries need at least {least} bytes, but {header.end - header.pos} are left",
        )
    return version, n_tensors, n_keys


def _read_metadata(header: _Header, n_keys: int) -> tuple[dict[str, Value], dict[str, memoryview]]:
    """Values, and the bytes that they and their keys are in the file."""
    metadata: dict[str, Value] = {}
    encoded: dict[str, memoryview] = {}
    content = memoryview(header.data)
    for i in range(n_keys):
        pos = header.pos
        key = header.string(f"metadata key {i}", MAX_KEY_BYTES)
        if not key:
            header.fail(f"metadata key {i}", pos, "expected a name, found an empty one")
        if key in metadata:
            header.fail(f"metadata key {quoted(key)}", pos, "the key appears twice")
        metadata[key] = _read_value(header, f"metadata key {quoted(key)}")
        encoded[key] = content[pos : header.pos]
    return metadata, encoded


def _read_kind(header: _Header, what: str) -> GGUFValueType:
    pos = header.pos
    number = header.u32(what)
    try:
        return GGUFValueType(number)
    except ValueError:
        header.fail(what, pos, f"expected a value type of 0 to {max(GGUFValueType).value}, found {number}")


def _read_value(header: _Header, what: str) -> Value:
    kind = _read_kind(header, what)
    if kind == GGUFValueType.STRING:
        return header.string(what)
    if kind != GGUFValueType.ARRAY:
        value: int | float | bool = header.numbers(kind, 1, what)[0].item()
        return value
    pos = header.pos
    kind = _read_kind(header, f"element type of {what}")
    if kind == GGUFValueType.ARRAY:
        header.fail(f"element type of {what}", pos, "expected numbers or strings, found nested arrays")
    if kind != GGUFValueType.STRING:
        n = header.count(f"array of {what}", _DTYPES[kind].itemsize, MAX_HEADER_BYTES)
        return header.numbers(kind, n, f"array of {what}")
    n = header.count(f"array of {what}", 8, MAX_STRINGS - header.n_strings)
    header.n_strings += n
    entry = f"string in {what}"
    return [header.string(entry) for _ in range(n)]


def _alignment(header: _Header, metadata: dict[str, Value]) -> int:
    value = metadata.get("general.alignment", 32)
    # bool is an int to Python
    if type(value) is not int or not 8 <= value <= MAX_ALIGNMENT or value & (value - 1):
        raise ModelFileError(
            f"{header.path}: metadata key 'general.alignment': expected a power of two from 8 to {MAX_ALIGNMENT}, found {quoted(value)}"
        )
    return value


def _read_tensors(header: _Header, n_tensors: int, alignment: int) -> dict[str, Tensor]:
    infos: dict[str, tuple[GGMLQuantizationType, tuple[int, ...], int, int, int]] = {}
    for i in range(n_tensors):
        pos = header.pos
        name = header.string(f"name of tensor {i}", MAX_NAME_BYTES)
        if not name:
            header.fail(f"name of tensor {i}", pos, "expected a name, found an empty one")
        if name in infos:
            header.fail(f"tensor {quoted(name)}", pos, "the name appears twice")
        infos[name] = _read_tensor_info(header, f"tensor {quoted(name)}", alignment)

    begin = -(-header.pos // alignment) * alignment
    extents: list[tuple[int, int, str]] = []
    for name, (_, _, n_bytes, offset, pos) in infos.items():
        if begin + offset + n_bytes > header.size:
            present = max(0, header.size - begin - offset)
            header.fail(
                f"tensor {quoted(name)}",
                pos,
                f"needs {n_bytes} bytes from byte {begin + offset}, but {present} are present in the file of {header.size}: "
                "it is truncated or still downloading",
            )
        extents.append((offset, offset + n_bytes, name))
    extents.sort()
    for (_, end, first), (offset, _, second) in pairwise(extents):
        if offset < end:
            problem = f"its offset {offset} lies inside tensor {quoted(first)}, which ends at offset {end}"
            header.fail(f"tensor {quoted(second)}", infos[second][4], problem)

    tensors = {}
    for name, (kind, shape, n_bytes, offset, _) in infos.items():
        data = np.frombuffer(header.data, np.uint8, n_bytes, begin + offset)
        tensors[name] = Tensor(name, kind, shape, data.reshape(*shape[:-1], n_bytes // prod(shape[:-1])))
    return tensors


def _read_tensor_info(header: _Header, what: str, alignment: int) -> tuple[GGMLQuantizationType, tuple[int, ...], int, int, int]:
    """Type, shape, size in bytes, offset in the data section, and where in the file the description begins."""
    begin = header.pos
    n_dims = header.u32(f"number of dimensions of {what}")
    if not 1 <= n_dims <= MAX_DIMS:
        header.fail(f"number of dimensions of {what}", begin, f"expected 1 to {MAX_DIMS}, found {n_dims}")
    pos = header.pos
    dims = [header.u64(f"dimension {i} of {what}") for i in range(n_dims)]
    if not all(1 <= n < 1 << 63 for n in dims):
        header.fail(f"dimensions of {what}", pos, f"expected each from 1 to 2^63-1, found {dims}")

    type_pos = header.pos
    number = header.u32(f"type of {what}")
    if number in _RETIRED_TYPES:
        raise UnsupportedError(
            f"{header.path}: {what} has type {_RETIRED_TYPES[number]} ({number}), which ggml has retired: convert the model again"
        )
    try:
        kind = GGMLQuantizationType(number)
        block = block_weights(kind)
    except (ValueError, KeyError):
        header.fail(f"type of {what}", type_pos, f"expected a known tensor type, found the number {number}")
    if dims[0] % block:
        header.fail(f"dimensions of {what}", pos, f"expected rows of a multiple of {block} elements for {kind.name}, found {dims[0]}")
    n_bytes = row_bytes(kind, prod(dims))
    if n_bytes > header.size:
        header.fail(f"dimensions of {what}", pos, f"{dims} of {kind.name} need {n_bytes} bytes, but the file has {header.size}")

    offset_pos = header.pos
    offset = header.u64(f"offset of {what}")
    if offset % alignment:
        header.fail(f"offset of {what}", offset_pos, f"expected a multiple of the alignment {alignment}, found {offset}")
    return kind, tuple(reversed(dims)), n_bytes, offset, begin
