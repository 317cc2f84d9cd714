"""Low-rank adapters: what they add equals the oracle's, whichever rows they count in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from pymixtral import ops
from pymixtral.arrays import F32, I32
from pymixtral.errors import CanceledError, InvalidArgumentError
from pymixtral.files.names import TensorName
from pymixtral.files.types import Matrix, block_weights
from pymixtral.model.adapter import Adapter, LowRank
from pymixtral.ops.native import ffi
from pymixtral.reference import oracle
from support.layers import HEAD_DIM, Example, Shape, layer_of
from support.low_rank import adapter_for, low_rank, scales_for
from support.variants import FIRST_CONTEXT, every_context, every_type, generator, matrix, model_matrix, normal, row_of

KINDS = GGMLQuantizationType
TILE = 256  # tokens, PMX_TOKEN_BLOCK


class Adapted:
    """A matrix with adapters of some ranks, None for an adapter that has no pair for it."""

    def __init__(self, w: Matrix, ranks: Sequence[int | None]) -> None:
        self.w, self.n = w, len(ranks)
        self.pairs = {i: low_rank(70 + 2 * i, rank, *w.shape) for i, rank in enumerate(ranks) if rank}
        self.bound = bound(w, self.pairs)

    def expected(self, x: F32, scales: F32, planes: int = 1) -> F32:
        return oracle.adapted(oracle.matmul(x, self.w, planes), x, [(p, scales[:, i]) for i, p in self.pairs.items()])


def bound(w: Matrix, pairs: dict[int, LowRank]) -> ops.BoundMatrix:
    return ops.BoundMatrix(w, [ops.Pair(i, *pair) for i, pair in pairs.items()])


# --- One matrix --------------------------------------------------------------------------------------------------


@every_context
@pytest.mark.parametrize("ranks", [(1,), (3, 8), (16, None, 33), (1, 7, 2, 9, 4)], ids=str)
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (7, 9), (67, 33), (130, 257)], ids=str)
def test_products_of_any_size(ctx: ops.Context, ranks: tuple[int | None, ...], rows: int, cols: int) -> None:
    one = Adapted(model_matrix(KINDS.F32, rows, cols, 1), ranks)
    x, scales = normal(2, 61, cols), scales_for(3, 61, one.n)
    want = one.expected(x, scales)
    for n in (1, 2, 3, 5, 13, 49, 61):
        for end in (n, 61):
            some = slice(end - n, end)
            np.testing.assert_array_equal(ops.matmul(ctx, x[some], one.bound, scales[some]), want[some])


@every_context
def test_more_tokens_than_a_tile(ctx: ops.Context) -> None:
    one = Adapted(model_matrix(KINDS.Q8_0, 70, 64, 4), (5, 3))
    x, scales = normal(5, 2 * TILE + 1, 64), scales_for(6, 2 * TILE + 1, 2)
    want = one.expected(x, scales)
    for n in (TILE - 1, TILE, TILE + 1, 2 * TILE + 1):
        np.testing.assert_array_equal(ops.matmul(ctx, x[:n], one.bound, scales[:n]), want[:n])


@every_context
@every_type
def test_matrices_of_every_type(ctx: ops.Context, kind: GGMLQuantizationType) -> None:
    one = Adapted(model_matrix(kind, 21, max(96, block_weights(kind)), 7), (3, 8))
    x, scales = normal(8, 40, one.w.cols), scales_for(9, 40, 2)
    want = one.expected(x, scales)
    assert np.abs(want - oracle.matmul(x, one.w)).max() > 0.01
    for some in (slice(0, 1), slice(3, 8), slice(0, 40)):
        np.testing.assert_array_equal(ops.matmul(ctx, x[some], one.bound, scales[some]), want[some])


@every_context
def test_activations_of_two_planes(ctx: ops.Context) -> None:
    one = Adapted(model_matrix(KINDS.Q4_K, 70, 512, 10), (4,))
    x, scales = normal(11, 150, 512), scales_for(12, 150, 1)
    ctx.planes = 2
    try:
        np.testing.assert_array_equal(ops.matmul(ctx, x, one.bound, scales), one.expected(x, scales, 2))
    finally:
        ctx.planes = 1


@every_context
def test_numbers_of_all_sizes(ctx: ops.Context) -> None:
    g = generator(13)
    w = matrix(KINDS.F32, 19, 40, 14)
    a, b = (np.ldexp(normal(n, 5, n), g.integers(-40, 12, (5, n))).astype(np.float32) for n in (40, 19))
    pair = LowRank(a, b)
    x, scales = normal(17, 30, 40), np.ldexp(normal(18, 30, 1), g.integers(-60, 9, (30, 1))).astype(np.float32)
    want = oracle.adapted(oracle.matmul(x, w), x, [(pair, scales[:, 0])])
    np.testing.assert_array_equal(ops.matmul(ctx, x, bound(w, {0: pair}), scales), want)


@every_context
def test_a_row_is_the_same_alone_and_without_the_adapters_of_others(ctx: ops.Context) -> None:
    one = Adapted(model_matrix(KINDS.Q5_K, 66, 256, 19), (8, 16, 2))
    x, scales = normal(20, 33, 256), scales_for(21, 33, 3)
    together, plain = ops.matmul(ctx, x, one.bound, scales), ops.matmul(ctx, x, one.w)
    for i in range(33):
        np.testing.assert_array_equal(ops.matmul(ctx, x[i : i + 1], one.bound, scales[i : i + 1])[0], together[i])
    unused = ~scales.any(axis=1)
    assert unused.any()
    np.testing.assert_array_equal(together[unused], plain[unused])
    np.testing.assert_array_equal(ops.matmul(ctx, x, one.bound), plain)
    np.testing.assert_array_equal(ops.matmul(ctx, x, one.bound, np.zeros_like(scales)), plain)


@every_context
def test_numbers_that_overflow_name_a_row_that_uses_them(ctx: ops.Context) -> None:
    w, x = model_matrix(KINDS.Q8_0, 20, 64, 22), normal(23, 30, 64)
    pair = low_rank(24, 3, 20, 64)
    scales = np.zeros((30, 1), np.float32)
    scales[[17, 25]] = 1
    for broken in (LowRank(pair.a * np.float32(np.nan), pair.b), LowRank(pair.a, pair.b * np.float32(np.inf))):
        assert row_of(ops.matmul, ctx, x, bound(w, {0: broken}), scales) == 17
        ops.matmul(ctx, x[:17], bound(w, {0: broken}), scales[:17])
    large = LowRank(np.abs(pair.a) * np.float32(1e20), pair.b)
    assert row_of(ops.matmul, ctx, np.abs(x), bound(w, {0: large}), scales * np.float32(1e20)) == 17


def test_pairs_that_do_not_fit_are_refused() -> None:
    w = model_matrix(KINDS.F32, 20, 64, 25)
    a, b = low_rank(26, 3, 20, 64)
    for pair in ((a[:, 1:], b), (a, b[:, 1:]), (a, b[1:]), (a[1:], b)):
        with pytest.raises(InvalidArgumentError, match="expected shape"):
            ops.BoundMatrix(w, [ops.Pair(0, *pair)])
    x = normal(27, 4, 64)
    for scales in (np.ones((3, 1), np.float32), np.ones(4, np.float32)):
        with pytest.raises(InvalidArgumentError):
            ops.matmul(FIRST_CONTEXT, x, bound(w, {0: LowRank(a, b)}), scales)
    with pytest.raises(InvalidArgumentError, match=r"w->delta->pairs\[0\].adapter: expected ascending columns"):
        ops.matmul(FIRST_CONTEXT, x, bound(w, {1: LowRank(a, b)}), np.ones((4, 1), np.float32))
    with pytest.raises(InvalidArgumentError, match=r"w->delta->pairs\[1\].adapter: expected ascending columns"):
        ops.matmul(FIRST_CONTEXT, x, ops.BoundMatrix(w, [ops.Pair(0, a, b)] * 2), np.ones((4, 1), np.float32))


# --- A layer -----------------------------------------------------------------------------------------------------

N = 75
SHAPES = [
    Shape(),
    Shape(n_experts=1, n_used=1, kinds=(KINDS.Q4_0,)),
    Shape(n_experts=5, n_used=3, hidden=40, ffn=72, kinds=(KINDS.F32,)),
    Shape(n_experts=3, hidden=256, ffn=256, kinds=(KINDS.Q4_K, KINDS.Q6_K, KINDS.Q8_0, KINDS.F16, KINDS.IQ1_S)),
    Shape(n_experts=16, n_used=4, hidden=33, ffn=67, kinds=(KINDS.BF16,)),
]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.n_experts}x{s.n_used}-{s.hidden}-{s.ffn}")


class AdaptedLayer:
    """A layer with three adapters, of all its matrices, of attention alone, and of some of the experts."""

    def __init__(self, shape: Shape) -> None:
        e = self.example = Example(shape)
        whole, attention = adapter_for(e.config, 1, 5), adapter_for(e.config, 2, 9, ("attn_q", "attn_v"))
        some = adapter_for(e.config, 3, 2)
        last = {name: pair for name, pair in some.pairs.items() if name.expert in (None, 1, shape.n_experts - 1)}
        self.adapters = [whole, attention, Adapter(last, "some experts")]
        self.layer = layer_of(e.weights, e.config)
        self.layer.adapt(by_name(self.adapters))
        self.scales = scales_for(28, N, 3)

    def deltas(self, rows: slice = slice(None)) -> oracle.Deltas:
        mixed = self.example.config.n_experts > 1
        scaled = [(adapter, self.scales[rows, i]) for i, adapter in enumerate(self.adapters)]
        return oracle.Deltas(scaled, 0, mixed=mixed)

    def attention(self) -> tuple[F32, F32, F32, I32, F32]:
        """x, normed, the router's logits, ids and weights after the first half."""
        e, d = self.example, self.deltas()
        tables = [table[:N] for table in e.tables]
        x = oracle.layer_attention(e.x[:N], e.weights, e.config, *tables, np.float32, d)
        normed = oracle.rms_norm(x, e.weights.ffn_norm, e.config.rms_eps)
        if e.weights.router is None:
            return x, normed, np.zeros((N, 1)), np.zeros((N, 1), np.int32), np.ones((N, 1), np.float32)
        logits = oracle.adapted(oracle.matmul(normed, e.weights.router), normed, d.of("ffn_gate_inp"))
        return x, normed, logits, *oracle.route(logits, e.config.n_experts_used)

    def experts(self, route_weights: F32, rows: slice = slice(None)) -> F32:
        e = self.example
        inputs = [array[:N][rows] for array in (e.x, e.normed, e.ids, route_weights)]
        return oracle.experts(*inputs, e.weights.experts, deltas=self.deltas(rows))


def by_name(adapters: Sequence[Adapter]) -> dict[TensorName, list[ops.Pair]]:
    names = {name for adapter in adapters for name in adapter.pairs}
    return {n: [ops.Pair(i, *a.pairs[n]) for i, a in enumerate(adapters) if n in a.pairs] for n in names}


def caches(n: int = 1) -> list[ops.CacheLayer]:
    shapes = (2, 2, HEAD_DIM, 64), (2, 2, 64, HEAD_DIM)
    return [ops.CacheLayer(*(np.zeros(shape, np.float32) for shape in shapes)) for _ in range(n)]


def begun(ctx: ops.Context, one: AdaptedLayer, n: int = N, first: int = 0) -> ops.Batch:
    batch = ops.Batch(one.layer, one.example.config.rope_frequencies())
    batch.begin(ctx, [(n, first, np.array([1, 0], np.int32))])
    batch.fill(one.example.x[first : first + n])
    batch.scale(one.scales[first : first + n])
    return batch


def run_experts(
    ctx: ops.Context, one: AdaptedLayer, weights: F32, rows: slice, observer: ops.Observer | None = None
) -> F32:
    e, batch = one.example, ops.Batch(one.layer, one.example.config.rope_frequencies())
    batch.begin_rows(len(e.x[:N][rows]))
    batch.x[:], batch.normed[:], batch.ids[:] = e.x[:N][rows], e.normed[:N][rows], e.ids[:N][rows]
    batch.weights[:] = weights[:N][rows]
    batch.scale(one.scales[rows])
    ops.layer_experts(ctx, batch, one.layer, observer)
    return batch.x


@every_context
@every_shape
def test_attention_and_router(ctx: ops.Context, shape: Shape) -> None:
    one = AdaptedLayer(shape)
    x, normed, _, ids, weights = one.attention()
    for pieces in ([N], [1, 64, 10]):
        (cache,), first = caches(), 0
        for n in pieces:
            batch = begun(ctx, one, n, first)
            ops.layer_attention(ctx, batch, one.layer, cache)
            rows = slice(first, first + n)
            for got, want in ((batch.x, x), (batch.normed, normed), (batch.ids, ids), (batch.weights, weights)):
                np.testing.assert_array_equal(got, want[rows])
            first += n


@every_context
@every_shape
def test_experts(ctx: ops.Context, shape: Shape) -> None:
    one = AdaptedLayer(shape)
    weights = one.example.route_weights
    want = one.experts(weights)
    e = one.example
    plain = oracle.experts(e.x[:N], e.normed[:N], e.ids[:N], weights[:N], e.weights.experts)
    assert np.abs(want - plain).max() > 0.01
    np.testing.assert_array_equal(want[1], plain[1])
    for rows in (slice(0, 1), slice(1, 2), slice(4, 9), slice(0, N)):
        np.testing.assert_array_equal(run_experts(ctx, one, weights, rows), want[rows])


@every_context
def test_experts_of_weight_0_are_not_computed(ctx: ops.Context) -> None:
    one = AdaptedLayer(Shape(n_experts=8, n_used=3))
    weights = np.where(generator(29).random((N, 3)) < 0.5, 0, one.example.route_weights[:N]).astype(np.float32)
    np.testing.assert_array_equal(run_experts(ctx, one, weights, slice(None)), one.experts(weights))


@every_context
def test_observers_see_what_adapters_make(ctx: ops.Context) -> None:
    one = AdaptedLayer(Shape())
    e, observer = one.example, ops.Observer(one.layer)
    got = run_experts(ctx, one, e.route_weights, slice(None), observer)
    np.testing.assert_array_equal(got, one.experts(e.route_weights))
    for i, (gate, up, down) in enumerate(e.weights.experts):
        rows, slots = np.nonzero(e.ids[:N] == i)
        x, d = e.normed[rows], one.deltas().rows(rows)
        g = oracle.adapted(oracle.matmul(x, gate), x, d.of("ffn_gate", i))
        h = oracle.silu_mul(g, oracle.adapted(oracle.matmul(x, up), x, d.of("ffn_up", i)))
        out = oracle.adapted(oracle.matmul(h, down), h, d.of("ffn_down", i)).astype(np.float64)
        np.testing.assert_allclose(observer.down_input[i], (h.astype(np.float64) ** 2).sum(axis=0), rtol=1e-12)
        norms = e.route_weights[rows, slots].astype(np.float64) @ np.linalg.norm(out, axis=1)
        np.testing.assert_allclose(observer.output_norms[i], norms, rtol=1e-12)


@every_context
@pytest.mark.parametrize("rows", [slice(None), slice(-1, None), slice(2, 70, 3), np.array([0, 5, 6])], ids=str)
def test_kept_rows_keep_their_scales(ctx: ops.Context, rows: Any) -> None:
    one = AdaptedLayer(Shape())
    x, normed, logits, ids, weights = one.attention()
    want = oracle.experts(x, normed, ids, weights, one.example.weights.experts, deltas=one.deltas())
    batch, choices = begun(ctx, one), ops.Choices(N, 1, 4, 2, full=True)
    ops.run_layers(ctx, batch, ops.Stack([one.layer]), ops.Stack(caches()), range(1), rows=rows, choices=choices)
    np.testing.assert_array_equal(batch.x, want[rows])
    np.testing.assert_array_equal(choices.logits, logits[:, None])
    np.testing.assert_array_equal(choices.experts, ids[:, None])
    np.testing.assert_array_equal(one.scales, scales_for(28, N, 3))  # the caller's


def test_adapters_that_are_replaced_and_taken_away() -> None:
    one = AdaptedLayer(Shape())
    e, layer = one.example, one.layer
    plain = run_experts(FIRST_CONTEXT, one, e.route_weights, slice(None))
    other = adapter_for(e.config, 9, 3)
    for adapters in ([other], [], one.adapters):
        layer.adapt(by_name(adapters))
        deltas = oracle.Deltas([(a, one.scales[:, i]) for i, a in enumerate(adapters)], 0, mixed=True)
        want = oracle.experts(e.x[:N], e.normed[:N], e.ids[:N], e.route_weights[:N], e.weights.experts, deltas=deltas)
        np.testing.assert_array_equal(run_experts(FIRST_CONTEXT, one, e.route_weights, slice(None)), want)
    np.testing.assert_array_equal(want, plain)


def test_what_a_layer_does_not_have_is_refused() -> None:
    one = AdaptedLayer(Shape())
    pair = ops.Pair(0, *low_rank(30, 2, 64, 64))
    for name in (TensorName("ffn_up", 0), TensorName("ffn_up", 0, expert=4), TensorName("attn_norm", 0)):
        with pytest.raises(InvalidArgumentError, match="expected matrices of the layer"):
            one.layer.adapt({name: [pair]})
    with pytest.raises(InvalidArgumentError, match="expected shape"):
        one.layer.adapt({TensorName("attn_q", 0): [pair]})
    batch = begun(FIRST_CONTEXT, one)
    with pytest.raises(InvalidArgumentError, match="scales: expected shape"):
        batch.scale(one.scales[1:])
    batch.scale(one.scales[:, :2])
    with pytest.raises(InvalidArgumentError, match=r"layer->\w+\.delta->pairs\[\d\]\.adapter: expected ascending"):
        ops.layer_attention(FIRST_CONTEXT, batch, one.layer, caches()[0])
    broken = one.scales.copy()
    broken[3, 1] = np.nan
    batch.scale(broken)
    with pytest.raises(InvalidArgumentError, match="row 3 of batch->scales: expected finite numbers"):
        ops.layer_attention(FIRST_CONTEXT, batch, one.layer, caches()[0])


def test_a_pass_begins_without_scales() -> None:
    one = AdaptedLayer(Shape())
    batch = begun(FIRST_CONTEXT, one)
    assert batch.scales is not None
    assert batch.struct.scales != ffi.NULL
    batch.begin(FIRST_CONTEXT, [(N, 0, np.array([1, 0], np.int32))])
    assert batch.scales is None
    assert batch.struct.scales == ffi.NULL


def test_cancel() -> None:
    one = AdaptedLayer(Shape())
    x = one.attention()[0]
    with ops.Context(2) as ctx:
        ctx.cancel(True)
        with pytest.raises(CanceledError):
            ops.layer_attention(ctx, begun(ctx, one), one.layer, caches()[0])
        ctx.cancel(False)
        batch = begun(ctx, one)
        ops.layer_attention(ctx, batch, one.layer, caches()[0])
        np.testing.assert_array_equal(batch.x, x)
