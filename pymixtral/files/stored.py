"""Tensors as a checkpoint's files store them, read row by row."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType

from pymixtral.arrays import F32, I64, U8
from pymixtral.errors import CheckpointError
from pymixtral.files.identity import check_unchanged, identity
from pymixtral.files.types import FLOAT_TYPES, row_bytes

Type = GGMLQuantizationType

_MAX_READ = 1 << 30  # Linux reads at most 2 GiB at a time, macOS refuses more

_SKIP = 1 << 14
"""Bytes that take as long to read as the call that would skip them: lines of fewer are read whole."""

_SLAB = 1 << 20
"""Bytes of such lines that are read at a time."""


class SourceFile:
    """An open file, read with pread.

    Unlike in a memory map, a file that shrinks while it is read is an error and not the end of the
    process, and what was read does not count as the process's memory.

    Args:
        path: the file.

    Raises:
        CheckpointError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if not path.is_file():  # before open, which would wait for the writer of a pipe
                path.stat()  # says why, where nothing is there
                raise CheckpointError(f"{path}: expected a file, found something that is not a regular one")
            self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise CheckpointError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
        weakref.finalize(self, os.close, self._fd)
        status = os.fstat(self._fd)
        self.size, self._identity = status.st_size, identity(status)

    def check_unchanged(self) -> None:
        """Raises CheckpointError if the file is no longer what it was when it was opened."""
        check_unchanged(self.path, self._identity, CheckpointError)

    def read_into(self, buffer: U8, offset: int) -> None:
        """Fills an array.

        Args:
            buffer: uint8, contiguous.
            offset: of the first byte in the file.

        Raises:
            CheckpointError: the file has fewer bytes, or cannot be read.
        """
        view, done = buffer.reshape(-1).data, 0
        while done < len(view):
            try:
                n = os.preadv(self._fd, [view[done : done + _MAX_READ]], offset + done)
            except OSError as error:
                raise CheckpointError(
                    f"{self.path}: cannot be read at byte {offset + done} ({error.strerror})"
                ) from error
            if n == 0:
                raise CheckpointError(
                    f"{self.path}: expected {len(view)} bytes at byte {offset}, found {done}: "
                    "the file was shortened while it was read"
                )
            done += n

    def read(self, n_bytes: int, offset: int) -> bytes:
        """Bytes of the file. Raises as read_into does."""
        buffer = np.empty(n_bytes, np.uint8)
        self.read_into(buffer, offset)
        return buffer.tobytes()


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor of a file.

    Attributes:
        file: the file.
        type: GGUF's type of its weights.
        shape: slowest dimension first.
        offset: of its first byte in the file.
        dequantize: what makes floats of the rows of a quantized type.
        transposed: whether the file has the columns of this matrix as rows. Its weights are floats.
        values: float32 [n], of a vector that the file, a configuration, gives without storing it.
    """

    file: SourceFile
    type: Type
    shape: tuple[int, ...]
    offset: int
    dequantize: Callable[[Type, U8], F32] | None = None
    transposed: bool = False
    values: F32 | None = None

    @property
    def files(self) -> tuple[SourceFile, ...]:
        """All files that it is read from."""
        return (self.file,)

    @property
    def row_bytes(self) -> int:
        """The bytes of a row as it is stored."""
        return row_bytes(self.type, self.shape[-1])

    def part(self, index: int, rows: slice | None = None) -> StoredTensor:
        """A part of a tensor of several matrices.

        Args:
            index: of the matrix, in the first dimension.
            rows: which of its rows, with start and stop; None: all.

        Returns:
            The matrix, or these rows of it.
        """
        shape = self.shape[1:]
        offset = self.offset + index * prod(shape[:-1]) * self.row_bytes
        if rows is not None:
            offset += rows.start * prod(shape[1:-1]) * self.row_bytes
            shape = (rows.stop - rows.start, *shape[1:])
        return replace(self, shape=shape, offset=offset)

    def raw(self, rows: slice | I64 = slice(None)) -> U8:
        """Reads rows as they are stored.

        Args:
            rows: which; a vector has one.

        Returns:
            uint8 [n, row_bytes].

        Raises:
            CheckpointError: they cannot be read.
        """
        if self.values is not None:
            return self.values.view(np.uint8)[None]
        if self.transposed:
            return self._raw_columns(rows)
        n_rows = prod(self.shape[:-1])
        if isinstance(rows, slice):
            begin, end, _ = rows.indices(n_rows)
            buffer = np.empty((max(0, end - begin), self.row_bytes), np.uint8)
            self.file.read_into(buffer, self.offset + begin * self.row_bytes)
            return buffer
        buffer = np.empty((len(rows), self.row_bytes), np.uint8)
        for row, line in zip(rows.tolist(), buffer, strict=True):
            self.file.read_into(line, self.offset + row * self.row_bytes)
        return buffer

    def _raw_columns(self, rows: slice | I64) -> U8:
        """Rows that are columns of the file: of each of its rows the part from the first to the last of them."""
        n_rows, n_cols = self.shape
        wanted = np.arange(n_rows)[rows]
        begin, end = (int(wanted.min()), int(wanted.max()) + 1) if len(wanted) else (0, 0)
        size = row_bytes(self.type, 1)
        stored = np.empty((n_cols, end - begin), np.dtype(f"<u{size}"))
        if n_rows * size < _SKIP:
            whole, step = replace(self, shape=(n_cols, n_rows), transposed=False), _SLAB // max(1, n_rows * size)
            for i in range(0, n_cols, step):
                lines = slice(i, i + step)
                stored[lines] = whole.raw(lines).view(stored.dtype)[:, begin:end]
        else:
            for i, line in enumerate(stored):
                self.file.read_into(line.view(np.uint8), self.offset + (i * n_rows + begin) * size)
        columns = stored if isinstance(rows, slice) else stored[:, wanted - begin]
        return np.ascontiguousarray(columns.T).view(np.uint8)

    def floats(self, rows: slice | I64 = slice(None)) -> F32:
        """Reads rows as floats, exactly those of f32, f16 and bf16.

        Args:
            rows: which; a vector has one.

        Returns:
            float32 [n, cols], or [cols] of a vector.

        Raises:
            CheckpointError: they cannot be read.
            NonFiniteError: scales of a quantized type are not finite.
        """
        values = self._widened(self.raw(rows))
        return values[0] if len(self.shape) == 1 else values

    def _widened(self, raw: U8) -> F32:
        if self.type == Type.F32:
            return raw.view("<f4").astype(np.float32, copy=False)
        if self.type == Type.F16:
            return raw.view("<f2").astype(np.float32)
        if self.type == Type.BF16:
            bits = raw.view("<u2").astype(np.uint32)
            bits <<= 16
            return bits.view(np.float32)
        assert self.dequantize is not None
        return self.dequantize(self.type, raw)

    def encoded(self, kind: Type, rows: slice | I64, zeroing: bool = False) -> U8 | None:
        """Reads rows that are in a quantized type already: encoding them again would only add errors.

        Args:
            kind: the type.
            rows: which.
            zeroing: weights that are not finite are to be 0, which takes encoding again.

        Returns:
            uint8 [n, row_bytes], or None of a tensor that is in no quantized type, or in another.

        Raises:
            CheckpointError: they cannot be read.
        """
        kept = self.type == kind and self.dequantize is not None and kind not in FLOAT_TYPES and not zeroing
        return self.raw(rows) if kept else None
