"""The operations of the C library on NumPy arrays: one function for each entry point of csrc/pmx.h.

docs/numerics.md defines each result to the bit. Inputs of another dtype or memory layout are
converted. Every function raises InvalidArgumentError for shapes that do not fit, NonFiniteError
with the row for NaN and infinity, CanceledError after Context.cancel(), UnsupportedError for a
weight type that the library does not run, and NativeError if there is no memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from pymixtral.arrays import F32, F64, I32, U8
from pymixtral.errors import InvalidArgumentError
from pymixtral.files.types import Matrix, block_weights
from pymixtral.ops.context import Context
from pymixtral.ops.native import check, ffi, lib
from pymixtral.ops.views import BoundMatrix, CacheLayer, Runs, as_input, bound, check_shape, pointer


def rms_norm(ctx: Context, x: F32, weight: F32, eps: float) -> F32:
    """Normalise each row to a root mean square of 1 and multiply it by weights.

    Args:
        ctx: threads and instruction set.
        x: float32 [n_tokens, n].
        weight: float32 [n].
        eps: added to the mean of the squares.

    Returns:
        float32 [n_tokens, n].
    """
    x, weight = as_input(x, 2), as_input(weight, 1)
    check_shape("weight", weight.shape, x.shape[1:])
    y = np.empty_like(x)
    check(lib.pmx_rms_norm(ctx.pointer, pointer(y), pointer(x), pointer(weight), *x.shape, eps))
    return y


def quantize_activations(ctx: Context, x: F32, block: int = 32) -> tuple[NDArray[np.int8], F32, I32]:
    """Round activations to int8, with a scale for each block.

    Args:
        ctx: threads and instruction set.
        x: float32 [n_tokens, n], where n is a multiple of `block`.
        block: values that share a scale, 32 or 256.

    Returns:
        The values, int8 [n_tokens, n]; the scales, float32 [n_tokens, n/block]; and the sums of
        each 32 values (of each 16 with block 256), int32 [n_tokens, n/32 or n/16].
    """
    x = as_input(x, 2)
    n_tokens, n = x.shape
    q, d = np.empty(x.shape, np.int8), np.empty((n_tokens, n // block), np.float32)
    sums = np.empty((n_tokens, n // (32 if block == 32 else 16)), np.int32)
    check(
        lib.pmx_quantize_activations(ctx.pointer, pointer(q), pointer(d), pointer(sums), pointer(x), n_tokens, n, block)
    )
    return q, d, sums


def matmul(ctx: Context, x: F32, w: Matrix | BoundMatrix, scales: F32 | None = None) -> F32:
    """Multiply rows by a matrix.

    Args:
        ctx: threads and instruction set.
        x: float32 [n_tokens, w.cols].
        w: the matrix, one row for each output.
        scales: what each adapter of the matrix counts in each row, float32 [n_tokens, n_adapters];
            None: nothing.

    Returns:
        float32 [n_tokens, w.rows].
    """
    w, x = bound(w), as_input(x, 2)
    check_shape("x", x.shape, (len(x), w.cols))
    counted: tuple[Any, int] = ffi.NULL, 0
    if scales is not None:
        scales = as_input(scales, 2)
        check_shape("scales", scales.shape, (len(x), scales.shape[1]))
        counted = pointer(scales), scales.shape[1]
    y = np.empty((len(x), w.rows), np.float32)
    check(lib.pmx_matmul(ctx.pointer, pointer(y), pointer(x), w.struct, len(x), *counted))
    return y


def embed(ctx: Context, w: Matrix | BoundMatrix, ids: I32) -> F32:
    """Look up rows of a matrix.

    Args:
        ctx: threads and instruction set.
        w: the matrix, one row for each id.
        ids: int32 [n], each from 0 to w.rows - 1.

    Returns:
        float32 [n, w.cols], widened or dequantized.
    """
    w, ids = bound(w), as_input(ids, 1, np.int32)
    y = np.empty((len(ids), w.cols), np.float32)
    check(lib.pmx_embed(ctx.pointer, pointer(y), w.struct, pointer(ids), len(ids)))
    return y


def exp(ctx: Context, x: F32) -> F32:
    """Compute e**x as docs/numerics.md defines it.

    Args:
        ctx: threads and instruction set.
        x: float32 [n].

    Returns:
        float32 [n]: infinity above 88, 0 below -87.3.
    """
    x = as_input(x, 1)
    y = np.empty_like(x)
    check(lib.pmx_exp(ctx.pointer, pointer(y), pointer(x), len(x)))
    return y


def silu_mul(ctx: Context, gate: F32, up: F32) -> F32:
    """Compute silu(gate) * up, the gated unit of an expert.

    Args:
        ctx: threads and instruction set.
        gate: float32 [n].
        up: float32 [n].

    Returns:
        float32 [n].
    """
    gate, up = as_input(gate, 1), as_input(up, 1)
    check_shape("up", up.shape, gate.shape)
    y = np.empty_like(gate)
    check(lib.pmx_silu_mul(ctx.pointer, pointer(y), pointer(gate), pointer(up), len(gate)))
    return y


def rope_table(ctx: Context, frequencies: F64, positions: I32, factor: float = 1.0) -> tuple[F32, F32]:
    """Compute the cosines and sines of the rotary embedding.

    Args:
        ctx: threads and instruction set.
        frequencies: float64 [n_pairs], in radians per position.
        positions: int32 [n_tokens].
        factor: multiplies cosines and sines.

    Returns:
        Cosines and sines, each float32 [n_tokens, n_pairs].
    """
    frequencies, positions = as_input(frequencies, 1, np.float64), as_input(positions, 1, np.int32)
    shape = len(positions), len(frequencies)
    cosines, sines = np.empty(shape, np.float32), np.empty(shape, np.float32)
    pointers = pointer(cosines), pointer(sines), pointer(frequencies), pointer(positions)
    check(lib.pmx_rope_table(ctx.pointer, *pointers, *shape, factor))
    return cosines, sines


def rope(ctx: Context, x: F32, cosines: F32, sines: F32) -> F32:
    """Rotate each pair of adjacent elements by the angle of its position.

    Args:
        ctx: threads and instruction set.
        x: queries or keys, float32 [n_tokens, n_heads, head_dim].
        cosines: float32 [n_tokens, head_dim/2].
        sines: float32 [n_tokens, head_dim/2].

    Returns:
        float32 [n_tokens, n_heads, head_dim].
    """
    y: F32 = as_input(x, 3).copy()
    cosines, sines = as_input(cosines, 2), as_input(sines, 2)
    check_shape("cosines", cosines.shape, (y.shape[0], y.shape[2] // 2))
    check_shape("sines", sines.shape, cosines.shape)
    check(lib.pmx_rope(ctx.pointer, pointer(y), pointer(cosines), pointer(sines), *y.shape))
    return y


def route(ctx: Context, logits: F32, n_used: int, n_dropped: int = 0, min_p: float = 0.0) -> tuple[I32, F32]:
    """Choose the experts of each token.

    Args:
        ctx: threads and instruction set.
        logits: of the router, float32 [n_tokens, n_experts].
        n_used: experts to choose, 1 to n_experts.
        n_dropped: how many of these, the least likely, have weight 0; 0 to n_used - 1.
        min_p: experts that are less than this part as likely as the first one have weight 0; 0 to 1.

    Returns:
        The chosen experts in ascending order, int32 [n_tokens, n_used], and their weights, float32
        [n_tokens, n_used]: the softmax of the chosen logits whose weight is not 0.

    Raises:
        InvalidArgumentError: for numbers out of range.
        NonFiniteError: for a logit that is NaN or infinite.
    """
    logits = as_input(logits, 2)
    n_tokens, n_experts = logits.shape
    if not 1 <= n_used <= n_experts:
        raise InvalidArgumentError(f"expected 1 to {n_experts} experts used, found {n_used}")
    ids, weights = np.empty((n_tokens, n_used), np.int32), np.empty((n_tokens, n_used), np.float32)
    out = pointer(ids), pointer(weights)
    check(lib.pmx_route(ctx.pointer, *out, pointer(logits), n_tokens, n_experts, n_used, n_dropped, min_p))
    return ids, weights


def encode(ctx: Context, kind: GGMLQuantizationType, x: F32, importance: F32 | None = None) -> U8:
    """Encode weights in a GGUF type.

    Args:
        ctx: threads and instruction set.
        kind: one of the types that quantize/encoders/ defines.
        x: float32 [rows, cols], where cols is a multiple of the type's block.
        importance: weight of the squared error of each column, float32 [cols], finite and not
            negative; None: all the same. Only ratios matter. f32, f16, bf16 and q8_0 ignore it.

    Returns:
        uint8 [rows, row_bytes].
    """
    x = as_input(x, 2)
    block = block_weights(kind)
    if x.shape[1] % block:
        raise InvalidArgumentError(
            f"expected a multiple of {block} columns, of which {kind.name} makes its blocks, found {x.shape[1]}"
        )
    weights = ffi.NULL
    if importance is not None:
        importance = as_input(importance, 1)
        check_shape("importance", importance.shape, x.shape[1:])
        weights = pointer(importance)
    y = np.empty((x.shape[0], max(0, lib.pmx_row_bytes(kind, x.shape[1]))), np.uint8)
    check(lib.pmx_encode(ctx.pointer, pointer(y), kind, pointer(x), weights, *x.shape))
    return y


def cache_write(ctx: Context, cache: CacheLayer, k: F32, v: F32, runs: Runs) -> None:
    """Round keys and values to the cache's type and write them at the runs' positions.

    Args:
        ctx: threads and instruction set.
        cache: changed in place.
        k: rotated keys, float32 [n_tokens, n_kv_heads, head_dim].
        v: values, float32 [n_tokens, n_kv_heads, head_dim].
        runs: the positions of the rows.
    """
    k, v = as_input(k, 3), as_input(v, 3)
    check_shape("k", k.shape, (runs.n_tokens, cache.n_kv_heads, cache.head_dim))
    check_shape("v", v.shape, k.shape)
    check(lib.pmx_cache_write(ctx.pointer, cache.struct, pointer(k), pointer(v), runs.array, runs.n_runs))


def attention(ctx: Context, q: F32, cache: CacheLayer, runs: Runs, window: int = 0) -> F32:
    """Attend to the cache: each token sees the positions up to its own.

    Args:
        ctx: threads and instruction set.
        q: rotated queries, float32 [n_tokens, n_heads, head_dim].
        cache: the keys and values, those of these tokens included.
        runs: the positions of the rows.
        window: positions that a token sees, its own included; 0: all.

    Returns:
        float32 [n_tokens, n_heads, head_dim].
    """
    q = as_input(q, 3)
    check_shape("q", q.shape, (runs.n_tokens, q.shape[1], cache.head_dim))
    y = np.empty_like(q)
    check(
        lib.pmx_attention(
            ctx.pointer, pointer(y), pointer(q), cache.struct, runs.array, runs.n_runs, q.shape[1], window
        )
    )
    return y
