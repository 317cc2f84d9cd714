"""All layers of a pass in one call."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pymixtral import ops
from pymixtral.errors import CanceledError, InvalidArgumentError, NonFiniteError
from pymixtral.files.types import Matrix
from pymixtral.reference import oracle
from support.layers import HEAD_DIM, Example, Shape, example, layer_of
from support.variants import FIRST_CONTEXT, every_context

N, N_LAYERS = 9, 3


class Pass:
    """Three layers, two of them the same, over the first tokens of an example."""

    def __init__(self, ctx: ops.Context, shape: Shape | None = None) -> None:
        self.ctx, self.example = ctx, example(shape or Shape())
        e = self.example
        self.layers = [e.layer, layer_of(e.weights, e.config), e.layer]
        self.caches = [
            ops.CacheLayer(np.zeros((1, 2, HEAD_DIM, 64), np.float32), np.zeros((1, 2, 64, HEAD_DIM), np.float32))
            for _ in self.layers
        ]
        self.batch = ops.Batch(e.layer, e.config.rope_frequencies())
        self.batch.begin(ctx, [(N, 0, np.zeros(1, np.int32))])
        self.batch.fill(e.x[:N])

    def run(self, which: range = range(N_LAYERS), **options: Any) -> np.ndarray[Any, Any]:
        ops.run_layers(self.ctx, self.batch, ops.Stack(self.layers), ops.Stack(self.caches), which, **options)
        return self.batch.x


def expected(e: Example) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
    """What the oracle says: x, and the router's logits, ids and weights after each layer."""
    cosines, sines = (table[:N] for table in e.tables)
    outputs: tuple[list[Any], list[Any], list[Any], list[Any]] = ([e.x[:N]], [], [], [])
    for _ in range(N_LAYERS):
        x = oracle.layer_attention(outputs[0][-1], e.weights, e.config, cosines, sines, np.float32)
        normed = oracle.rms_norm(x, e.weights.ffn_norm, e.config.rms_eps)
        if e.weights.router is None:
            logits, ids, weights = np.zeros((N, 1)), np.zeros((N, 1), np.int32), np.ones((N, 1), np.float32)
        else:
            logits = oracle.matmul(normed, e.weights.router)
            ids, weights = oracle.route(logits, e.config.n_experts_used)
        outputs[0].append(oracle.experts(x, normed, ids, weights, e.weights.experts))
        for list_, item in zip(outputs[1:], (logits, ids, weights), strict=True):
            list_.append(item)
    return outputs


@every_context
@pytest.mark.parametrize("shape", [Shape(), Shape(n_experts=1, n_used=1)], ids=["mixture", "dense"])
def test_layers_and_their_choices(ctx: ops.Context, shape: Shape) -> None:
    x, logits, ids, weights = expected(example(shape))
    for full in (False, True):
        choices = ops.Choices(N, N_LAYERS, shape.n_experts, shape.n_used, full=full)
        np.testing.assert_array_equal(Pass(ctx, shape).run(choices=choices), x[-1])
        np.testing.assert_array_equal(choices.experts, np.stack(ids, axis=1))
        np.testing.assert_array_equal(choices.weights, np.stack(weights, axis=1))
        assert full == (choices.logits is not None)
        if choices.logits is not None:
            np.testing.assert_array_equal(choices.logits, np.stack(logits, axis=1))


def test_some_of_the_layers() -> None:
    one = Pass(FIRST_CONTEXT)
    x, _, ids, _ = expected(one.example)
    np.testing.assert_array_equal(one.run(range(0, 1)), x[1])
    choices = ops.Choices(N, 2, 4, 2, full=False)
    np.testing.assert_array_equal(one.run(range(1, 3), choices=choices), x[3])
    np.testing.assert_array_equal(choices.experts, np.stack(ids[1:], axis=1))


@every_context
@pytest.mark.parametrize(
    "rows", [slice(None), slice(2, None), slice(-1, None), slice(0, 0), slice(1, 9, 3), np.array([0, 3, 7])], ids=str
)
def test_rows_that_are_kept(ctx: ops.Context, rows: Any) -> None:
    one, choices = Pass(ctx), ops.Choices(N, N_LAYERS, 4, 2, full=False)
    x, _, ids, _ = expected(one.example)
    found = one.run(rows=rows, choices=choices)
    assert one.batch.n_tokens == len(x[-1][rows])
    np.testing.assert_array_equal(found, x[-1][rows])
    np.testing.assert_array_equal(choices.experts, np.stack(ids, axis=1))  # of all rows


def test_observers_see_what_they_see_in_single_calls() -> None:
    one, other = Pass(FIRST_CONTEXT), Pass(FIRST_CONTEXT)
    found, wanted = ([ops.Observer(layer) for layer in one.layers] for _ in range(2))
    one.run(observers=found)
    for layer, kv, observer in zip(other.layers, other.caches, wanted, strict=True):
        ops.layer_attention(FIRST_CONTEXT, other.batch, layer, kv, observer)
        ops.layer_experts(FIRST_CONTEXT, other.batch, layer, observer)
    np.testing.assert_array_equal(one.batch.x, other.batch.x)
    for a, b in zip(found, wanted, strict=True):
        for name in ("qkv_input", "output_input", "expert_input", "down_input", "n_tokens", "output_norms"):
            assert getattr(a, name).any()
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@pytest.mark.parametrize("rows", [slice(None, None, -1), np.array([3, 3]), np.array([4, 2])], ids=str)
def test_rows_that_do_not_ascend_are_refused(rows: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"layers->kept\[1\]: expected ascending rows below 9"):
        Pass(FIRST_CONTEXT).run(rows=rows)


@pytest.mark.parametrize("which", [range(0), range(2, 4), range(-1, 2), range(0, 3, 2), range(3, 0)], ids=str)
def test_layers_that_are_not_there_are_refused(which: range) -> None:
    with pytest.raises(InvalidArgumentError, match="expected consecutive layers of 3"):
        Pass(FIRST_CONTEXT).run(which)


def test_what_does_not_fit_is_refused() -> None:
    one, wide = Pass(FIRST_CONTEXT), example(Shape(hidden=96))
    with pytest.raises(InvalidArgumentError, match="choices"):
        one.run(choices=ops.Choices(N, N_LAYERS - 1, 4, 2, full=False))
    with pytest.raises(InvalidArgumentError, match="choices"):
        one.run(choices=ops.Choices(N, N_LAYERS, 7, 2, full=True))
    with pytest.raises(InvalidArgumentError, match="observer"):
        one.run(observers=[ops.Observer(wide.layer)] * N_LAYERS)
    one.layers[1] = wide.layer
    with pytest.raises(InvalidArgumentError, match="a batch for this layer"):
        one.run()
    one.layers[1] = example(Shape(n_experts=7)).layer
    with pytest.raises(InvalidArgumentError, match=r"layers->layers\[1\]->hidden, n_experts, n_experts_used: expected"):
        one.run()
    one.layers[1], one.caches[1] = one.layers[0], ops.CacheLayer(*(np.zeros((1, 1, 64, 64), np.float32),) * 2)
    with pytest.raises(InvalidArgumentError, match="rope's frequencies"):
        one.run()
    one.caches.pop()
    with pytest.raises(InvalidArgumentError, match="found range\\(0, 3\\) and 2 caches"):
        one.run()


def test_a_fault_in_the_last_experts_counts_the_kept_rows() -> None:
    one = Pass(FIRST_CONTEXT)
    e = one.example
    broken = [tuple(Matrix(m.type, m.data.copy()) for m in expert) for expert in e.weights.experts]
    for expert in broken:
        expert[2].data[0, :2] = np.array([np.nan], np.float16).view(np.uint8)
    one.layers[2] = layer_of(replace(e.weights, experts=broken), e.config)
    with pytest.raises(NonFiniteError) as error:
        one.run(rows=slice(4, None))
    assert error.value.row == 0


def test_cancel() -> None:
    with ops.Context(1) as ctx:
        ctx.cancel(True)
        with pytest.raises(CanceledError):
            Pass(ctx).run()
        ctx.cancel(False)
        one = Pass(ctx)
        np.testing.assert_array_equal(one.run(), expected(one.example)[0][-1])
