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

import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

from pymixtral.arrays import F64
from pymixtral.errors import ModelFileError
from pymixtral.files.atomic import replacing
from pymixtral.files.gguf import GGUFFile
from pymixtral.files.header import Value, quoted
from pymixtral.files.importance import Entry, ImportanceMatrix

DAT_CHUNK = 512
"""Tokens of a chunk, which dat files do not tell: llama.cpp's default."""

_DIGEST = "pymixtral.imatrix.digest"
_MAX_DAT_BYTES = 1 << 32  # that of Mixtral 8x22B takes some 60 MB
_MAX_DAT_ENTRIES = 1 << 16
_MAX_DAT_NAME = 4096
_MAX_I32 = (1 << 31) - 1


def write(matrix: ImportanceMatrix, path: Path) -> None:
    """Writes a file in the gguf format.

    It appears when it is complete, in place of an older one.

    Args:
        matrix: what to write.
        path: the file.

    Raises:
        OutputError: where it cannot be written.
    """
    with replacing(path, force=True) as temporary:
        writer = GGUFWriter(temporary, "imatrix")
        try:
            writer.add_type("imatrix")
            writer.add_array("imatrix.datasets", matrix.datasets or ["unknown"])
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
            if magic != b"GGUF" and size <= _MAX_DAT_BYTES:
                return _Dat(path, magic + file.read()).read()
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror or error}") from error
    with GGUFFile(path) as gguf:
        return _read_gguf(path, gguf)


def _read_gguf(path: Path, file: GGUFFile) -> ImportanceMatrix:
    metadata = file.metadata
    kind = metadata.get("general.type")
    if not isinstance(kind, str) or kind != "imatrix":
        found = quoted(metadata.get("general.architecture") if kind is None else kind)
        raise ModelFileError(f"{path}: expected an importance matrix (general.type 'imatrix'), found {found}")
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

    def __init__(self, path: Path, data: bytes) -> None:
        self.path, self.data, self.pos = path, data, 0

    def read(self) -> ImportanceMatrix:
        result = ImportanceMatrix(n_ctx=DAT_CHUNK)
        n_entries = self.number("number of entries", 1, _MAX_DAT_ENTRIES)
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
