"""The two calls of a layer: attention with the router, and the experts. Every kernel equals the
oracle, observed or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from pymixtral import ops
from pymixtral.arrays import F32, I32
from pymixtral.errors import InvalidArgumentError
from pymixtral.files.types import Matrix, block_weights
from pymixtral.model.config import ModelConfig
from pymixtral.model.weights import Expert, LayerWeights
from pymixtral.ops.native import ffi
from pymixtral.reference import oracle
from support.variants import (
    FIRST_CONTEXT,
    TYPES,
    every_context,
    every_type,
    generator,
    key_pages,
    model_matrix,
    normal,
    row_of,
    stored_bytes,
    value_pages,
)

KINDS = GGMLQuantizationType
HEAD_DIM = 32


@dataclass(frozen=True)
class Shape:
    hidden: int = 64
    ffn: int = 96
    n_experts: int = 4
    n_used: int = 2
    kinds: tuple[GGMLQuantizationType, ...] = (KINDS.Q8_0,)
    """Types of the matrices, by turns."""
    window: int = 0


class Example:
    """A layer of random weights, and 140 tokens' inputs for it."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        hidden, ffn = shape.hidden, shape.ffn
        kinds = self._kinds()

        def matrix(rows: int, cols: int) -> Matrix:
            kind, number = next(kinds)
            return model_matrix(kind if cols % block_weights(kind) == 0 else KINDS.F32, rows, cols, 100 + number)

        self.weights = LayerWeights(
            attn_norm=np.float32(1) + normal(1, hidden) * np.float32(0.1),
            ffn_norm=np.float32(1) + normal(2, hidden) * np.float32(0.1),
            q=matrix(4 * HEAD_DIM, hidden),
            k=matrix(2 * HEAD_DIM, hidden),
            v=matrix(2 * HEAD_DIM, hidden),
            output=matrix(hidden, 4 * HEAD_DIM),
            router=Matrix.from_float(normal(3, shape.n_experts, hidden) / np.float32(4))
            if shape.n_experts > 1
            else None,
            experts=[(matrix(ffn, hidden), matrix(ffn, hidden), matrix(hidden, ffn)) for _ in range(shape.n_experts)],
        )
        self.config = ModelConfig(
            name="layer",
            n_vocab=1,
            n_ctx_train=1,
            hidden=hidden,
            n_layers=1,
            ffn=ffn,
            n_heads=4,
            n_kv_heads=2,
            head_dim=HEAD_DIM,
            n_experts=shape.n_experts,
            n_experts_used=shape.n_used,
            rms_eps=1e-5,
            rope_base=1e4,
            window=shape.window,
        )
        self.layer = layer_of(self.weights, self.config)
        self.x, self.normed = normal(4, 140, hidden), normal(5, 140, hidden)
        self.ids, self.route_weights = oracle.route(normal(6, 140, shape.n_experts) * np.float32(2), shape.n_used)
        self.tables = oracle.rope_table(self.config.rope_frequencies(), np.arange(140, dtype=np.int32))

    def _kinds(self) -> Iterator[tuple[GGMLQuantizationType, int]]:
        number = 0
        while True:
            yield self.shape.kinds[number % len(self.shape.kinds)], number
            number += 1


def layer_of(weights: LayerWeights, config: ModelConfig) -> ops.Layer:
    return ops.Layer(
        attn_norm=weights.attn_norm,
        ffn_norm=weights.ffn_norm,
        q=weights.q,
        k=weights.k,
        v=weights.v,
        output=weights.output,
        router=weights.router,
        experts=weights.experts,
        n_experts_used=config.n_experts_used,
        n_heads=config.n_heads,
        n_kv_heads=config.n_kv_heads,
        window=config.window,
        eps=config.rms_eps,
    )


example = cache(Example)
FREQUENCIES = np.ones(HEAD_DIM // 2)  # of no importance to experts


@cache
def experts_output(shape: Shape) -> F32:
    e = example(shape)
    return oracle.experts(e.x, e.normed, e.ids, e.route_weights, e.weights.experts)


def run_experts(
    ctx: ops.Context,
    layer: ops.Layer,
    x: F32,
    normed: F32,
    ids: I32,
    weights: F32,
    observer: ops.Observer | None = None,
) -> F32:
    """x plus the experts' outputs."""
    batch = ops.Batch(layer, FREQUENCIES)
    batch.begin_rows(len(x))
    batch.x[:], batch.normed[:], batch.ids[:], batch.weights[:] = x, normed, ids, weights
    ops.layer_experts(ctx, batch, layer, observer)
    return batch.x


# --- Experts -----------------------------------------------------------------------------------------------------

SHAPES = [
    Shape(n_experts=1, n_used=1),
    Shape(n_experts=2, n_used=1, ffn=32),
    Shape(n_experts=3, n_used=3, hidden=96),
    Shape(n_experts=8, n_used=2, hidden=96, ffn=160, kinds=(KINDS.Q4_0,)),
    Shape(n_experts=8, n_used=2, hidden=40, ffn=72, kinds=(KINDS.F32,)),
    Shape(n_experts=5, n_used=4, hidden=33, ffn=67, kinds=(KINDS.F16, KINDS.F32)),
    Shape(n_experts=16, n_used=4, kinds=(KINDS.Q8_0, KINDS.F16, KINDS.Q4_0, KINDS.F32)),
    Shape(n_experts=6, n_used=1, hidden=256, ffn=256, kinds=tuple(TYPES)),
    Shape(n_experts=64, n_used=7, hidden=32, ffn=32),
    *[Shape(n_experts=7, n_used=k, hidden=32, ffn=64) for k in range(1, 8)],
]


@every_context
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.n_experts}x{s.n_used}-{s.hidden}-{s.ffn}")
def test_experts(ctx: ops.Context, shape: Shape) -> None:
    e = example(shape)
    want = experts_output(shape)
    assert np.abs(want - e.x).max() > 0.1
    for n in (1, 2, 3, 5, 9, 33, 140):
        last = slice(140 - n, 140)
        got = run_experts(ctx, e.layer, e.x[last], e.normed[last], e.ids[last], e.route_weights[last])
        np.testing.assert_array_equal(got, want[last])


@every_context
@every_type
def test_experts_of_every_type(ctx: ops.Context, kind: GGMLQuantizationType) -> None:
    shape = (
        Shape(hidden=256, ffn=256, n_experts=3, kinds=(kind,))
        if block_weights(kind) == 256
        else Shape(n_experts=3, kinds=(kind,))
    )
    e = example(shape)
    for rows in (slice(0, 1), slice(1, 7), slice(0, 140)):
        got = run_experts(ctx, e.layer, e.x[rows], e.normed[rows], e.ids[rows], e.route_weights[rows])
        np.testing.assert_array_equal(got, experts_output(shape)[rows])


@every_context
def test_all_tokens_to_one_expert(ctx: ops.Context) -> None:
    e = example(Shape(n_experts=4, n_used=1))
    for expert in (0, 3):
        ids, weights = np.full((140, 1), expert, np.int32), np.ones((140, 1), np.float32)
        want = oracle.experts(e.x, e.normed, ids, weights, e.weights.experts)
        np.testing.assert_array_equal(run_experts(ctx, e.layer, e.x, e.normed, ids, weights), want)


@every_context
def test_an_expert_of_weight_zero_adds_nothing(ctx: ops.Context) -> None:
    e = example(Shape(n_experts=4, n_used=2))
    ids, weights = np.array([[1, 2]] * 140, np.int32), np.array([[1, 0]] * 140, np.float32)
    want = e.x + oracle.feed_forward(e.normed, *e.weights.experts[1])
    np.testing.assert_array_equal(run_experts(ctx, e.layer, e.x, e.normed, ids, weights), want)


@every_context
def test_ids_that_are_no_choice_are_refused(ctx: ops.Context) -> None:
    e = example(Shape(n_experts=4, n_used=2))
    for bad in ([2, 1], [1, 1], [-1, 1], [1, 4], [-(1 << 31), (1 << 31) - 1], [3, 1 << 30]):
        ids = e.ids[:9].copy()
        ids[6] = bad
        with pytest.raises(InvalidArgumentError, match="row 6"):
            run_experts(ctx, e.layer, e.x[:9], e.normed[:9], ids, e.route_weights[:9])


@every_context
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [KINDS.F32, KINDS.Q4_0], ids=["f32", "q4_0"])
def test_nonfinite_inputs_of_experts_name_the_row(ctx: ops.Context, value: float, kind: GGMLQuantizationType) -> None:
    e = example(Shape(kinds=(kind,)))
    for which in ("x", "normed", "weights"):
        arrays = {"x": e.x.copy(), "normed": e.normed.copy(), "ids": e.ids, "weights": e.route_weights.copy()}
        arrays[which][90, 1] = arrays[which][120, 0] = value
        assert row_of(run_experts, ctx, e.layer, *arrays.values()) == 90


@every_context
@pytest.mark.parametrize("which", [0, 1, 2], ids=["gate", "up", "down"])
@pytest.mark.parametrize("kind", [KINDS.F32, KINDS.Q8_0], ids=["f32", "q8_0"])
def test_a_broken_expert_names_a_row_that_met_it(ctx: ops.Context, which: int, kind: GGMLQuantizationType) -> None:
    e = example(Shape(kinds=(kind,)))
    experts = [tuple(Matrix(m.type, m.data.copy()) for m in expert) for expert in e.weights.experts]
    number = np.array([np.nan], np.float32 if kind == KINDS.F32 else np.float16).view(np.uint8)
    experts[2][which].data[31, : len(number)] = number
    layer = layer_of(_replace_experts(e.weights, experts), e.config)
    met = (e.ids == 2).any(axis=1)
    assert row_of(run_experts, ctx, layer, e.x, e.normed, e.ids, e.route_weights) == met.argmax()
    others = ~met
    got = run_experts(ctx, layer, e.x[others], e.normed[others], e.ids[others], e.route_weights[others])
    np.testing.assert_array_equal(got, experts_output(e.shape)[others])


def _replace_experts(w: LayerWeights, experts: list[tuple[Matrix, ...]]) -> LayerWeights:
    triples: list[Expert] = [(gate, up, down) for gate, up, down in experts]
    return LayerWeights(w.attn_norm, w.ffn_norm, w.q, w.k, w.v, w.output, w.router, triples)


# --- The attention half ------------------------------------------------------------------------------------------

N = 75


@cache
def attention_output(shape: Shape, cache_dtype: Any) -> tuple[F32, F32, I32, F32]:
    """x, normed, ids and weights after the first half of the layer for the first N tokens."""
    e = example(shape)
    cosines, sines = e.tables
    x = oracle.layer_attention(e.x[:N], e.weights, e.config, cosines[:N], sines[:N], cache_dtype)
    normed = oracle.rms_norm(x, e.weights.ffn_norm, e.config.rms_eps)
    if e.weights.router is None:
        return x, normed, np.zeros((N, 1), np.int32), np.ones((N, 1), np.float32)
    return x, normed, *oracle.route(oracle.matmul(normed, e.weights.router), shape.n_used)


def run_attention(
    ctx: ops.Context, e: Example, cache_dtype: Any, pieces: list[int], observer: ops.Observer | None = None
) -> tuple[NDArray[np.generic], ...]:
    """The first N tokens, cut into pieces."""
    pages = stored_bytes((3, 64, 2, HEAD_DIM), cache_dtype)
    kv, first, outputs = ops.CacheLayer(key_pages(pages), value_pages(pages)), 0, []
    batch = ops.Batch(e.layer, e.config.rope_frequencies())
    for n in pieces:
        batch.begin(ctx, [(n, first, np.array([2, 0], np.int32))])
        batch.fill(e.x[first : first + n])
        ops.layer_attention(ctx, batch, e.layer, kv, observer)
        outputs.append([array.copy() for array in (batch.x, batch.normed, batch.ids, batch.weights)])
        first += n
    return tuple(np.concatenate(parts) for parts in zip(*outputs, strict=True))


@every_context
@pytest.mark.parametrize("cache_dtype", [np.float32, np.float16, oracle.Q8_0], ids=["f32", "f16", "q8_0"])
@pytest.mark.parametrize(
    "shape",
    [
        Shape(),
        Shape(hidden=256, ffn=256, kinds=tuple(TYPES)),
        Shape(n_experts=1, n_used=1, kinds=(KINDS.Q4_0,)),
        Shape(n_experts=16, n_used=4, hidden=40, kinds=(KINDS.F16,), window=20),
    ],
    ids=["q8_0", "every-type", "dense", "window"],
)
def test_attention_and_router(ctx: ops.Context, shape: Shape, cache_dtype: Any) -> None:
    for pieces in ([N], [1, 1, 64, 9]):
        for got, want in zip(
            run_attention(ctx, example(shape), cache_dtype, pieces), attention_output(shape, cache_dtype), strict=True
        ):
            np.testing.assert_array_equal(got, want)


# --- Experts of weight 0 -----------------------------------------------------------------------------------------


@every_context
@pytest.mark.parametrize(
    "shape", [Shape(n_experts=8, n_used=3), Shape(n_experts=5, n_used=4, hidden=33, ffn=67, kinds=(KINDS.F32,))]
)
def test_experts_of_weight_0_are_not_computed(ctx: ops.Context, shape: Shape) -> None:
    e = example(shape)
    weights = np.where(generator(7).random(e.route_weights.shape) < 0.5, 0, e.route_weights).astype(np.float32)
    expected = oracle.experts(e.x, e.normed, e.ids, weights, e.weights.experts)
    observer = ops.Observer(e.layer)
    found = run_experts(ctx, e.layer, e.x, e.normed, e.ids, weights, observer)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(observer.n_tokens, np.bincount(e.ids[weights > 0], minlength=shape.n_experts))
    nothing = run_experts(ctx, e.layer, e.x, e.normed, e.ids, np.zeros_like(weights))
    np.testing.assert_array_equal(nothing, e.x)


# --- Observers ---------------------------------------------------------------------------------------------------


OBSERVED = ["qkv_input", "output_input", "expert_input", "down_input", "n_tokens", "output_norms"]


def squares(x: F32) -> NDArray[np.float64]:
    result: NDArray[np.float64] = (x.astype(np.float64) ** 2).sum(axis=0)
    return result


def weighted_norms(e: Example) -> NDArray[np.float64]:
    """Of each expert, the sum over its tokens of weight times norm of the output."""
    sums = np.zeros(e.shape.n_experts)
    for i, expert in enumerate(e.weights.experts):
        rows, slots = np.nonzero(e.ids == i)
        norms = np.linalg.norm(oracle.feed_forward(e.normed[rows], *expert).astype(np.float64), axis=1)
        sums[i] = e.route_weights[rows, slots].astype(np.float64) @ norms
    return sums


@every_context
@pytest.mark.parametrize(
    "shape", [Shape(), Shape(n_experts=5, n_used=3, hidden=40, ffn=72, kinds=(KINDS.F32,))], ids=["q8_0", "f32"]
)
def test_an_observer_sums_squares_and_counts(ctx: ops.Context, shape: Shape) -> None:
    e = example(shape)
    observer = ops.Observer(e.layer)
    for _ in range(2):  # what is there is added to
        observed = run_experts(ctx, e.layer, e.x, e.normed, e.ids, e.route_weights, observer)
        np.testing.assert_array_equal(observed, experts_output(shape))
    assert not observer.qkv_input.any()
    np.testing.assert_array_equal(observer.n_tokens, 2 * np.bincount(e.ids.ravel(), minlength=shape.n_experts))
    for i, (gate, up, _) in enumerate(e.weights.experts):
        seen = e.normed[(e.ids == i).any(axis=1)]
        hidden = oracle.silu_mul(oracle.matmul(seen, gate), oracle.matmul(seen, up))
        np.testing.assert_allclose(observer.expert_input[i], 2 * squares(seen), rtol=1e-12)
        np.testing.assert_allclose(observer.down_input[i], 2 * squares(hidden), rtol=1e-12)
    one = ops.Observer(e.layer)
    for _ in range(2):
        run_experts(FIRST_CONTEXT, e.layer, e.x, e.normed, e.ids, e.route_weights, one)
    np.testing.assert_array_equal(observer.output_norms, one.output_norms)
    np.testing.assert_allclose(observer.output_norms, 2 * weighted_norms(e), rtol=1e-12)


@every_context
def test_an_observer_of_attention_sums_squares(ctx: ops.Context) -> None:
    shape = Shape()
    e = example(shape)
    observer = ops.Observer(e.layer)
    for got, want in zip(
        run_attention(ctx, e, np.float32, [1, 50, 24], observer), attention_output(shape, np.float32), strict=True
    ):
        np.testing.assert_array_equal(got, want)
    n = oracle.rms_norm(e.x[:N], e.weights.attn_norm, e.config.rms_eps)
    np.testing.assert_allclose(observer.qkv_input, squares(n), rtol=1e-12)
    tables = [t[:N] for t in e.tables]
    q = oracle.rope(oracle.matmul(n, e.weights.q).reshape(N, 4, HEAD_DIM), *tables)
    k = oracle.rope(oracle.matmul(n, e.weights.k).reshape(N, 2, HEAD_DIM), *tables)
    attended = oracle.attention(q, k, oracle.matmul(n, e.weights.v).reshape(N, 2, HEAD_DIM)).reshape(N, -1)
    np.testing.assert_allclose(observer.output_input, squares(attended), rtol=1e-12)
    assert not observer.expert_input.any()
    assert not observer.n_tokens.any()


@every_context
@pytest.mark.parametrize("left_out", OBSERVED)
def test_any_part_of_an_observer_may_be_absent(ctx: ops.Context, left_out: str) -> None:
    e = example(Shape())
    whole, part = ops.Observer(e.layer), ops.Observer(e.layer)
    setattr(part.struct, left_out, ffi.NULL)
    for observer in (whole, part):
        run_attention(ctx, e, np.float32, [9], observer)
        run_experts(ctx, e.layer, e.x, e.normed, e.ids, e.route_weights, observer)
    for name in OBSERVED:
        np.testing.assert_array_equal(getattr(part, name), 0 if name == left_out else getattr(whole, name))
        assert getattr(whole, name).any()


def begun(e: Example, n: int) -> ops.Batch:
    """A batch of the first n rows, which are one sequence's, and the router's choice for them."""
    batch = ops.Batch(e.layer, e.config.rope_frequencies())
    batch.begin(FIRST_CONTEXT, [(n, 0, np.zeros(1, np.int32))])
    batch.x[:], batch.normed[:], batch.ids[:], batch.weights[:] = e.x[:n], e.normed[:n], e.ids[:n], e.route_weights[:n]
    return batch


def test_batches_and_observers_of_another_layer_are_refused() -> None:
    e, other = example(Shape()), example(Shape(n_used=3))
    batch = begun(e, 3)
    with pytest.raises(InvalidArgumentError, match="a batch for this layer"):
        ops.layer_experts(FIRST_CONTEXT, batch, other.layer)
    for shape in (Shape(n_experts=5), Shape(ffn=32), Shape(hidden=96)):
        with pytest.raises(InvalidArgumentError, match="observer"):
            ops.layer_experts(FIRST_CONTEXT, batch, e.layer, ops.Observer(example(shape).layer))
    for wrong in (e.x[:2], e.x[:3, :-1]):
        with pytest.raises(InvalidArgumentError, match="x: expected shape"):
            batch.fill(wrong)


def test_frequencies_or_rows_that_do_not_fit_are_refused() -> None:
    e = example(Shape())
    kv = ops.CacheLayer(np.zeros((1, 2, HEAD_DIM, 64), np.float32), np.zeros((1, 2, 64, HEAD_DIM), np.float32))
    batch = ops.Batch(e.layer, e.config.rope_frequencies()[:-1])
    batch.begin(FIRST_CONTEXT, [(3, 0, np.zeros(1, np.int32))])
    with pytest.raises(InvalidArgumentError, match="rope's frequencies: expected shape"):
        ops.layer_attention(FIRST_CONTEXT, batch, e.layer, kv)
    batch = begun(e, 3)
    batch.keep(slice(1, None))
    with pytest.raises(InvalidArgumentError, match="rows of the batch's runs"):
        ops.layer_attention(FIRST_CONTEXT, batch, e.layer, kv)


@pytest.mark.parametrize(
    "rows", [slice(None), slice(2, None), slice(-1, None), slice(0, 0), slice(1, 9, 3), np.array([7, 0, 3, 3])], ids=str
)
def test_rows_that_are_kept(rows: Any) -> None:
    e, n = example(Shape()), 9
    batch = begun(e, n)
    batch.keep(rows)
    ops.layer_experts(FIRST_CONTEXT, batch, e.layer)
    np.testing.assert_array_equal(batch.x, experts_output(Shape())[:n][rows])


def test_a_batch_serves_one_pass_after_the_other() -> None:
    ctx, e = FIRST_CONTEXT, example(Shape())
    whole = run_attention(ctx, e, np.float32, [N])
    kv = ops.CacheLayer(np.zeros((2, 2, HEAD_DIM, 64), np.float32), np.zeros((2, 2, 64, HEAD_DIM), np.float32))
    batch, first = ops.Batch(e.layer, e.config.rope_frequencies()), 0
    for n in [1, 1, 5, 1, 30, 2, 1, 20, 14]:
        batch.begin(ctx, [(n, first, np.arange(2, dtype=np.int32))])
        batch.fill(e.x[first : first + n])
        ops.layer_attention(ctx, batch, e.layer, kv)
        for found, expected in zip((batch.x, batch.normed, batch.ids, batch.weights), whole, strict=True):
            np.testing.assert_array_equal(found, expected[first : first + n])
        first += n
    assert first == N


def test_matrices_that_do_not_fit_are_refused() -> None:
    e = example(Shape())
    good = e.weights.experts[0]
    wrong = model_matrix(KINDS.Q8_0, 64, 64, 1)
    for which in range(3):
        expert = [*good[:which], wrong, *good[which + 1 :]]
        layer = layer_of(_replace_experts(e.weights, [good, good, good, tuple(expert)]), e.config)
        with pytest.raises(
            InvalidArgumentError, match=rf"^layer->experts\[{9 + which}\].rows, cols: .* found 64 x 64$"
        ):
            run_experts(FIRST_CONTEXT, layer, e.x, e.normed, e.ids, e.route_weights)


@pytest.mark.parametrize("failing", range(1, 8))
def test_a_batch_that_found_no_memory_grows_anew(failing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of its arrays must not be taken for all of them: C would write behind the short ones."""
    e = example(Shape())
    batch, empty, calls = begun(e, 3), np.empty, iter(range(1, 100))

    def short(*arguments: Any) -> Any:
        if next(calls) == failing:
            raise MemoryError
        return empty(*arguments)

    pages = np.zeros(1, np.int32)
    with monkeypatch.context() as patch:
        patch.setattr(np, "empty", short)
        with pytest.raises(MemoryError):
            batch.begin(FIRST_CONTEXT, [(40, 0, pages)])
    kv = ops.CacheLayer(np.zeros((1, 2, HEAD_DIM, 64), np.float32), np.zeros((1, 2, 64, HEAD_DIM), np.float32))
    batch.begin(FIRST_CONTEXT, [(40, 0, pages)])
    batch.fill(e.x[:40])
    ops.layer_attention(FIRST_CONTEXT, batch, e.layer, kv)
    np.testing.assert_array_equal(batch.x, run_attention(FIRST_CONTEXT, e, np.float32, [N])[0][:40])
