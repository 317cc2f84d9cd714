"""Importance matrices: how large the inputs of each weight matrix were, column by column, on a calibration text.

The quantizer gives columns with larger inputs smaller errors. pymixtral.evaluation.calibration measures a matrix, read() also takes those
of llama.cpp, in both of its formats (little endian):

    gguf    general.type "imatrix"; imatrix.datasets (strings), imatrix.chunk_count, imatrix.chunk_size; for each weight tensor NAME the
            f32 tensors NAME.in_sum2 [n_matrices, cols], sums of squared inputs, and NAME.counts [n_matrices, 1], the tokens summed.
            A merged expert tensor is n_matrices = n_experts matrices, any other is one.
    dat     int32 n_entries; for each: int32 length and bytes of NAME, int32 n_calls, int32 n_values, f32 [n_values], means times n_calls;
            then, in later ones, int32 chunks, int32 length and bytes of the dataset's name. Experts are not counted, those that were
            not seen have the same number everywhere.

write() makes the gguf form, with the sums as they are, so that files can be merged; what makes weights of them is importance().
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

from pymixtral.arrays import F32, F64
from pymixtral.errors import InvalidArgumentError, ModelFileError
from pymixtral.files.atomic import replacing
from pymixtral.files.gguf import GGUFFile
from pymixtral.files.header import Value, quoted

PRIOR_TOKENS = 32
"""What the layer's mean counts beside an expert's own tokens: one seen 32 times is half itself, one seen 3200 times 99%."""

HARDLY_SEEN = 8 * PRIOR_TOKENS
"""Experts with fewer tokens are reported: the layer's mean is more than a ninth of their importance."""

FLOOR = 1e-4
"""The least importance of a column, as a part of its matrix's mean: what was silent on the calibration text may speak on another."""

DAT_CHUNK = 512  # tokens of a chunk, which dat files do not tell: llama.cpp's default

_DIGEST = "pymixtral.imatrix.digest"
_MAX_DAT_BYTES = 1 << 32
_MAX_DAT_NAME = 4096


@dataclass(frozen=True, eq=False)
class Entry:
    """One tensor's inputs. sums: float64 [n_matrices, cols], squared inputs added up; counts: float64 [n_matrices], tokens."""

    sums: F64
    counts: F64

    def split(self, n_matrices: int) -> Entry:
        """As n_matrices matrices; dat files have all experts of a tensor in one row, with one count."""
        if len(self.sums) == n_matrices or len(self.sums) != 1 or self.sums.size % n_matrices:
            return self
        sums = self.sums.reshape(n_matrices, -1)
        seen = sums.min(axis=1) != sums.max(axis=1)
        return Entry(np.where(seen[:, None], sums, 0.0), np.where(seen, self.counts, 0.0))


@dataclass(frozen=True, eq=False)
class Importance:
    """Of one tensor's columns.

    weights: float32 [n_matrices, cols], positive, each row's mean 1. energy: float64 [n_matrices], the mean squared input of each matrix
    times the part of the tokens that it sees. counts: float64 [n_matrices].
    """

    weights: F32
    energy: F64
    counts: F64

    def part(self, i: int) -> Importance:
        """Of matrix i alone."""
        return Importance(self.weights[i : i + 1], self.energy[i : i + 1], self.counts[i : i + 1])


@dataclass
class ImportanceMatrix:
    """Entries by GGUF tensor name, such as blk.0.ffn_gate_exps.weight; the names of the texts; windows of n_ctx tokens that were read.

    digest: of the texts and n_ctx, so that a calibration goes on only with what it began with; "" where it is unknown.
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    datasets: list[str] = field(default_factory=list)
    n_windows: int = 0
    n_ctx: int = 0
    digest: str = ""

    def importance(self, name: str, n_matrices: int, cols: int) -> Importance | None:
        """Of a tensor of n_matrices matrices (experts) with so many columns; None without an entry.

        With S an expert's sums, n its tokens, and m the mean over all tokens and experts of the layer, its mean squared inputs are
        (S + 32 m) / (n + 32): an expert hardly seen is shrunk towards the layer's mean. Nothing is less than 1e-4 of a row's mean; a row
        that is zero throughout counts as all ones. Raises InvalidArgumentError for an entry of another shape.
        """
        entry = self.entries.get(name)
        if entry is None:
            return None
        entry = entry.split(n_matrices)
        if entry.sums.shape != (n_matrices, cols):
            raise InvalidArgumentError(
                f"importance matrix: expected {n_matrices} x {cols} columns for {name}, found {len(entry.sums)} x {entry.sums.shape[1]}: "
                "it was made for another model"
            )
        total = entry.counts.sum()
        mean = entry.sums.sum(axis=0) / max(total, 1.0)
        squares = (entry.sums + PRIOR_TOKENS * mean) / (entry.counts + PRIOR_TOKENS)[:, None] if n_matrices > 1 else mean[None]
        level = squares.mean(axis=1)
        weights = np.maximum(squares / np.where(level > 0, level, 1.0)[:, None], FLOOR)
        weights[level == 0] = 1.0
        weights /= weights.mean(axis=1, keepdims=True)
        share = (entry.counts + PRIOR_TOKENS) / (total + PRIOR_TOKENS * n_matrices)
        return Importance(weights.astype(np.float32), level * share, entry.counts)

    def add(self, name: str, sums: F64, counts: F64) -> None:
        """Adds sums [n_matrices, cols] and counts [n_matrices] to a tensor's. Raises InvalidArgumentError for another shape."""
        new = Entry(sums, counts)
        if old := self.entries.get(name):
            old, new = old.split(len(sums)), new.split(len(old.sums))
            if old.sums.shape != new.sums.shape:
                raise InvalidArgumentError(
                    f"importance matrix: {name} has shapes {list(old.sums.shape)} and {list(sums.shape)}: expected matrices of one model"
                )
            new = Entry(old.sums + new.sums, old.counts + new.counts)
        self.entries[name] = new

    def hardly_seen(self) -> dict[str, dict[int, int]]:
        """Layers' names (blk.0) whose experts saw fewer than 256 tokens: expert and tokens."""
        found = {}
        for name, entry in self.entries.items():
            if name.endswith("ffn_gate_exps.weight"):
                experts = {int(e): int(entry.counts[e]) for e in np.flatnonzero(entry.counts < HARDLY_SEEN)}
                if experts:
                    found[name.removesuffix(".ffn_gate_exps.weight")] = experts
        return found

    def write(self, path: Path) -> None:
        """Writes the gguf form; the file appears when it is complete, in place of an older one. Raises OSError."""
        with replacing(path, force=True) as temporary:
            writer = GGUFWriter(temporary, "imatrix")
            try:
                writer.add_type("imatrix")
                writer.add_array("imatrix.datasets", self.datasets or ["unknown"])
                writer.add_uint32("imatrix.chunk_count", self.n_windows)
                writer.add_uint32("imatrix.chunk_size", self.n_ctx)
                if self.digest:
                    writer.add_string(_DIGEST, self.digest)
                for name, entry in sorted(self.entries.items()):
                    writer.add_tensor(f"{name}.in_sum2", entry.sums.astype(np.float32))
                    writer.add_tensor(f"{name}.counts", entry.counts.astype(np.float32)[:, None])
                writer.write_header_to_file()
                writer.write_kv_data_to_file()
                writer.write_tensors_to_file()
            finally:
                writer.close()


def merge(matrices: Iterable[ImportanceMatrix]) -> ImportanceMatrix:
    """The sum of several, of one model. Raises InvalidArgumentError where their shapes differ."""
    result = ImportanceMatrix()
    for matrix in matrices:
        for name, entry in matrix.entries.items():
            result.add(name, entry.sums, entry.counts)
        result.datasets += [name for name in matrix.datasets if name not in result.datasets]
        result.n_windows += matrix.n_windows
        result.n_ctx = result.n_ctx or matrix.n_ctx
    return result


def read(path: str | os.PathLike[str]) -> ImportanceMatrix:
    """Reads either form; every number of the file is checked. Raises ModelFileError."""
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
    result = ImportanceMatrix({}, datasets, _count(path, metadata, "chunk_count"), _count(path, metadata, "chunk_size"), digest)
    for tensor in file.tensors.values():
        name = tensor.name.removesuffix(".in_sum2")
        if name == tensor.name:
            continue  # .counts belong to a sum; others, such as .in_sum of newer files, are not needed
        counts = file.tensors.get(f"{name}.counts")
        if counts is None:
            raise ModelFileError(f"{path}: tensor {quoted(tensor.name)} has no {quoted(name + '.counts')}: the file is incomplete")
        if {tensor.type, counts.type} != {GGMLQuantizationType.F32}:
            raise ModelFileError(f"{path}: expected f32 sums and counts for {quoted(name)}, found {tensor.type.name}, {counts.type.name}")
        sums = tensor.data.view("<f4").reshape(-1, tensor.shape[-1]).astype(np.float64)
        n_tokens = counts.data.view("<f4").reshape(-1).astype(np.float64)
        if len(n_tokens) != len(sums):
            raise ModelFileError(f"{path}: {quoted(name)}: expected a count for each of {len(sums)} rows of sums, found {len(n_tokens)}")
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
        n_entries = self.number("number of entries", 1, 1 << 16)
        for i in range(n_entries):
            name = self.text(f"name of entry {i}", 1)
            if name in result.entries:
                self.fail(f"entry {i}", f"the name {quoted(name)} appears twice")
            n_calls = self.number(f"calls of {quoted(name)}", 0, (1 << 31) - 1)
            n_values = self.number(f"values of {quoted(name)}", 1, (1 << 31) - 1)
            begin = self.take(4 * n_values, f"values of {quoted(name)}")
            values = np.frombuffer(self.data, "<f4", n_values, begin).astype(np.float64)[None]
            entry = _checked(self.path, name, values, np.array([max(n_calls, 1.0)]))
            result.entries[name] = Entry(entry.sums * DAT_CHUNK, entry.counts * DAT_CHUNK)
        if self.pos < len(self.data):
            result.n_windows = self.number("number of chunks", 0, (1 << 31) - 1)
            if self.pos < len(self.data):
                result.datasets.append(self.text("name of the dataset", 0))
        if self.pos < len(self.data):
            self.fail("end", f"{len(self.data) - self.pos} bytes belong to nothing")
        return result

    def fail(self, what: str, problem: str) -> NoReturn:
        raise ModelFileError(f"{self.path}: {what}, byte {self.pos}: {problem}: is it an importance matrix, gguf or dat, and complete?")

    def take(self, n_bytes: int, what: str) -> int:
        if n_bytes > len(self.data) - self.pos:
            self.fail(what, f"needs {n_bytes} bytes, {len(self.data) - self.pos} are left")
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
