"""NumPy arrays as the C library sees them: checked, and passed as pointers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pymixtral.arrays import F32, I32
from pymixtral.errors import InvalidArgumentError
from pymixtral.files.types import Matrix
from pymixtral.ops.native import ffi, lib

PAGE = 64
"""Positions of a cache page. C fixes it: attention is computed and summed page by page."""

NUMERICS_VERSION = 3
"""The version of the contract (docs/numerics.md). A change that can change a bit of a result raises
it, as files of keys and values carry it."""

# --- Arrays ---------------------------------------------------------------------------------------


def as_input(x: Any, ndim: int, dtype: DTypeLike = np.float32) -> Any:
    """Convert to an array that C may read.

    Args:
        x: an array, or anything that NumPy converts to one.
        ndim: the number of dimensions that it must have.
        dtype: the type to convert to.

    Returns:
        x itself if it is C-contiguous and of this type already, else a copy.

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
        raise InvalidArgumentError(
            f"expected integers that fit {array.dtype}, found others in an array of {given.dtype}"
        )
    return array


def check_shape(what: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Check the shape of an array.

    Args:
        what: the array's name in the message.
        found: its shape.
        expected: the shape that it must have.

    Raises:
        InvalidArgumentError: if the shapes differ.
    """
    if found != expected:
        raise InvalidArgumentError(f"{what}: expected shape {list(expected)}, found {list(found)}")


def check_output(what: str, x: NDArray[Any], shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> None:
    """Check that C can write an array in place.

    Args:
        what: the array's name in the message.
        x: the array.
        shape: the shape that it must have.
        dtype: the type that it must have.

    Raises:
        InvalidArgumentError: for another shape or type, and for an array that is read-only or not
            C-contiguous.
    """
    check_shape(what, x.shape, shape)
    if x.dtype != dtype or not x.flags.c_contiguous or not x.flags.writeable:
        raise InvalidArgumentError(
            f"{what}: expected a writable C-contiguous array of {np.dtype(dtype)}, found {x.dtype}"
        )


_POINTERS = {
    np.dtype(np.float32): "float[]",
    np.dtype(np.float64): "double[]",
    np.dtype(np.int8): "int8_t[]",
    np.dtype(np.int32): "int32_t[]",
    np.dtype(np.int64): "int64_t[]",
    np.dtype(np.uint8): "uint8_t[]",
    np.dtype(np.uint32): "uint32_t[]",
}


def pointer(x: NDArray[Any]) -> Any:
    """Make a C pointer to an array.

    Args:
        x: C-contiguous, of float32, float64, int8, int32, int64, uint8 or uint32.

    Returns:
        The pointer, which keeps the array alive.
    """
    return ffi.from_buffer(_POINTERS[x.dtype], x)


# --- Weights --------------------------------------------------------------------------------------


class Weights:
    """Matrices as a C array of pmx_weight, which keeps them alive.

    Args:
        matrices: of contiguous rows.

    Attributes:
        array: the C array pmx_weight[].

    Raises:
        InvalidArgumentError: for a matrix that is not contiguous rows of bytes.
    """

    def __init__(self, matrices: Sequence[Matrix]) -> None:
        self.array = ffi.new("pmx_weight[]", len(matrices))
        self._keep = matrices
        for view, matrix in zip(self.array, matrices, strict=True):
            if matrix.data.dtype != np.uint8 or matrix.data.ndim != 2 or not matrix.data.flags.c_contiguous:
                raise InvalidArgumentError(
                    f"expected a matrix of contiguous uint8 rows, found {matrix.data.dtype} {matrix.data.shape}"
                )
            view.data = ffi.cast("void *", ffi.from_buffer(matrix.data))
            view.type = matrix.type
            view.rows, view.cols = matrix.shape
            view.row_bytes = matrix.row_bytes


class Pair(NamedTuple):
    """What an adapter adds to a matrix W of rows x cols: y = W x + transpose(b) (a x).

    Attributes:
        adapter: the adapter's column in the scales of a batch.
        a: float32 [rank, cols], of a rank from 1 to 1024.
        b: float32 [rank, rows].
    """

    adapter: int
    a: F32
    b: F32


class Delta:
    """What adapters add to one matrix, made once for many products.

    Args:
        rows: of the matrix.
        cols: of the matrix.
        pairs: of different adapters, which are put in ascending order.

    Attributes:
        struct: the C struct pmx_delta.

    Raises:
        InvalidArgumentError: for pairs of another shape.
    """

    def __init__(self, rows: int, cols: int, pairs: Sequence[Pair]) -> None:
        self._keep: list[Any] = [ffi.new("pmx_low_rank[]", len(pairs))]
        ordered = sorted(pairs, key=lambda pair: pair.adapter)
        for view, pair in zip(self._keep[0], ordered, strict=True):
            a, b = as_input(pair.a, 2), as_input(pair.b, 2)
            check_shape("a", a.shape, (len(a), cols))
            check_shape("b", b.shape, (len(a), rows))
            view.a, view.b = pointers = pointer(a), pointer(b)
            view.rank, view.adapter = len(a), pair.adapter
            self._keep += pointers
        self.struct = ffi.new("pmx_delta *", {"pairs": self._keep[0], "n_pairs": len(pairs)})


class BoundMatrix:
    """A matrix as C sees it, made once for many products.

    Args:
        matrix: of contiguous rows.
        pairs: what adapters add.

    Attributes:
        struct: the C struct pmx_weight.
        rows: outputs of a product.
        cols: inputs of a product.

    Raises:
        InvalidArgumentError: for a matrix that is not contiguous rows of bytes, and pairs of another
            shape.
    """

    def __init__(self, matrix: Matrix, pairs: Sequence[Pair] = ()) -> None:
        self._keep = Weights([matrix]), Delta(*matrix.shape, pairs)
        self.struct = self._keep[0].array
        self.rows, self.cols = matrix.shape
        if pairs:
            self.struct[0].delta = self._keep[1].struct


def bound(w: Matrix | BoundMatrix) -> BoundMatrix:
    """Bind a matrix, unless it is bound already.

    Args:
        w: a matrix, bound or not.

    Returns:
        The matrix as C sees it.
    """
    return w if isinstance(w, BoundMatrix) else BoundMatrix(w)


# --- The key/value cache --------------------------------------------------------------------------


class CacheLayer:
    """One layer of a key/value cache, written in place.

    In q8_0 a head's page takes 68*head_dim bytes: 64*head_dim of int8 and 4*head_dim of scales, a
    float16 for each 32 values. pmx_cache in csrc/pmx.h has their order.

    Args:
        k: keys, C-contiguous: float16 or float32 [n_pages, n_kv_heads, head_dim, 64], or in q8_0
            uint8 [n_pages, n_kv_heads, 68*head_dim].
        v: values, of the same type: [n_pages, n_kv_heads, 64, head_dim], or in q8_0 the shape of k.

    Attributes:
        n_pages: pages of 64 positions.
        n_kv_heads: key/value heads.
        head_dim: elements of a head.
        n_pairs: head_dim/2.
        struct: the C struct pmx_cache.

    Raises:
        InvalidArgumentError: for other shapes and types.
    """

    def __init__(self, k: NDArray[Any], v: NDArray[Any]) -> None:
        types = {np.dtype(np.float16): lib.PMX_F16, np.dtype(np.float32): lib.PMX_F32, np.dtype(np.uint8): lib.PMX_Q8_0}
        blocks = k.dtype == np.uint8 and k.ndim == 3 and k.shape[2] % 68 == 0
        if not blocks and (k.dtype not in types or k.dtype == np.uint8 or k.ndim != 4 or k.shape[3] != PAGE):
            expected = (
                "[n_pages, n_kv_heads, head_dim, 64], float16 or float32, or [n_pages, n_kv_heads, 68*head_dim], uint8"
            )
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
    """The positions and sequences that the rows of a batch belong to.

    A run is a part of one sequence: consecutive rows at consecutive positions.

    Args:
        runs: (number of tokens, first position, cache pages as int32 [n_pages]) of each run, in the
            order of the rows.

    Attributes:
        array: the C array pmx_run[].
        n_runs: number of runs.
        n_tokens: rows of all runs together.

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
        """Move to other runs in place, if they have the same pages.

        From one generated token to the next they mostly do, and nothing is allocated.

        Args:
            runs: as for Runs.

        Returns:
            Whether the pages are the same. If not, nothing is changed.
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
