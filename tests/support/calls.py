"""One valid call of every C entry point, with guards around what it writes and fences behind what
it reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from numpy.typing import DTypeLike, NDArray

from pymixtral import ops
from pymixtral.arrays import F32, I32
from pymixtral.files.names import FFN_STEMS, TensorName
from pymixtral.files.types import Matrix
from pymixtral.model.adapter import Adapter, LowRank
from pymixtral.ops.native import ffi, lib
from pymixtral.reference import oracle
from pymixtral.reference.sampling import Sampler as OracleSampler
from pymixtral.sampling.parameters import SamplingParameters
from support.fences import Guarded, fenced
from support.low_rank import low_rank, scales_for
from support.variants import (
    FIRST_CONTEXT,
    activations,
    generator,
    key_pages,
    matrix,
    model_matrix,
    normal,
    stored_bytes,
    value_pages,
)

KINDS = GGMLQuantizationType


def pointer(array: NDArray[Any], ctype: str) -> Any:
    return ffi.cast(ctype, array.ctypes.data)


class Call:
    """One valid call of an entry point: the context, the outputs between guards, fenced inputs, all
    arguments by name.
    """

    def __init__(self, entry: str, ctx: ops.Context) -> None:
        self.entry = entry
        self.args: dict[str, Any] = {"ctx": ctx.pointer}
        self.outputs: list[Guarded] = []
        self.want: list[NDArray[Any]] = []
        self.inputs: dict[str, NDArray[Any]] = {}
        self._members: dict[str, Any] = {}
        self._keep: list[Any] = [ctx]

    def out(
        self, name: str, ctype: str, dtype: DTypeLike, want: NDArray[Any], before: NDArray[Any] | None = None
    ) -> Call:
        output = Guarded(want.shape, dtype, before)
        self.outputs.append(output)
        self.want.append(want)
        self.args[name] = pointer(output.array, ctype)
        return self

    def array(self, name: str, ctype: str, values: NDArray[Any]) -> Call:
        self.inputs[name] = fenced(values)
        self.args[name] = pointer(self.inputs[name], ctype)
        return self

    def value(self, name: str, value: Any, *keep: Any) -> Call:
        """keep: what the value points to."""
        self.args[name] = value
        self._keep.extend(keep)
        return self

    def batch(self) -> Call:
        """Moves the arguments that are members of a pmx_batch into one."""
        members = {name: self.args.pop(name) for name, _ in ffi.typeof("pmx_batch").fields if name in self.args}
        struct = ffi.new("pmx_batch *", members)
        self._members = dict.fromkeys(members, struct)
        return self.value("batch", struct, members)

    def __contains__(self, name: str) -> bool:
        return name in self.args or name in self._members

    def __getitem__(self, name: str) -> Any:
        """The argument, or member of the batch, of a name."""
        return getattr(self._members[name], name) if name in self._members else self.args[name]

    def status(self, **changed: Any) -> int:
        """Calls with some arguments, and members of the batch, changed."""
        members = {name: changed.pop(name) for name in self._members if name in changed}
        before = {name: self[name] for name in members}
        set_members(self.args.get("batch"), members)
        status = int(getattr(lib, self.entry)(*(self.args | changed).values()))
        set_members(self.args.get("batch"), before)
        return status


def set_members(struct: Any, changed: dict[str, Any]) -> None:
    for name, value in changed.items():
        setattr(struct, name, value)


def weight(w: Matrix, *pairs: LowRank, **changed: Any) -> tuple[Any, Any]:
    """A fenced pmx_weight, with pairs of the adapters 0, 1, .., and what it points to."""
    data = fenced(w.data)
    view = ffi.new(
        "pmx_weight *", {"data": ffi.cast("void *", data.ctypes.data), "type": w.type, "rows": w.rows, "cols": w.cols}
    )
    view.row_bytes = w.row_bytes
    keep: list[Any] = [data]
    if pairs:
        arrays = [(fenced(a), fenced(b)) for a, b in pairs]
        views = [
            {"a": pointer(a, "float *"), "b": pointer(b, "float *"), "rank": len(a), "adapter": i}
            for i, (a, b) in enumerate(arrays)
        ]
        keep += [arrays, ffi.new("pmx_low_rank[]", views)]
        keep.append(ffi.new("pmx_delta *", {"pairs": keep[-1], "n_pairs": len(pairs)}))
        view.delta = keep[-1]
    set_members(view, changed)
    return view, keep


# --- Valid calls -------------------------------------------------------------------------------------------------

N, HIDDEN, HEADS, KV_HEADS, DIM = 5, 64, 4, 2, 24

MATRICES = ("q", "k", "v", "output", "router")
"""Of the first half of a layer."""


def rms_norm(ctx: ops.Context) -> Call:
    x, w = normal(1, N, 37), normal(2, 37)
    call = Call("pmx_rms_norm", ctx).out("y", "float *", np.float32, oracle.rms_norm(x, w, 1e-5))
    return (
        call.array("x", "float *", x)
        .array("weight", "float *", w)
        .value("n_tokens", N)
        .value("n", 37)
        .value("eps", 1e-5)
    )


def quantize_activations(ctx: ops.Context) -> Call:
    x = activations(3, N, 96)
    q, d, sums = oracle.quantize_activations(x)
    call = Call("pmx_quantize_activations", ctx).out("q", "int8_t *", np.int8, q).out("d", "float *", np.float32, d)
    call.out("sums", "int32_t *", np.int32, sums).array("x", "float *", x)
    return call.value("n_tokens", N).value("n", 96).value("block", 32)


def matmul(
    ctx: ops.Context, kind: GGMLQuantizationType = KINDS.Q8_0, n: int = N, rows: int = 21, cols: int = 96
) -> Call:
    x, w, scales = activations(4, n, cols), matrix(kind, rows, cols, 5), scales_for(41, n, 2)
    pairs = [low_rank(42, 3, rows, cols), low_rank(44, 9, rows, cols)]
    view, data = weight(w, *pairs)
    want = oracle.adapted(oracle.matmul(x, w), x, [(pair, scales[:, i]) for i, pair in enumerate(pairs)])
    call = Call("pmx_matmul", ctx).out("y", "float *", np.float32, want).array("x", "float *", x)
    call.value("w", view, data).value("n_tokens", n)
    return call.array("scales", "float *", scales).value("n_adapters", 2)


def embed(ctx: ops.Context, kind: GGMLQuantizationType = KINDS.Q4_0, cols: int = 96) -> Call:
    w, ids = matrix(kind, 9, cols, 6), np.array([8, 0, 3], np.int32)
    view, data = weight(w)
    call = Call("pmx_embed", ctx).out("y", "float *", np.float32, oracle.embed(w, ids)).value("w", view, data)
    return call.array("ids", "int32_t *", ids).value("n_ids", 3)


def exp(ctx: ops.Context) -> Call:
    x = normal(7, 21)
    return Call("pmx_exp", ctx).out("y", "float *", np.float32, oracle.exp(x)).array("x", "float *", x).value("n", 21)


def silu_mul(ctx: ops.Context) -> Call:
    gate, up = normal(8, 21), normal(9, 21)
    call = Call("pmx_silu_mul", ctx).out("y", "float *", np.float32, oracle.silu_mul(gate, up))
    return call.array("gate", "float *", gate).array("up", "float *", up).value("n", 21)


def rope_table(ctx: ops.Context) -> Call:
    frequencies, positions = generator(10).uniform(0, 1, 7), np.arange(50, 50 + N, dtype=np.int32)
    cosines, sines = oracle.rope_table(frequencies, positions, 1.5)
    call = (
        Call("pmx_rope_table", ctx)
        .out("cosines", "float *", np.float32, cosines)
        .out("sines", "float *", np.float32, sines)
    )
    call.array("frequencies", "double *", frequencies).array("positions", "int32_t *", positions)
    return call.value("n_tokens", N).value("n_pairs", 7).value("factor", 1.5)


def rope(ctx: ops.Context) -> Call:
    x, tables = normal(11, N, 3, 14), oracle.rope_table(generator(12).uniform(0, 1, 7), np.arange(N, dtype=np.int32))
    call = Call("pmx_rope", ctx).out("x", "float *", np.float32, oracle.rope(x, *tables), x)
    call.array("cosines", "float *", tables[0]).array("sines", "float *", tables[1])
    return call.value("n_tokens", N).value("n_heads", 3).value("head_dim", 14)


def one_run(call: Call, n: int, first: int, pages: list[int]) -> Call:
    array = fenced(np.array(pages, np.int32))
    run = {"n_tokens": n, "first_position": first, "pages": pointer(array, "int32_t *"), "n_pages": len(pages)}
    return call.value("runs", ffi.new("pmx_run[]", [run]), array).value("n_runs", 1)


def cache_struct(call: Call, k: NDArray[Any], v: NDArray[Any], dim: int) -> None:
    kind = {np.dtype(np.float16): lib.PMX_F16, np.dtype(np.float32): lib.PMX_F32, np.dtype(np.uint8): lib.PMX_Q8_0}[
        k.dtype
    ]
    sizes = {"type": kind, "n_kv_heads": k.shape[1], "head_dim": dim, "n_pages": len(k)}
    struct = ffi.new("pmx_cache *", {"k": pointer(k, "void *"), "v": pointer(v, "void *"), **sizes})
    call.value("cache", struct, k, v)


def cache_dim(dtype: DTypeLike) -> int:
    return 32 if dtype == oracle.Q8_0 else DIM


def cache_write(ctx: ops.Context, dtype: DTypeLike = np.float16) -> Call:
    dim = cache_dim(dtype)
    k, v = normal(13, N, KV_HEADS, dim), normal(14, N, KV_HEADS, dim)
    stored = [oracle.round_to_cache(x, dtype) for x in (k, v)]
    pages = [stored_bytes((2, 64, KV_HEADS, dim), dtype, 0) for _ in range(2)]
    for j in range(N):
        page, slot = (1 - (62 + j) // 64, (62 + j) % 64)
        for one, values in zip(pages, stored, strict=True):
            one[page, slot] = values[j]
    call = Call("pmx_cache_write", ctx)
    call.want = [key_pages(pages[0]), value_pages(pages[1])]
    call.outputs = [Guarded(want.shape, want.dtype, np.zeros_like(want)) for want in call.want]
    cache_struct(call, call.outputs[0].array, call.outputs[1].array, dim)
    call.array("k", "float *", k).array("v", "float *", v)
    return one_run(call, N, 62, [1, 0])


def attention(ctx: ops.Context, dtype: DTypeLike = np.float16, n: int = N) -> Call:
    dim = cache_dim(dtype)
    k, v = (oracle.round_to_cache(normal(seed, 128, KV_HEADS, dim), dtype) for seed in (15, 16))
    q = normal(17, n, HEADS, dim)
    call = Call("pmx_attention", ctx).out("y", "float *", np.float32, oracle.attention(q, k, v, 128 - n))
    call.array("q", "float *", q)
    pages = [x.reshape(2, 64, *x.shape[1:]) for x in (k, v)]
    cache_struct(call, fenced(key_pages(pages[0])), fenced(value_pages(pages[1])), dim)
    return one_run(call, n, 128 - n, [0, 1]).value("n_heads", HEADS).value("window", 0)


def route(ctx: ops.Context) -> Call:
    logits = normal(18, N, 7)
    ids, weights = oracle.route(logits, 3)
    call = Call("pmx_route", ctx).out("ids", "int32_t *", np.int32, ids).out("weights", "float *", np.float32, weights)
    call.array("logits", "float *", logits).value("n_tokens", N).value("n_experts", 7).value("n_experts_used", 3)
    return call.value("n_experts_dropped", 0).value("expert_min_p", 0.0)


def encode(ctx: ops.Context, kind: GGMLQuantizationType = KINDS.Q4_0, cols: int = 64, weighted: bool = False) -> Call:
    x, importance = normal(19, 3, cols), np.square(normal(20, cols))
    want = ops.encode(FIRST_CONTEXT, kind, x, importance if weighted else None)
    call = Call("pmx_encode", ctx).out("y", "void *", np.uint8, want).value("type", int(kind)).array("x", "float *", x)
    if weighted:
        call.array("importance", "float *", importance)
    else:
        call.value("importance", ffi.NULL)
    return call.value("rows", 3).value("cols", cols)


SCALES = scales_for(45, N, 2)


def layer_pairs(i: int, m: Matrix) -> list[LowRank]:
    """Of the matrix i of a layer."""
    return [low_rank(60 + i, 3, *m.shape), low_rank(80 + i, 2, *m.shape)]


def product(x: F32, i: int, m: Matrix) -> F32:
    """Of the rows of a batch."""
    return oracle.adapted(oracle.matmul(x, m), x, [(pair, SCALES[:, j]) for j, pair in enumerate(layer_pairs(i, m))])


def experts(x: F32, normed: F32, ids: I32, weights: F32, m: list[Matrix]) -> F32:
    """x with the weighted outputs."""
    names = [TensorName(stem, 0, expert=e) for e in range(3) for stem in FFN_STEMS]
    pairs = [layer_pairs(5 + i, m[5 + i]) for i in range(9)]
    adapters = [Adapter({name: of[j] for name, of in zip(names, pairs, strict=True)}, "") for j in range(2)]
    deltas = oracle.Deltas([(adapter, SCALES[:, j]) for j, adapter in enumerate(adapters)], 0, mixed=True)
    return oracle.experts(x, normed, ids, weights, [(m[i], m[i + 1], m[i + 2]) for i in (5, 8, 11)], deltas=deltas)


def layer_struct(call: Call, kind: GGMLQuantizationType) -> tuple[Any, list[Matrix], list[NDArray[Any]]]:
    """A layer of 3 experts, 2 of them used, and its matrices and norms; all matrices have two adapters."""
    q, kv, hidden, ffn = HEADS * DIM, KV_HEADS * DIM, HIDDEN, 96
    shapes = [
        (q, hidden),
        (kv, hidden),
        (kv, hidden),
        (hidden, q),
        (3, hidden),
        *[(ffn, hidden), (ffn, hidden), (hidden, ffn)] * 3,
    ]
    matrices = [
        model_matrix(KINDS.F32 if i == 4 else kind, rows, cols, 30 + i) for i, (rows, cols) in enumerate(shapes)
    ]
    norms = [fenced(normal(seed, hidden)) for seed in (50, 51)]
    views = [weight(m, *layer_pairs(i, m)) for i, m in enumerate(matrices)]
    experts = ffi.new("pmx_weight[]", [view[0] for view, _ in views[5:]])
    struct = ffi.new("pmx_layer *")
    struct.attn_norm, struct.ffn_norm = (pointer(norm, "float *") for norm in norms)
    struct.q, struct.k, struct.v, struct.output, struct.router = (view[0] for view, _ in views[:5])
    struct.experts, struct.n_experts, struct.n_experts_used = experts, 3, 2
    struct.n_heads, struct.n_kv_heads, struct.head_dim, struct.hidden, struct.eps = HEADS, KV_HEADS, DIM, hidden, 1e-5
    call.value("layer", struct, views, experts, norms)
    return struct, matrices, norms


def layer_attention(ctx: ops.Context, kind: GGMLQuantizationType = KINDS.Q8_0) -> Call:
    call = Call("pmx_layer_attention", ctx)
    x = normal(52, N, HIDDEN)
    _, m, norms = layer_struct(Call("", ctx), kind)
    cosines, sines = oracle.rope_table(1e4 ** -(np.arange(DIM // 2) / DIM), np.arange(N, dtype=np.int32))
    n = oracle.rms_norm(x, norms[0], 1e-5)
    q = oracle.rope(product(n, 0, m[0]).reshape(N, HEADS, DIM), cosines, sines)
    k = oracle.rope(product(n, 1, m[1]).reshape(N, KV_HEADS, DIM), cosines, sines)
    v = product(n, 2, m[2]).reshape(N, KV_HEADS, DIM)
    y = x + product(oracle.attention(q, k, v).reshape(N, -1), 3, m[3])
    normed = oracle.rms_norm(y, norms[1], 1e-5)
    ids, weights = oracle.route(product(normed, 4, m[4]), 2)
    call.out("x", "float *", np.float32, y, x).out("normed", "float *", np.float32, normed)
    call.out("ids", "int32_t *", np.int32, ids).out("weights", "float *", np.float32, weights)
    call.array("cosines", "float *", cosines).array("sines", "float *", sines)
    call.array("scales", "float *", SCALES).value("n_adapters", 2)
    one_run(call, N, 0, [0]).value("n_tokens", N).batch()
    layer_struct(call, kind)
    want_k, want_v = np.zeros((1, KV_HEADS, DIM, 64), np.float32), np.zeros((1, KV_HEADS, 64, DIM), np.float32)
    want_k[0, :, :, :N], want_v[0, :, :N] = k.transpose(1, 2, 0), v.transpose(1, 0, 2)
    kept = [Guarded(want.shape, np.float32, np.zeros_like(want)) for want in (want_k, want_v)]
    call.outputs += kept
    call.want += [want_k, want_v]
    cache_struct(call, kept[0].array, kept[1].array, DIM)
    return call.value("observer", ffi.NULL)


def layer_experts(ctx: ops.Context, kind: GGMLQuantizationType = KINDS.Q8_0) -> Call:
    call = Call("pmx_layer_experts", ctx)
    x, normed = normal(53, N, HIDDEN), normal(54, N, HIDDEN)
    ids, weights = oracle.route(normal(55, N, 3), 2)
    _, m, _ = layer_struct(Call("", ctx), kind)
    want = experts(x, normed, ids, weights, m)
    call.out("x", "float *", np.float32, want, x).array("normed", "float *", normed)
    call.array("scales", "float *", SCALES).value("n_adapters", 2)
    call.array("ids", "int32_t *", ids).array("weights", "float *", weights).value("n_tokens", N).batch()
    layer_struct(call, kind)
    return call.value("observer", ffi.NULL)


def run_layers(ctx: ops.Context, kind: GGMLQuantizationType = KINDS.Q8_0) -> Call:
    """One layer, both halves."""
    half, call = layer_attention(ctx, kind), Call("pmx_run_layers", ctx)
    x, normed, ids, weights, *kv = half.want
    _, m, _ = layer_struct(Call("", ctx), kind)
    y = experts(x, normed, ids, weights, m)
    call.outputs, call.want = half.outputs, [y, normed, ids, weights, *kv]
    struct = ffi.new("pmx_layers *")
    one_layer, one_cache = (
        ffi.new("pmx_layer *[]", [half.args["layer"]]),
        ffi.new("pmx_cache *[]", [half.args["cache"]]),
    )
    struct.layers, struct.caches, struct.n_layers = one_layer, one_cache, 1
    chosen = [(ids.astype(np.uint8), "uint8_t *"), (weights, "float *"), (product(normed, 4, m[4]), "float *")]
    for name, (want, ctype) in zip(("choices", "choices_weights", "choices_logits"), chosen, strict=True):
        output = Guarded(want.shape, want.dtype)
        call.outputs.append(output)
        call.want.append(want)
        setattr(struct, name, pointer(output.array, ctype))
    call.value("batch", half.args["batch"], half)
    call._members = half._members
    return call.value("layers", struct, one_layer, one_cache)


N_VOCAB, ALL_BANNED = 70, 3


def read(ctx: ops.Context) -> Call:
    data = generator(40).integers(0, 256, 9001 * 64, np.uint8)  # three items, the last one of a part
    want = data.view(np.uint32)[::16].sum(dtype=np.uint32)[None]
    call = Call("pmx_read", ctx).out("sum", "uint32_t *", np.uint32, want, np.zeros(1, np.uint32))
    return call.array("data", "void *", data).value("n", 9001).value("n_streams", 2).value("hint", 0)


def sample(ctx: ops.Context) -> Call:
    """Rows with all that a sampler points to, plain ones, and one whose every token is banned."""
    logits, text = 3 * normal(60, N, N_VOCAB), np.array([5, 69, 8, 5, 69], np.int32)
    full = SamplingParameters(
        seed=0,
        temperature=0.7,
        repetition_penalty=1.2,
        top_p=0.9,
        penalty_window=3,
        logit_bias={7: 3.0, 69: -math.inf},
        dry_multiplier=0.8,
        dry_breakers=[[3], [4, 4]],
        bad_words=[[6], [5, 69, 9]],
    )
    parameters = [full, *[SamplingParameters(seed=i, top_k=0, top_p=1.0) for i in range(1, N)]]
    arrays = {  # the first row's
        "bias_ids": np.array([7, 69], np.int32),
        "bias": np.array([3, -np.inf], np.float32),
        "end_ids": np.array([1, 2], np.int32),
        "mask": np.array([0xFFFFFFF7, 0x7FFFFFFF, 63], np.uint32),
        "dry_breaker_tokens": np.array([1 << 3, 0, 0], np.uint32),
        "text": text,
    }
    sequences = {"bad_words": ([6, 5, 69, 9], [1, 4]), "dry_breakers": ([4, 4], [2])}
    keep: list[Any] = [ffi.new("pmx_sampler *") for _ in parameters]

    def put(struct: Any, name: str, array: NDArray[Any]) -> None:
        keep.append(fenced(array))
        setattr(struct, name, ffi.cast(ffi.typeof(getattr(struct, name)), keep[-1].ctypes.data))

    want = []
    for i, (p, struct) in enumerate(zip(parameters, keep, strict=False)):
        oracle_row = OracleSampler(p, eos_ids=arrays["end_ids"].tolist(), ignore_eos=i == 0)
        state = oracle_row.bits.state["state"]
        for words, number in ((struct.state.state, state["state"]), (struct.state.increment, state["inc"])):
            words[0], words[1] = number & (1 << 64) - 1, number >> 64
        numbers = ("temperature", "repetition_penalty", "top_k", "top_p", "typical_p", "penalty_window")
        numbers += ("dry_multiplier", "dry_base", "dry_allowed_length", "xtc_threshold", "mirostat_eta")
        set_members(struct, {name: getattr(p, name) for name in numbers})
        if i == 0:
            for name, array in arrays.items():
                put(struct, name, array)
            for name, (ids, ends) in sequences.items():
                put(getattr(struct, name), "ids", np.array(ids, np.int32))
                put(getattr(struct, name), "ends", np.array(ends, np.int64))
                getattr(struct, name).n = len(ends)
            set_members(struct, {"n_bias": 2, "n_end": 2, "min_text": 9, "n_text": len(text)})
        if i == ALL_BANNED:
            put(struct, "mask", np.zeros(3, np.uint32))
        want.append(0 if i == ALL_BANNED else oracle_row.sample(logits[i], text, arrays["mask"] if i == 0 else None))
    statuses = np.array([lib.PMX_EBANNED if i == ALL_BANNED else lib.PMX_OK for i in range(N)], np.int32)
    call = Call("pmx_sample", ctx).out("ids", "int32_t *", np.int32, np.array(want, np.int32))
    call.out("statuses", "int32_t *", np.int32, statuses).array("logits", "float *", logits)
    call.value("samplers", ffi.new("pmx_sampler *[]", keep[:N]), *keep)
    return call.value("n_rows", N).value("n_vocab", N_VOCAB)


CALLS: list[Callable[[ops.Context], Call]] = [
    *(rms_norm, quantize_activations, matmul, embed, exp, silu_mul, rope_table, rope),
    *(cache_write, attention, route, encode, read, sample, layer_attention, layer_experts, run_layers),
]

every_call = pytest.mark.parametrize("make", CALLS, ids=lambda make: make.__name__)
