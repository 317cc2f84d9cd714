"""Files of importance matrices, those of llama.cpp too, in both of its formats (little endian).

gguf:
    general.type "imatrix"; imatrix.datasets (strings), imatrix.chunk_count, imatrix.chunk_size; for
    each weight tensor NAME the f32 tensors NAME.in_sum2 [n_matrices, cols], sums of squared inputs,
    and NAME.counts [n_matrices, 1], the tokens that were summed. A merged expert tensor is
    n_matrices = n_experts matrices, any other is one.
dat:
    int32 n_entries; for each: int32 length and bytes of NAME, int32 n_calls, int32 n_values, f32
    [n_values], means times n_calls; then, in later files, int32 chunks, int32 length and bytes of
    the dataset's name. Experts are not counted.

The gguf format is written, with the sums as they are, so that files can be merged.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

from pymixtral.arrays import F64
from pymixtral.errors import InvalidArgumentError, ModelFileError
from pymixtral.files.atomic import Identity, reading_back, replacing
from pymixtral.files.gguf import GGUFFile
from pymixtral.files.header import MAX_NAME_BYTES, MAX_TENSORS, Value, quoted
from pymixtral.files.importance import Entry, ImportanceMatrix

DAT_CHUNK = 512
"""Tokens of a chunk, which dat files do not tell: llama.cpp's default."""

_DIGEST = "pymixtral.imatrix.digest"
MAX_BYTES = 1 << 28
"""Of a file. That of Mixtral 8x22B takes some 60 MB; in memory the numbers take twice that."""

_MAX_DAT_NAME = 63  # ggml's own limit
_MAX_NAME = MAX_NAME_BYTES - len(".in_sum2")
_MAX_I32 = (1 << 31) - 1
_MAX_U32 = (1 << 32) - 1


def write(matrix: ImportanceMatrix, path: Path, *, force: bool, own: Identity | None = None) -> Identity:
    """Writes a file in the gguf format.

    It appears when it is complete and has been read back.

    Args:
        matrix: what to write.
        path: the file.
        force: whether any file that is there is replaced.
        own: one that is replaced without force, too.

    Returns:
        The identity of the file written.

    Raises:
        InvalidArgumentError: numbers or names do not fit the format.
        OutputError: where it cannot be written, or, without force, another file than `own` is there.
    """
    _check_fits(matrix)
    with replacing(path, force=force, own=own) as temporary:
        writer = GGUFWriter(temporary, "imatrix")
        try:
            writer.add_type("imatrix")
            # The name of a text may be no UTF-8.
            datasets = [name.encode("utf-8", "replace").decode() for name in matrix.datasets]
            writer.add_array("imatrix.datasets", datasets or ["unknown"])
            writer.add_uint32("imatrix.chunk_count", matrix.n_windows)
            writer.add_uint32("imatrix.chunk_size", matrix.n_ctx)
            if matrix.digest:
                writer.add_string(_DIGEST, matrix.digest)
            for name, entry in sorted(matrix.entries.items()):
                writer.add_tensor(f"{name}.in_sum2", entry.sums.astype(np.float32))
                writer.add_tensor(f"{name}.counts", entry.counts.astype(np.float32)[:, None])
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
        with reading_back(path, temporary):
            read(temporary)
        written = Identity.of(temporary)
    assert written is not None
    return written


def _check_fits(matrix: ImportanceMatrix) -> None:
    highest = float(np.finfo(np.float32).max)
    for what, n in (("windows", matrix.n_windows), ("tokens of a window", matrix.n_ctx)):
        if n > _MAX_U32:
            raise InvalidArgumentError(f"importance matrix: expected at most {_MAX_U32} {what}, found {n}")
    for name, entry in matrix.entries.items():
        if len(name.encode()) > _MAX_NAME:
            raise InvalidArgumentError(
                f"importance matrix: expected tensor names of at most {_MAX_NAME} bytes, found {quoted(name)}"
            )
        for what, values in (("sums", entry.sums), ("counts", entry.counts)):
            if not values.max() <= highest:
                raise InvalidArgumentError(
                    f"importance matrix: {what} of {quoted(name)}: expected at most {highest:g}, which a float32 "
                    f"holds, found {values.max():g}"
                )


def read(path: str | os.PathLike[str]) -> ImportanceMatrix:
    """Reads a file of either format.

    Args:
        path: the file.

    Returns:
        The matrix, every number of it checked.

    Raises:
        ModelFileError: for a file that is broken, or neither.
    """
    path = Path(path)
    try:
        if not path.is_file():  # before open, which would wait for the writer of a pipe
            path.stat()  # says why, where nothing is there
            raise ModelFileError(f"{path}: expected an importance matrix, found something that is not a regular file")
        with path.open("rb") as file:
            magic = file.read(4)
            size = os.fstat(file.fileno()).st_size
            if magic != b"GGUF" and size <= MAX_BYTES:
                # Mapped, so that nothing is read beyond what is wrong.
                data = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size else b""
                return _Dat(path, data).read()
    except (OSError, ValueError) as error:  # ValueError: a file that shrank since fstat
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ModelFileError(f"{path}: cannot be read: {reason}") from error
    with GGUFFile(path) as gguf:
        return _read_gguf(path, gguf)


def _read_gguf(path: Path, file: GGUFFile) -> ImportanceMatrix:
    metadata = file.metadata
    kind = metadata.get("general.type")
    if not isinstance(kind, str) or kind != "imatrix":
        found = quoted(metadata.get("general.architecture") if kind is None else kind)
        raise ModelFileError(f"{path}: expected an importance matrix (general.type 'imatrix'), found {found}")
    if file.n_bytes > MAX_BYTES:
        raise ModelFileError(f"{path}: expected at most {MAX_BYTES} bytes, found {file.n_bytes}")
    datasets, digest = metadata.get("imatrix.datasets", []), metadata.get(_DIGEST, "")
    if not isinstance(datasets, list) or not all(isinstance(name, str) for name in datasets):
        raise ModelFileError(f"{path}: expected a list of strings as imatrix.datasets, found {quoted(datasets)}")
    if not isinstance(digest, str):
        raise ModelFileError(f"{path}: expected a string as {_DIGEST}, found {quoted(digest)}")
    n_windows, n_ctx = _count(path, metadata, "chunk_count"), _count(path, metadata, "chunk_size")
    result = ImportanceMatrix({}, datasets, n_windows, n_ctx, digest)
    for tensor in file.tensors.values():
        name = tensor.name.removesuffix(".in_sum2")
        if name == tensor.name:
            continue  # .counts belong to a sum; others, such as .in_sum of newer files, are not needed
        counts = file.tensors.get(f"{name}.counts")
        if counts is None:
            raise ModelFileError(
                f"{path}: tensor {quoted(tensor.name)}: expected {quoted(name + '.counts')} too, found none: "
                "the file is incomplete"
            )
        if {tensor.type, counts.type} != {GGMLQuantizationType.F32}:
            raise ModelFileError(
                f"{path}: {quoted(name)}: expected f32 sums and counts, found {tensor.type.name}, {counts.type.name}"
            )
        sums = tensor.data.view("<f4").reshape(-1, tensor.shape[-1]).astype(np.float64)
        n_tokens = counts.data.view("<f4").reshape(-1).astype(np.float64)
        if len(n_tokens) != len(sums):
            raise ModelFileError(
                f"{path}: {quoted(name)}: expected a count for each of {len(sums)} rows of sums, found {len(n_tokens)}"
            )
        result.entries[name] = _checked(path, name, sums, n_tokens)
    if not result.entries:
        raise ModelFileError(f"{path}: expected tensors named *.in_sum2, found none")
    return result


def _count(path: Path, metadata: Mapping[str, Value], key: str) -> int:
    value = metadata.get(f"imatrix.{key}", 0)
    if type(value) is not int or not 0 <= value < 1 << 32:
        raise ModelFileError(f"{path}: expected a whole number as imatrix.{key}, found {quoted(value)}")
    return value


def _checked(path: Path, name: str, sums: F64, counts: F64) -> Entry:
    for what, values in (("sums", sums), ("counts", counts)):
        if not (np.isfinite(values).all() and values.min() >= 0):
            bad = values[~(np.isfinite(values) & (values >= 0))].flat[0]
            raise ModelFileError(f"{path}: {what} of {quoted(name)}: expected numbers of at least 0, found {bad}")
    return Entry(sums, counts)


class _Dat:
    """The bytes of a dat file and a position in them."""

    def __init__(self, path: Path, data: bytes | mmap.mmap) -> None:
        self.path, self.data, self.pos = path, data, 0

    def read(self) -> ImportanceMatrix:
        result = ImportanceMatrix(n_ctx=DAT_CHUNK)
        n_entries = self.number("number of entries", 1, MAX_TENSORS)
        for i in range(n_entries):
            name = self.text(f"name of entry {i}", 1)
            if name in result.entries:
                self.fail(f"entry {i}", f"expected a new name, found {quoted(name)} again")
            n_calls = self.number(f"calls of {quoted(name)}", 0, _MAX_I32)
            n_values = self.number(f"values of {quoted(name)}", 1, _MAX_I32)
            begin = self.take(4 * n_values, f"values of {quoted(name)}")
            values = np.frombuffer(self.data, "<f4", n_values, begin).astype(np.float64)[None]
            entry = _checked(self.path, name, values, np.array([max(n_calls, 1.0)]))
            result.entries[name] = Entry(entry.sums * DAT_CHUNK, entry.counts * DAT_CHUNK)
        if self.pos < len(self.data):
            result.n_windows = self.number("number of chunks", 0, _MAX_I32)
            if self.pos < len(self.data):
                result.datasets.append(self.text("name of the dataset", 0))
        if self.pos < len(self.data):
            self.fail("end", f"expected nothing more, found {len(self.data) - self.pos} bytes")
        return result

    def fail(self, what: str, problem: str) -> NoReturn:
        raise ModelFileError(
            f"{self.path}: {what}, byte {self.pos}: {problem}: is it an importance matrix, gguf or dat, and complete?"
        )

    def take(self, n_bytes: int, what: str) -> int:
        if n_bytes > len(self.data) - self.pos:
            self.fail(what, f"expected {n_bytes} bytes, found {len(self.data) - self.pos}")
        begin, self.pos = self.pos, self.pos + n_bytes
        return begin

    def number(self, what: str, lowest: int, highest: int) -> int:
        value = int(struct.unpack_from("<i", self.data, self.take(4, what))[0])
        if not lowest <= value <= highest:
            self.fail(what, f"expected {lowest} to {highest}, found {value}")
        return value

    def text(self, what: str, lowest: int) -> str:
        n = self.number(f"length of the {what}", lowest, _MAX_DAT_NAME)
        begin = self.take(n, what)
        try:
            return self.data[begin : begin + n].decode("utf-8")
        except UnicodeDecodeError:
            self.fail(what, f"expected UTF-8, found {quoted(self.data[begin : begin + 20])}")
