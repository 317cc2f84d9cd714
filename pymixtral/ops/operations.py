"""The operations of the C library on NumPy arrays: one function per entry point of csrc/pmx.h, which states what each computes.

Arrays are C-contiguous float32 unless said otherwise; inputs of another dtype or layout are converted, arrays that are written in
place must already be right. All functions raise InvalidArgumentError for shapes that do not fit, NonFiniteError (with the row) for NaN and
infinity, CanceledError, UnsupportedError and NativeError.
"""

from __future__ import annotations

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
    """x, result: [n_tokens, n]; weight: [n]."""
    x, weight = as_input(x, 2), as_input(weight, 1)
    check_shape("weight", weight.shape, x.shape[1:])
    y = np.empty_like(x)
    check(lib.pmx_rms_norm(ctx.pointer, pointer(y), pointer(x), pointer(weight), *x.shape, eps))
    return y


def quantize_activations(ctx: Context, x: F32, block: int = 32) -> tuple[NDArray[np.int8], F32, I32]:
    """x: [n_tokens, n], n a multiple of block, 32 or 256. Values int8 [n_tokens, n], scales [n_tokens, n/block], integer sums (int32) of
    each 32 values, or of each 16 with block 256."""
    x = as_input(x, 2)
    n_tokens, n = x.shape
    q, d = np.empty(x.shape, np.int8), np.empty((n_tokens, n // block), np.float32)
    sums = np.empty((n_tokens, n // (32 if block == 32 else 16)), np.int32)
    check(lib.pmx_quantize_activations(ctx.pointer, pointer(q), pointer(d), pointer(sums), pointer(x), n_tokens, n, block))
    return q, d, sums


def matmul(ctx: Context, x: F32, w: Matrix | BoundMatrix) -> F32:
    """x: [n_tokens, w.cols]; result: [n_tokens, w.rows]."""
    w, x = bound(w), as_input(x, 2)
    check_shape("x", x.shape, (len(x), w.cols))
    y = np.empty((len(x), w.rows), np.float32)
    check(lib.pmx_matmul(ctx.pointer, pointer(y), pointer(x), w.struct, len(x)))
    return y


def embed(ctx: Context, w: Matrix | BoundMatrix, ids: I32) -> F32:
    """ids: int32 [n], rows of w; result: [n, w.cols], widened or dequantized."""
    w, ids = bound(w), as_input(ids, 1, np.int32)
    y = np.empty((len(ids), w.cols), np.float32)
    check(lib.pmx_embed(ctx.pointer, pointer(y), w.struct, pointer(ids), len(ids)))
    return y


def exp(ctx: Context, x: F32) -> F32:
    """The contract's exp of x: [n]; above 88 infinity."""
    x = as_input(x, 1)
    y = np.empty_like(x)
    check(lib.pmx_exp(ctx.pointer, pointer(y), pointer(x), len(x)))
    return y


def silu_mul(ctx: Context, gate: F32, up: F32) -> F32:
    """silu(gate) * up, all [n]."""
    gate, up = as_input(gate, 1), as_input(up, 1)
    check_shape("up", up.shape, gate.shape)
    y = np.empty_like(gate)
    check(lib.pmx_silu_mul(ctx.pointer, pointer(y), pointer(gate), pointer(up), len(gate)))
    return y


def rope_table(ctx: Context, frequencies: F64, positions: I32, factor: float = 1.0) -> tuple[F32, F32]:
    """Cosines and sines [n_tokens, n_pairs] of positions int32 [n_tokens] times frequencies float64 [n_pairs]."""
    frequencies, positions = as_input(frequencies, 1, np.float64), as_input(positions, 1, np.int32)
    shape = len(positions), len(frequencies)
    cosines, sines = np.empty(shape, np.float32), np.empty(shape, np.float32)
    pointers = pointer(cosines), pointer(sines), pointer(frequencies), pointer(positions)
    check(lib.pmx_rope_table(ctx.pointer, *pointers, *shape, factor))
    return cosines, sines


def rope(ctx: Context, x: F32, cosines: F32, sines: F32) -> F32:
    """x, result: [n_tokens, n_heads, head_dim]; cosines, sines: [n_tokens, head_dim/2]."""
    y: F32 = as_input(x, 3).copy()
    cosines, sines = as_input(cosines, 2), as_input(sines, 2)
    check_shape("cosines", cosines.shape, (y.shape[0], y.shape[2] // 2))
    check_shape("sines", sines.shape, cosines.shape)
    check(lib.pmx_rope(ctx.pointer, pointer(y), pointer(cosines), pointer(sines), *y.shape))
    return y


def route(ctx: Context, logits: F32, n_used: int) -> tuple[I32, F32]:
    """logits: [n_tokens, n_experts]. The chosen experts, ascending (int32), and their weights: [n_tokens, n_used]."""
    logits = as_input(logits, 2)
    n_tokens, n_experts = logits.shape
    if not 1 <= n_used <= n_experts:
        raise InvalidArgumentError(f"expected 1 to {n_experts} experts used, found {n_used}")
    ids, weights = np.empty((n_tokens, n_used), np.int32), np.empty((n_tokens, n_used), np.float32)
    check(lib.pmx_route(ctx.pointer, pointer(ids), pointer(weights), pointer(logits), n_tokens, n_experts, n_used))
    return ids, weights


def encode(ctx: Context, kind: GGMLQuantizationType, x: F32, importance: F32 | None = None) -> U8:
    """x: [rows, cols]; result: uint8 [rows, row_bytes], blocks of `kind`: a type that quantize/encoders/ defines.

    importance: [cols], finite, not negative: what the squared error of each column counts; None: all the same. Only ratios matter.
    f32, f16, bf16 and q8_0 ignore it.
    """
    x = as_input(x, 2)
    block = block_weights(kind)
    if x.shape[1] % block:
        raise InvalidArgumentError(f"expected a multiple of {block} columns, of which {kind.name} makes its blocks, found {x.shape[1]}")
    weights = ffi.NULL
    if importance is not None:
        importance = as_input(importance, 1)
        check_shape("importance", importance.shape, x.shape[1:])
        weights = pointer(importance)
    y = np.empty((x.shape[0], max(0, lib.pmx_row_bytes(kind, x.shape[1]))), np.uint8)
    check(lib.pmx_encode(ctx.pointer, pointer(y), kind, pointer(x), weights, *x.shape))
    return y


def cache_write(ctx: Context, cache: CacheLayer, k: F32, v: F32, runs: Runs) -> None:
    """Rounds k, v [n_tokens, n_kv_heads, head_dim] into the cache at the runs' positions."""
    k, v = as_input(k, 3), as_input(v, 3)
    check_shape("k", k.shape, (runs.n_tokens, cache.n_kv_heads, cache.head_dim))
    check_shape("v", v.shape, k.shape)
    check(lib.pmx_cache_write(ctx.pointer, cache.struct, pointer(k), pointer(v), runs.array, runs.n_runs))


def attention(ctx: Context, q: F32, cache: CacheLayer, runs: Runs, window: int = 0) -> F32:
    """q, result: [n_tokens, n_heads, head_dim]; each token sees the cache up to its own position."""
    q = as_input(q, 3)
    check_shape("q", q.shape, (runs.n_tokens, q.shape[1], cache.head_dim))
    y = np.empty_like(q)
    check(lib.pmx_attention(ctx.pointer, pointer(y), pointer(q), cache.struct, runs.array, runs.n_runs, q.shape[1], window))
    return y
