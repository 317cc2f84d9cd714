"""NumPy arrays as the C library sees them: checked, and pointed to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pymixtral.arrays import I32
from pymixtral.errors import InvalidArgumentError
from pymixtral.files.types import Matrix
from pymixtral.ops.native import ffi, lib

PAGE = 64
"""Positions of a cache page."""

# --- Arrays ------------------------------------------------------------------------------------------------------


def as_input(x: Any, ndim: int, dtype: DTypeLike = np.float32) -> Any:
    """An array that C may read: x itself where it is right already, else a converted copy.

    Args:
        x: an array, or what NumPy makes one of.
        ndim: the number of dimensions that it must have.
        dtype: the type to convert to.

    Raises:
        InvalidArgumentError: for another number of dimensions, and for integers out of range.
    """
    if type(x) is np.ndarray and x.dtype is np.dtype(dtype) and x.ndim == ndim and x.flags.c_contiguous:
        return x
    given = np.asarray(x)
    array = np.ascontiguousarray(given, dtype)
    if array.ndim != ndim:
        raise InvalidArgumentError(f"expected an array of {ndim} dimensions, found {array.ndim}")
    if array.dtype.kind == "i" and array.dtype != given.dtype and not np.array_equal(array, given):
        raise InvalidArgumentError(f"expected integers that fit {array.dtype}, found others in an array of {given.dtype}")
    return array


def check_shape(what: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raises InvalidArgumentError, which names `what`, where two shapes differ."""
    if found != expected:
        raise InvalidArgumentError(f"{what}: expected shape {list(expected)}, found {list(found)}")


def check_output(what: str, x: NDArray[Any], shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> None:
    """Raises InvalidArgumentError, which names `what`, for an array that C cannot write in place."""
    check_shape(what, x.shape, shape)
    if x.dtype != dtype or not x.flags.c_contiguous or not x.flags.writeable:
        raise InvalidArgumentError(f"{what}: expected a writable C-contiguous array of {np.dtype(dtype)}, found {x.dtype}")


_POINTERS = {
    np.dtype(np.float32): "float[]",
    np.dtype(np.float64): "double[]",
    np.dtype(np.int8): "int8_t[]",
    np.dtype(np.int32): "int32_t[]",
    np.dtype(np.int64): "int64_t[]",
    np.dtype(np.uint8): "uint8_t[]",
}


def pointer(x: NDArray[Any]) -> Any:
    """A pointer to a C-contiguous array, which it keeps alive."""
    return ffi.from_buffer(_POINTERS[x.dtype], x)


# --- Weights -----------------------------------------------------------------------------------------------------


class Weights:
    """An array of pmx_weight views. It keeps what they point to alive."""

    def __init__(self, matrices: Sequence[Matrix]) -> None:
        self.array = ffi.new("pmx_weight[]", len(matrices))
        self._keep = matrices
        for view, matrix in zip(self.array, matrices, strict=True):
            if matrix.data.dtype != np.uint8 or matrix.data.ndim != 2 or not matrix.data.flags.c_contiguous:
                raise InvalidArgumentError(f"expected a matrix of contiguous uint8 rows, found {matrix.data.dtype} {matrix.data.shape}")
            view.data = ffi.cast("void *", ffi.from_buffer(matrix.data))
            view.type = matrix.type
            view.rows, view.cols = matrix.shape
            view.row_bytes = matrix.row_bytes


class BoundMatrix:
    """A matrix as C sees it, for one that is multiplied by often."""

    def __init__(self, matrix: Matrix) -> None:
        self._keep = Weights([matrix])
        self.struct = self._keep.array
        self.rows, self.cols = matrix.shape


def bound(w: Matrix | BoundMatrix) -> BoundMatrix:
    """The matrix as C sees it."""
    return w if isinstance(w, BoundMatrix) else BoundMatrix(w)


# --- The key/value cache -----------------------------------------------------------------------------------------


class CacheLayer:
    """One layer of a key/value cache, written in place.

    Args:
        k: C-contiguous, float16 or float32 [n_pages, n_kv_heads, head_dim, 64]; of q8_0 uint8
            [n_pages, n_kv_heads, 68*head_dim].
        v: the same type, [n_pages, n_kv_heads, 64, head_dim]; of q8_0 the shape of k.

    Raises:
        InvalidArgumentError: for other shapes and types.
    """

    def __init__(self, k: NDArray[Any], v: NDArray[Any]) -> None:
        types = {np.dtype(np.float16): lib.PMX_F16, np.dtype(np.float32): lib.PMX_F32, np.dtype(np.uint8): lib.PMX_Q8_0}
        blocks = k.dtype == np.uint8 and k.ndim == 3 and k.shape[2] % 68 == 0
        if not blocks and (k.dtype not in types or k.dtype == np.uint8 or k.ndim != 4 or k.shape[3] != PAGE):
            expected = "[n_pages, n_kv_heads, head_dim, 64], float16 or float32, or [n_pages, n_kv_heads, 68*head_dim], uint8"
            raise InvalidArgumentError(f"expected k of shape {expected}, found {k.dtype} {k.shape}")
        self.n_pages, self.n_kv_heads = k.shape[:2]
        self.head_dim = k.shape[2] // 68 if blocks else k.shape[2]
        self.n_pairs = self.head_dim // 2
        check_output("k", k, k.shape, k.dtype)
        check_output("v", v, k.shape if blocks else (*k.shape[:2], PAGE, self.head_dim), k.dtype)
        self._keep = k, v
        self.struct = ffi.new("pmx_cache *")
        self.struct.k = ffi.cast("void *", ffi.from_buffer(k))
        self.struct.v = ffi.cast("void *", ffi.from_buffer(v))
        self.struct.type = types[k.dtype]
        self.struct.n_pages, self.struct.n_kv_heads, self.struct.head_dim = self.n_pages, self.n_kv_heads, self.head_dim


class Runs:
    """Which positions of which sequences the rows of a batch are.

    Args:
        runs: for each sequence's part, in the order of the rows: number of tokens, first position,
            and cache pages, int32 [n_pages].

    Raises:
        InvalidArgumentError: for pages of another shape or beyond int32.
    """

    def __init__(self, runs: Sequence[tuple[int, int, I32]]) -> None:
        self.array = ffi.new("pmx_run[]", len(runs))
        self.n_runs = len(runs)
        self._keep = [as_input(pages, 1, np.int32) for _, _, pages in runs]
        for run, pages in zip(self.array, self._keep, strict=True):
            run.pages, run.n_pages = pointer(pages), len(pages)
        self._move(runs)

    def advance(self, runs: Sequence[tuple[int, int, I32]]) -> bool:
        """Makes them other runs in place, where these have the same pages, as mostly from token to token.

        Returns:
            False, and nothing is changed, where they have others.
        """
        if len(runs) != self.n_runs or any(run[2] is not kept for run, kept in zip(runs, self._keep, strict=True)):
            return False
        self._move(runs)
        return True

    def _move(self, runs: Sequence[tuple[int, int, I32]]) -> None:
        for i, (n_tokens, first, _) in enumerate(runs):
            run = self.array[i]
            run.n_tokens, run.first_position = n_tokens, first
        self.n_tokens = sum([run[0] for run in runs])
