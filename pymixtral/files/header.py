"""The header of one GGUF file, version 2 or 3, little endian.

Format: the GGUF specification in ggml, docs/gguf.md. Files come from strangers. Every count,
length, dimension and offset is a Python integer, so no sum or product can wrap, and it is compared
with the bytes of the file before it is used. Nothing in a header can cause an allocation larger
than the bytes that it takes in the file.
"""

from __future__ import annotations

import errno
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

from pymixtral.arguments import shown
from pymixtral.errors import ModelFileError, NativeError, UnsupportedError
from pymixtral.files.identity import Identity, identity
from pymixtral.files.kinds import HEAD_BYTES, directory_instead, found_instead, named, part_of
from pymixtral.files.types import block_weights, row_bytes

Value = int | float | bool | str | list[str] | NDArray[Any]

# Limits above any real file, which bound the time that a header can take to some hundred
# milliseconds. The largest real headers, with vocabularies of 262144 tokens and their merges, have
# some 20 MB with 780000 strings; the largest models have some thousand keys and tensors.
MAX_HEADER_BYTES = 1 << 26
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 16
MAX_STRINGS = 1 << 20
MAX_KEY_BYTES = (1 << 16) - 1  # the specification's
MAX_NAME_BYTES = 63  # ggml's GGML_MAX_NAME, 64, without the NUL at the end
MAX_DIMS = 4  # ggml's GGML_MAX_DIMS
MAX_ALIGNMENT = 1 << 24  # files have 32, seldom 64 or the 4096 of a page

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

# Types of old files, which ggml has removed since.
_RETIRED_TYPES = {4: "Q4_2", 5: "Q4_3"} | {31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8"}
_RETIRED_TYPES |= {36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8"}


def quoted(value: object) -> str:
    """Show a value of a file in a message of one line.

    Args:
        value: a metadata value, or a name.

    Returns:
        Its repr, cut to 80 characters and without control characters; only the length of an array.
    """
    if isinstance(value, list | np.ndarray):
        return f"an array of {value.size if isinstance(value, np.ndarray) else len(value)}"
    return shown(value[:81] if isinstance(value, str) else value)


@dataclass(frozen=True, eq=False)
class Tensor:
    """One tensor of a file.

    Attributes:
        name: the tensor's name.
        type: the type of its elements.
        shape: numbers of elements, slowest dimension first, which reverses the file's order.
        data: uint8 [*shape[:-1], row_bytes], a read-only view of the mapped file. A row of
            row_bytes bytes holds shape[-1] elements.
    """

    name: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]
    data: NDArray[np.uint8]


@dataclass(frozen=True)
class Place:
    """Where a file has a tensor, as its header says.

    Attributes:
        type: the type of its elements.
        shape: numbers of elements, slowest dimension first.
        offset: of its first byte in the file.
        n_bytes: bytes of all elements.
    """

    type: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    n_bytes: int

    def tensor(self, name: str, mapped: mmap.mmap) -> Tensor:
        """The tensor in the mapped file.

        Args:
            name: the tensor's name.
            mapped: the file.
        """
        data = np.frombuffer(mapped, np.uint8, self.n_bytes, self.offset)
        rows = self.shape[:-1]
        return Tensor(name, self.type, self.shape, data.reshape(*rows, self.n_bytes // prod(rows)))


@dataclass(frozen=True, eq=False)
class Shard:
    """One file of a model, which may have several.

    Attributes:
        path: the file.
        version: of GGUF, 2 or 3.
        alignment: of each tensor's offset, in bytes.
        metadata: key to value.
        encoded: key to the bytes of its name, type and value in the file.
        places: name of each tensor to where it is, in the file's order.
        count: number of files of the model.
        header_bytes: bytes before the tensors' data.
        n_bytes: bytes of the file.
        identity: of the file when it was opened.
        mapped: the mapped file; None: it was read.
    """

    path: str
    version: int
    alignment: int
    metadata: dict[str, Value]
    encoded: dict[str, memoryview]
    places: dict[str, Place]
    count: int
    header_bytes: int
    n_bytes: int
    identity: Identity
    mapped: mmap.mmap | None


def read_shard(path: str, *, mapped: bool = True) -> Shard:
    """Read and check the header of one file.

    Args:
        path: a GGUF file.
        mapped: map the file. Else its first MAX_HEADER_BYTES are read: whatever becomes of the file then,
            this process goes on.

    Returns:
        The file's metadata, and where its tensors are.

    Raises:
        ModelFileError: for a file that cannot be opened or breaks the format.
        UnsupportedError: for a tensor type that ggml has retired.
    """
    header = _Header(path, mapped)
    version, n_tensors, n_keys = _read_counts(header)
    metadata, encoded = _read_metadata(header, n_keys)
    alignment = _alignment(header, metadata)
    count = metadata.get("split.count", 1)
    if type(count) is not int:  # bool is an int to Python
        raise ModelFileError(f"{path}: metadata key 'split.count': expected an integer, found {quoted(count)}")
    places = _read_places(header, n_tensors, alignment)
    if not mapped:  # views would keep all that was read, which of many shards is much
        encoded = {key: memoryview(bytes(view)) for key, view in encoded.items()}
    return Shard(
        path,
        version,
        alignment,
        metadata,
        encoded,
        places,
        count,
        header.pos,
        header.size,
        header.identity,
        header.data if isinstance(header.data, mmap.mmap) else None,
    )


_LIMITS = {errno.ENOMEM: "ulimit -v", errno.EMFILE: "ulimit -n", errno.ENFILE: "sysctl fs.file-max"}
"""Errors of opening that are no fault of the file, and what shows and raises the limit."""


class _Header:
    """The file, mapped or its first bytes, and a position in it. Each read first checks how many bytes are left."""

    def __init__(self, path: str, mapped: bool) -> None:
        self.path = path
        self.pos = 0
        self.n_strings = 0
        try:
            if Path(path).is_dir():
                raise ModelFileError(f"{path}: expected a GGUF file, found {directory_instead(Path(path))}")
            if not Path(path).is_file():  # before open, which would wait for the writer of a pipe
                Path(path).stat()  # raises the reason if nothing is there
                raise ModelFileError(
                    f"{path}: expected a GGUF file, found something that is not a regular file: check the path"
                )
            with Path(path).open("rb") as file:
                status = os.fstat(file.fileno())
                self.size, self.identity = status.st_size, identity(status)
                if self.size == 0:
                    raise ModelFileError(f"{path}: expected a GGUF file, found an empty file: get it again")
                self.data: mmap.mmap | bytes
                if mapped:
                    self.data = mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_READ)
                else:
                    wanted = min(self.size, MAX_HEADER_BYTES)
                    self.data = file.read(wanted)
                    if len(self.data) < wanted:  # it shrank since fstat
                        self.size = len(self.data)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path, or a file that shrank since fstat
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            if isinstance(error, OSError) and error.errno in _LIMITS:
                raise NativeError(
                    f"{named(Path(path))}: expected room for one more file, found an error ({reason}): "
                    f"raise the limit (`{_LIMITS[error.errno]}`)"
                ) from error
            raise ModelFileError(
                f"{named(Path(path))}: expected a file that can be opened, found an error ({reason}): check the path"
            ) from error
        self.end = min(self.size, MAX_HEADER_BYTES)

    def fail(
        self, what: str, pos: int, expected: object, found: object, do: str = "get or convert the file again"
    ) -> NoReturn:
        raise ModelFileError(f"{self.path}: {what} at byte {pos}: expected {expected}, found {found}: {do}")

    def fail_twice(self, what: str, pos: int) -> NoReturn:
        self.fail(what, pos, "a name of its own", "one that appears twice")

    def need(self, n_bytes: int, what: str) -> None:
        left = self.end - self.pos
        if n_bytes > left:
            limit = "in the file" if self.end == self.size else f"of the {MAX_HEADER_BYTES} that a header may have"
            self.fail(what, self.pos, f"{n_bytes} bytes", f"{left} left {limit}")

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
            self.fail(what, pos, f"at least {n * min_bytes} bytes for {n} entries", f"{self.end - self.pos} left")
        if n > limit:
            self.fail(what, pos, f"at most {limit} entries", n)
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
            self.fail(what, pos, f"at most {limit} bytes", n_bytes)
        try:
            return self.data[begin : self.pos].decode("utf-8")
        except UnicodeDecodeError as error:
            found = quoted(self.data[begin : min(self.pos, begin + 20)])
            self.fail(what, pos, "UTF-8", f"{found} ({error.reason})")

    def numbers(self, kind: GGUFValueType, n: int, what: str) -> NDArray[Any]:
        dtype = _DTYPES[kind]
        pos = self.take(n * dtype.itemsize, what)
        values: NDArray[Any] = np.frombuffer(
            self.data, dtype, n, pos
        ).copy()  # a view would keep the mapping alive after close()
        if kind == GGUFValueType.BOOL and values.max(initial=0) > 1:
            self.fail(what, pos, "booleans of 0 or 1", values.max())
        return values.astype(np.bool_) if kind == GGUFValueType.BOOL else values


def _read_counts(header: _Header) -> tuple[int, int, int]:
    """Version, number of tensors, number of metadata keys."""
    magic = header.data[header.take(4, "magic") : 4]
    if magic != b"GGUF":
        if found := found_instead(Path(header.path), header.data[:HEAD_BYTES]):
            raise ModelFileError(f"{header.path}: expected a GGUF file, found {found}")
        header.fail("magic", 0, b"GGUF", magic, "this is not a GGUF file, choose another")
    version = header.u32("version")
    if version not in (2, 3):
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        if 1 <= swapped <= 0xFFFF:
            header.fail(
                "version", 4, "a little-endian file", f"a big-endian (version {swapped}) one", "convert it again"
            )
        header.fail("version", 4, "2 or 3", version, "convert it again")
    n_tensors_pos = header.pos
    n_tensors = header.count("number of tensors", _MIN_TENSOR_BYTES, MAX_TENSORS)
    n_keys = header.count("number of metadata keys", _MIN_KEY_BYTES, MAX_KEYS)
    least = n_tensors * _MIN_TENSOR_BYTES + n_keys * _MIN_KEY_BYTES
    if least > header.end - header.pos:
        header.fail(
            "numbers of tensors and metadata keys",
            n_tensors_pos,
            f"at least {least} bytes for {n_tensors} and {n_keys} entries",
            f"{header.end - header.pos} left",
        )
    return version, n_tensors, n_keys


def _read_metadata(header: _Header, n_keys: int) -> tuple[dict[str, Value], dict[str, memoryview]]:
    """Key to value, and key to the bytes of both in the file."""
    metadata: dict[str, Value] = {}
    encoded: dict[str, memoryview] = {}
    content = memoryview(header.data)
    for i in range(n_keys):
        pos = header.pos
        key = header.string(f"metadata key {i}", MAX_KEY_BYTES)
        if not key:
            header.fail(f"metadata key {i}", pos, "a name", "an empty one")
        if key in metadata:
            header.fail_twice(f"metadata key {quoted(key)}", pos)
        metadata[key] = _read_value(header, f"metadata key {quoted(key)}")
        encoded[key] = content[pos : header.pos]
    return metadata, encoded


def _read_kind(header: _Header, what: str) -> GGUFValueType:
    pos = header.pos
    number = header.u32(what)
    try:
        return GGUFValueType(number)
    except ValueError:
        header.fail(what, pos, f"a value type of 0 to {max(GGUFValueType).value}", number)


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
        header.fail(f"element type of {what}", pos, "numbers or strings", "nested arrays")
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
            f"{header.path}: metadata key 'general.alignment': expected a power of two from 8 to {MAX_ALIGNMENT}, "
            f"found {quoted(value)}: convert it again"
        )
    return value


def _read_places(header: _Header, n_tensors: int, alignment: int) -> dict[str, Place]:
    infos: dict[str, tuple[GGMLQuantizationType, tuple[int, ...], int, int, int]] = {}
    for i in range(n_tensors):
        pos = header.pos
        name = header.string(f"name of tensor {i}", MAX_NAME_BYTES)
        if not name:
            header.fail(f"name of tensor {i}", pos, "a name", "an empty one")
        if name in infos:
            header.fail_twice(f"tensor {quoted(name)}", pos)
        infos[name] = _read_tensor_info(header, f"tensor {quoted(name)}", alignment)

    begin = -(-header.pos // alignment) * alignment
    extents: list[tuple[int, int, str]] = []
    for name, (_, _, n_bytes, offset, pos) in infos.items():
        if begin + offset + n_bytes > header.size:
            present = max(0, header.size - begin - offset)
            header.fail(
                f"tensor {quoted(name)}",
                pos,
                f"{n_bytes} bytes from byte {begin + offset}",
                f"{present} in the file of {header.size}",
                part_of(Path(header.path)) or "it is truncated or still downloading, get it again",
            )
        extents.append((offset, offset + n_bytes, name))
    extents.sort()
    for (_, end, first), (offset, _, second) in pairwise(extents):
        if offset < end:
            expected = f"an offset of at least {end}, where tensor {quoted(first)} ends"
            header.fail(f"tensor {quoted(second)}", infos[second][4], expected, f"{offset} inside it")

    return {
        name: Place(kind, shape, begin + offset, n_bytes) for name, (kind, shape, n_bytes, offset, _) in infos.items()
    }


def _read_tensor_info(
    header: _Header, what: str, alignment: int
) -> tuple[GGMLQuantizationType, tuple[int, ...], int, int, int]:
    """Type, shape, bytes, offset in the data, and the byte of the file where this entry begins."""
    begin = header.pos
    n_dims = header.u32(f"number of dimensions of {what}")
    if not 1 <= n_dims <= MAX_DIMS:
        header.fail(f"number of dimensions of {what}", begin, f"1 to {MAX_DIMS}", n_dims)
    pos = header.pos
    dims = [header.u64(f"dimension {i} of {what}") for i in range(n_dims)]
    if not all(1 <= n < 1 << 63 for n in dims):
        header.fail(f"dimensions of {what}", pos, "each from 1 to 2^63-1", dims)

    type_pos = header.pos
    number = header.u32(f"type of {what}")
    if number in _RETIRED_TYPES:
        raise UnsupportedError(
            f"{header.path}: {what}: expected a type that ggml has, "
            f"found {_RETIRED_TYPES[number]} ({number}), which it has retired: convert the model again"
        )
    try:
        kind = GGMLQuantizationType(number)
        block = block_weights(kind)
    except (ValueError, KeyError):
        header.fail(f"type of {what}", type_pos, "a known tensor type", f"the number {number}")
    if dims[0] % block:
        header.fail(
            f"dimensions of {what}",
            pos,
            f"rows of a multiple of {block} elements for {kind.name}",
            dims[0],
        )
    n_bytes = row_bytes(kind, prod(dims))
    if n_bytes > header.size:
        header.fail(
            f"dimensions of {what}",
            pos,
            f"at most the {header.size} bytes of the file",
            f"{dims} of {kind.name}, which take {n_bytes} bytes",
        )

    offset_pos = header.pos
    offset = header.u64(f"offset of {what}")
    if offset % alignment:
        header.fail(f"offset of {what}", offset_pos, f"a multiple of the alignment {alignment}", offset)
    return kind, tuple(reversed(dims)), n_bytes, offset, begin
