"""The operations of the C library on NumPy arrays: one function per entry point of csrc/pmx.h, which states what each computes.

Arrays are C-contiguous float32 unless said otherwise; inputs of another dtype or layout are converted, arrays that are written in
place must already be right. All functions raise InvalidArgumentError for shapes that do not fit, NonFiniteError (with the row) for NaN and
infinity, CanceledError, UnsupportedError and NativeError.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import DTypeLike, NDArray

from pymixtral.errors import InvalidArgumentError
from pymixtral.files.types import Matrix
from pymixtral.ops.context import Context
from pymixtral.ops.native import check, ffi, lib

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]

PAGE = 64  # positions of a cache page


# --- Arrays ------------------------------------------------------------------------------------------------------


def _input(x: Any, ndim: int, dtype: DTypeLike = np.float32) -> Any:
    """x as a C-contiguous array of a dtype; raises InvalidArgumentError for another number of dimensions and integers out of range."""
    if type(x) is np.ndarray and x.dtype is np.dtype(dtype) and x.ndim == ndim and x.flags.c_contiguous:
        return x
    given = np.asarray(x)
    array = np.ascontiguousarray(given, dtype)
    if array.ndim != ndim:
        raise InvalidArgumentError(f"expected an array of {ndim} dimensions, found {array.ndim}")
    if array.dtype.kind == "i" and array.dtype != given.dtype and not np.array_equal(array, given):
        raise InvalidArgumentError(f"expected integers that fit {array.dtype}, found others in an array of {given.dtype}")
    return array


def _same(what: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise InvalidArgumentError(f"{what}: expected shape {list(expected)}, found {list(found)}")


def _in_place(what: str, x: NDArray[Any], shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> None:
    _same(what, x.shape, shape)
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


def _pointer(x: NDArray[Any]) -> Any:
    return ffi.from_buffer(_POINTERS[x.dtype], x)


# --- Single operations -------------------------------------------------------------------------------------------


def rms_norm(ctx: Context, x: F32, weight: F32, eps: float) -> F32:
    """x, result: [n_tokens, n]; weight: [n]."""
    x, weight = _input(x, 2), _input(weight, 1)
    _same("weight", weight.shape, x.shape[1:])
    y = np.empty_like(x)
    check(lib.pmx_rms_norm(ctx.pointer, _pointer(y), _pointer(x), _pointer(weight), *x.shape, eps))
    return y


def quantize_activations(ctx: Context, x: F32, block: int = 32) -> tuple[NDArray[np.int8], F32, I32]:
    """x: [n_tokens, n], n a multiple of block, 32 or 256. Values int8 [n_tokens, n], scales [n_tokens, n/block], integer sums (int32) of
    each 32 values, or of each 16 with block 256."""
    x = _input(x, 2)
    n_tokens, n = x.shape
    q, d = np.empty(x.shape, np.int8), np.empty((n_tokens, n // block), np.float32)
    sums = np.empty((n_tokens, n // (32 if block == 32 else 16)), np.int32)
    check(lib.pmx_quantize_activations(ctx.pointer, _pointer(q), _pointer(d), _pointer(sums), _pointer(x), n_tokens, n, block))
    return q, d, sums


def matmul(ctx: Context, x: F32, w: Matrix | BoundMatrix) -> F32:
    """x: [n_tokens, w.cols]; result: [n_tokens, w.rows]."""
    w, x = _bound(w), _input(x, 2)
    _same("x", x.shape, (len(x), w.cols))
    y = np.empty((len(x), w.rows), np.float32)
    check(lib.pmx_matmul(ctx.pointer, _pointer(y), _pointer(x), w.struct, len(x)))
    return y


def embed(ctx: Context, w: Matrix | BoundMatrix, ids: I32) -> F32:
    """ids: int32 [n], rows of w; result: [n, w.cols], widened or dequantized."""
    w, ids = _bound(w), _input(ids, 1, np.int32)
    y = np.empty((len(ids), w.cols), np.float32)
    check(lib.pmx_embed(ctx.pointer, _pointer(y), w.struct, _pointer(ids), len(ids)))
    return y


def exp(ctx: Context, x: F32) -> F32:
    """The contract's exp of x: [n]; above 88 infinity."""
    x = _input(x, 1)
    y = np.empty_like(x)
    check(lib.pmx_exp(ctx.pointer, _pointer(y), _pointer(x), len(x)))
    return y


def silu_mul(ctx: Context, gate: F32, up: F32) -> F32:
    """silu(gate) * up, all [n]."""
    gate, up = _input(gate, 1), _input(up, 1)
    _same("up", up.shape, gate.shape)
    y = np.empty_like(gate)
    check(lib.pmx_silu_mul(ctx.pointer, _pointer(y), _pointer(gate), _pointer(up), len(gate)))
    return y


def rope_table(ctx: Context, frequencies: F64, positions: I32, factor: float = 1.0) -> tuple[F32, F32]:
    """Cosines and sines [n_tokens, n_pairs] of positions int32 [n_tokens] times frequencies float64 [n_pairs]."""
    frequencies, positions = _input(frequencies, 1, np.float64), _input(positions, 1, np.int32)
    shape = len(positions), len(frequencies)
    cosines, sines = np.empty(shape, np.float32), np.empty(shape, np.float32)
    pointers = _pointer(cosines), _pointer(sines), _pointer(frequencies), _pointer(positions)
    check(lib.pmx_rope_table(ctx.pointer, *pointers, *shape, factor))
    return cosines, sines


def rope(ctx: Context, x: F32, cosines: F32, sines: F32) -> F32:
    """x, result: [n_tokens, n_heads, head_dim]; cosines, sines: [n_tokens, head_dim/2]."""
    y: F32 = _input(x, 3).copy()
    cosines, sines = _input(cosines, 2), _input(sines, 2)
    _same("cosines", cosines.shape, (y.shape[0], y.shape[2] // 2))
    _same("sines", sines.shape, cosines.shape)
    check(lib.pmx_rope(ctx.pointer, _pointer(y), _pointer(cosines), _pointer(sines), *y.shape))
    return y


def route(ctx: Context, logits: F32, n_used: int) -> tuple[I32, F32]:
    """logits: [n_tokens, n_experts]. The chosen experts, ascending (int32), and their weights: [n_tokens, n_used]."""
    logits = _input(logits, 2)
    n_tokens, n_experts = logits.shape
    if not 1 <= n_used <= n_experts:
        raise InvalidArgumentError(f"expected 1 to {n_experts} experts used, found {n_used}")
    ids, weights = np.empty((n_tokens, n_used), np.int32), np.empty((n_tokens, n_used), np.float32)
    check(lib.pmx_route(ctx.pointer, _pointer(ids), _pointer(weights), _pointer(logits), n_tokens, n_experts, n_used))
    return ids, weights


def encode(ctx: Context, kind: GGMLQuantizationType, x: F32, importance: F32 | None = None) -> NDArray[np.uint8]:
    """x: [rows, cols]; result: uint8 [rows, row_bytes], blocks of `kind`: a type that quantize/encoders/ defines.

    importance: [cols], finite, not negative: what the squared error of each column counts; None: all the same. Only ratios matter.
    f32, f16, bf16 and q8_0 ignore it.
    """
    x = _input(x, 2)
    block, _ = GGML_QUANT_SIZES[kind]
    if x.shape[1] % block:
        raise InvalidArgumentError(f"expected a multiple of {block} columns, of which {kind.name} makes its blocks, found {x.shape[1]}")
    weights = ffi.NULL
    if importance is not None:
        importance = _input(importance, 1)
        _same("importance", importance.shape, x.shape[1:])
        weights = _pointer(importance)
    y = np.empty((x.shape[0], max(0, lib.pmx_row_bytes(kind, x.shape[1]))), np.uint8)
    check(lib.pmx_encode(ctx.pointer, _pointer(y), kind, _pointer(x), weights, *x.shape))
    return y


# --- Views of what C reads ---------------------------------------------------------------------------------------


class _Weights:
    """An array of pmx_weight views; keeps what they point to."""

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
        self._keep = _Weights([matrix])
        self.struct = self._keep.array
        self.rows, self.cols = matrix.shape


def _bound(w: Matrix | BoundMatrix) -> BoundMatrix:
    return w if isinstance(w, BoundMatrix) else BoundMatrix(w)


class CacheLayer:
    """One layer of a key/value cache, C-contiguous, written in place by cache_write and layer_attention: float16 or float32, k [n_pages,
    n_kv_heads, head_dim, 64] and v [n_pages, n_kv_heads, 64, head_dim]; or of q8_0, both uint8 [n_pages, n_kv_heads, 68*head_dim]."""

    def __init__(self, k: NDArray[Any], v: NDArray[Any]) -> None:
        types = {np.dtype(np.float16): lib.PMX_F16, np.dtype(np.float32): lib.PMX_F32, np.dtype(np.uint8): lib.PMX_Q8_0}
        blocks = k.dtype == np.uint8 and k.ndim == 3 and k.shape[2] % 68 == 0
        if not blocks and (k.dtype not in types or k.dtype == np.uint8 or k.ndim != 4 or k.shape[3] != PAGE):
            expected = "[n_pages, n_kv_heads, head_dim, 64], float16 or float32, or [n_pages, n_kv_heads, 68*head_dim], uint8"
            raise InvalidArgumentError(f"expected k of shape {expected}, found {k.dtype} {k.shape}")
        self.n_pages, self.n_kv_heads = k.shape[:2]
        self.head_dim = k.shape[2] // 68 if blocks else k.shape[2]
        self.n_pairs = self.head_dim // 2
        _in_place("k", k, k.shape, k.dtype)
        _in_place("v", v, k.shape if blocks else (*k.shape[:2], PAGE, self.head_dim), k.dtype)
        self._keep = k, v
        self.struct = ffi.new("pmx_cache *")
        self.struct.k = ffi.cast("void *", ffi.from_buffer(k))
        self.struct.v = ffi.cast("void *", ffi.from_buffer(v))
        self.struct.type = types[k.dtype]
        self.struct.n_pages, self.struct.n_kv_heads, self.struct.head_dim = self.n_pages, self.n_kv_heads, self.head_dim


class Runs:
    """The runs of a batch: (number of tokens, first position, cache pages int32) of each sequence's part, in the order of the rows."""

    def __init__(self, runs: Sequence[tuple[int, int, I32]]) -> None:
        self.array = ffi.new("pmx_run[]", len(runs))
        self.n_runs = len(runs)
        self.n_tokens = sum(n_tokens for n_tokens, _, _ in runs)
        self._keep = [_input(pages, 1, np.int32) for _, _, pages in runs]
        for run, (n_tokens, first, _), pages in zip(self.array, runs, self._keep, strict=True):
            run.n_tokens, run.first_position = n_tokens, first
            run.pages, run.n_pages = _pointer(pages), len(pages)

    def move(self, n_tokens: int, first: int) -> None:
        """Makes the only run one of n_tokens from another first position on, in the same pages."""
        _same("runs to move", (self.n_runs,), (1,))
        self.n_tokens = n_tokens
        self.array[0].n_tokens, self.array[0].first_position = n_tokens, first


def cache_write(ctx: Context, cache: CacheLayer, k: F32, v: F32, runs: Runs) -> None:
    """Rounds k, v [n_tokens, n_kv_heads, head_dim] into the cache at the runs' positions."""
    k, v = _input(k, 3), _input(v, 3)
    _same("k", k.shape, (runs.n_tokens, cache.n_kv_heads, cache.head_dim))
    _same("v", v.shape, k.shape)
    check(lib.pmx_cache_write(ctx.pointer, cache.struct, _pointer(k), _pointer(v), runs.array, runs.n_runs))


def attention(ctx: Context, q: F32, cache: CacheLayer, runs: Runs, window: int = 0) -> F32:
    """q, result: [n_tokens, n_heads, head_dim]; each token sees the cache up to its own position."""
    q = _input(q, 3)
    _same("q", q.shape, (runs.n_tokens, q.shape[1], cache.head_dim))
    y = np.empty_like(q)
    check(lib.pmx_attention(ctx.pointer, _pointer(y), _pointer(q), cache.struct, runs.array, runs.n_runs, q.shape[1], window))
    return y


# --- A decoder layer in two calls --------------------------------------------------------------------------------


class Layer:
    """One decoder layer as C sees it: views of its weights and its numbers. Shapes as in pymixtral.model.weights.LayerWeights."""

    def __init__(
        self,
        *,
        attn_norm: F32,
        ffn_norm: F32,
        q: Matrix,
        k: Matrix,
        v: Matrix,
        output: Matrix,
        router: Matrix | None,
        experts: Sequence[tuple[Matrix, Matrix, Matrix]],
        n_experts_used: int,
        n_heads: int,
        n_kv_heads: int,
        window: int,
        eps: float,
    ) -> None:
        self.hidden = q.cols
        self.n_experts_used = n_experts_used
        self.width = self.hidden, n_experts_used
        self.n_experts = len(experts)
        self.ffn = experts[0][0].rows
        self.q_dim = q.rows
        norms = _input(attn_norm, 1), _input(ffn_norm, 1)
        for norm in norms:
            _same("norm", norm.shape, (self.hidden,))
        matrices = _Weights([q, k, v, output, *([router] if router else [])])
        flat = _Weights([matrix for expert in experts for matrix in expert])
        self._keep = norms, matrices, flat
        struct = self.struct = ffi.new("pmx_layer *")
        struct.attn_norm, struct.ffn_norm = map(_pointer, norms)
        struct.q, struct.k, struct.v, struct.output = matrices.array[0:4]
        if router:
            struct.router = matrices.array[4]
        struct.experts = flat.array
        struct.n_experts, struct.n_experts_used = self.n_experts, n_experts_used
        struct.n_heads, struct.n_kv_heads, struct.head_dim = n_heads, n_kv_heads, q.rows // n_heads
        struct.hidden, struct.window, struct.eps = self.hidden, window, eps


class Observer:
    """Collects, for calibration, the sums of squares of each matrix's input columns (float64) and the tokens each expert saw (int64).

    qkv_input: [hidden]. output_input: [n_heads*head_dim]. expert_input: [n_experts, hidden]. down_input: [n_experts, ffn].
    n_tokens: [n_experts].
    """

    def __init__(self, layer: Layer) -> None:
        self.qkv_input = np.zeros(layer.hidden)
        self.output_input = np.zeros(layer.q_dim)
        self.expert_input = np.zeros((layer.n_experts, layer.hidden))
        self.down_input = np.zeros((layer.n_experts, layer.ffn))
        self.n_tokens = np.zeros(layer.n_experts, np.int64)
        self.struct = ffi.new("pmx_observer *")
        for name in ("qkv_input", "output_input", "expert_input", "down_input", "n_tokens"):
            setattr(self.struct, name, _pointer(getattr(self, name)))


def _observed(observer: Observer, layer: Layer) -> Any:
    """The C struct of an observer made for a layer of these sizes."""
    _same("observer", observer.expert_input.shape, (layer.n_experts, layer.hidden))
    _same("observer", observer.down_input.shape, (layer.n_experts, layer.ffn))
    _same("observer", observer.output_input.shape, (layer.q_dim,))
    return observer.struct


class Pass:
    """What the layers of one pass hand on, checked once. x: float32 [n_tokens, hidden], the residual stream, changed in place. normed:
    float32 [n_tokens, hidden], the experts' input; ids int32 and weights float32 [n_tokens, n_experts_used], the router's choice."""

    def __init__(self, layer: Layer, x: F32) -> None:
        self.n_tokens = len(x)
        self.width = layer.width
        self.normed = np.empty((self.n_tokens, layer.hidden), np.float32)
        self.ids = np.empty((self.n_tokens, layer.n_experts_used), np.int32)
        self.weights = np.empty((self.n_tokens, layer.n_experts_used), np.float32)
        self._own = _pointer(self.normed), _pointer(self.ids), _pointer(self.weights)
        self.begin(x)

    def begin(self, x: F32) -> None:
        """Makes it the pass of another x of as many tokens."""
        _in_place("x", x, self.normed.shape)
        self.x = x
        self.pointers = _pointer(x), *self._own


class Rotation:
    """The cosines and sines of a pass, float32 [n_tokens, head_dim/2], from rope_table."""

    def __init__(self, cosines: F32, sines: F32) -> None:
        _in_place("cosines", cosines, (len(cosines), *cosines.shape[1:2]))
        _in_place("sines", sines, cosines.shape)
        self._keep = cosines, sines
        self._table = _pointer(cosines), _pointer(sines)
        self._n_rows, self._n_pairs = cosines.shape
        self.move(0, self._n_rows)

    def move(self, first: int, n_tokens: int) -> None:
        """Makes the pass one of the rows first .. first+n_tokens-1 of all that were given."""
        if not 0 <= first <= first + n_tokens <= self._n_rows:
            raise InvalidArgumentError(f"expected some of {self._n_rows} rows of a rotation, found {n_tokens} from row {first} on")
        cosines, sines = self._table
        self.shape = n_tokens, self._n_pairs
        self.pointers = cosines + first * self._n_pairs, sines + first * self._n_pairs


def layer_attention(
    ctx: Context, p: Pass, layer: Layer, cache: CacheLayer, runs: Runs, rotation: Rotation, observer: Observer | None = None
) -> None:
    """Adds attention to p.x, writes the runs' keys and values to the cache, fills normed, ids and weights of p."""
    _same("a pass through this layer", p.width, layer.width)
    _same("rotation", rotation.shape, (p.n_tokens, cache.n_pairs))
    _same("runs", (runs.n_tokens,), (p.n_tokens,))
    observed = _observed(observer, layer) if observer else ffi.NULL
    args = layer.struct, cache.struct, runs.array, runs.n_runs, *rotation.pointers, observed
    check(lib.pmx_layer_attention(ctx.pointer, *p.pointers, *args))


def layer_experts(ctx: Context, p: Pass, layer: Layer, observer: Observer | None = None) -> None:
    """Adds the outputs of the experts that p.ids and p.weights name to p.x."""
    _same("a pass through this layer", p.width, layer.width)
    observed = _observed(observer, layer) if observer else ffi.NULL
    check(lib.pmx_layer_experts(ctx.pointer, *p.pointers, p.n_tokens, layer.struct, observed))
