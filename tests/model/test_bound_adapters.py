"""Passes with adapters equal the oracle's, whatever else is bound, and whoever shares the batch."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pymixtral import ops
from pymixtral.arrays import F32, I32
from pymixtral.errors import AdapterError, InvalidArgumentError
from pymixtral.files.names import TensorName
from pymixtral.files.types import Matrix
from pymixtral.model.adapter import Adapter, LowRank
from pymixtral.model.forward import Model
from pymixtral.model.weights import LayerWeights
from pymixtral.reference import oracle
from support import passes
from support.checkpoints import Shape
from support.low_rank import ATTENTION, adapter_for
from support.passes import DENSE, ODD
from support.variants import ISAS

MODELS: dict[str, tuple[Shape | None, str]] = {
    "tiny-q4_0": (None, "q4_0"),
    "odd-q8_0": (ODD, "q8_0"),
    "odd-f32": (ODD, "f32"),
    "dense-q4_0": (DENSE, "q4_0"),
}
N = 40

Scales = Mapping[Adapter, float]


class Example(passes.Example):
    """A model, a text for it, and two adapters."""

    def __init__(self, directory: Path, shape: Shape | None, kind: str) -> None:
        super().__init__(directory, shape, kind, N)
        self.whole, self.attention = adapter_for(self.config, 1, 5), adapter_for(self.config, 2, 3, ATTENTION)

    def expected(self, scales: Scales | None, planes: int = 1) -> F32:
        config = dataclasses.replace(self.config, planes=planes)
        ordered = sorted((scales or {}).items(), key=lambda item: item[0].digest)
        return oracle.forward(self.weights, config, self.tokens, np.float32, ordered)


Load = Callable[[str], Example]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    return cache(lambda name: Example(tmp_path_factory.mktemp(name), *MODELS[name]))


def run(model: Model, tokens: I32, adapters: list[Scales | None] | None, **options: Any) -> list[F32]:
    """The same text once for each entry, all in one pass."""
    n = len(adapters) if adapters else 1
    kv = model.new_cache(n * 64, "f32")
    batch = [(kv.new_sequence(), len(tokens)) for _ in range(n)]
    return np.split(model.forward(np.tile(tokens, n), batch, kv, adapters=adapters, **options), n)


# --- The same bits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_texts_with_different_adapters(load: Load, name: str, isa: str, n_threads: int) -> None:
    e = load(name)
    model = e.model(isa, n_threads)
    wanted: list[Scales | None] = [{e.whole: 1}, None, {e.whole: 0.5, e.attention: 2.0}, {e.attention: -1}, {}]
    want = [e.expected(scales) for scales in wanted]
    assert len({rows.tobytes() for rows in want}) == 4
    for found, rows in zip(run(model, e.tokens, wanted), want, strict=True):
        np.testing.assert_array_equal(found, rows)
        logits = oracle.logits(rows[-2:], e.weights, e.config)
        np.testing.assert_array_equal(model.logits(found[-2:]), logits)
    for scales, rows in zip(wanted, want, strict=True):
        np.testing.assert_array_equal(run(model, e.tokens, [scales])[0], rows)
    np.testing.assert_array_equal(run(model, e.tokens, None)[0], want[1])
    model.close()


@pytest.mark.parametrize("isa", ISAS)
def test_prompts_beside_texts_that_are_written(load: Load, isa: str) -> None:
    e = load("odd-q8_0")
    model = e.model(isa)
    kv = model.new_cache(3 * 64, "f32")
    wanted: list[Scales | None] = [{e.whole: 1}, {e.attention: 1.5, e.whole: -0.25}, None]
    want = [e.expected(scales) for scales in wanted]
    sequences = [kv.new_sequence() for _ in wanted]
    for counts in ([20, 1, 1], [1, 30, 1], [1, 1, 38], [18, 8, 0]):
        some = [i for i, count in enumerate(counts) if count]
        parts = [slice(s.length, s.length + count) for s, count in zip(sequences, counts, strict=True)]
        hidden = model.forward(
            np.concatenate([e.tokens[parts[i]] for i in some]),
            [(sequences[i], counts[i]) for i in some],
            kv,
            adapters=[wanted[i] for i in some],
        )
        np.testing.assert_array_equal(hidden, np.concatenate([want[i][parts[i]] for i in some]))
    model.close()


@pytest.mark.parametrize("isa", ISAS)
def test_activations_of_two_planes(load: Load, isa: str) -> None:
    e = load("tiny-q4_0")
    model = e.model(isa)
    model.context.planes = 2
    scales: Scales = {e.whole: 1, e.attention: 1}
    np.testing.assert_array_equal(run(model, e.tokens, [scales])[0], e.expected(scales, 2))
    model.close()


@pytest.mark.parametrize("name", ["odd-q8_0", "dense-q4_0"])
@pytest.mark.parametrize("rows", [slice(-1, None), slice(3, 30, 4), np.array([0, 17])], ids=str)
def test_some_rows(load: Load, name: str, rows: Any) -> None:
    e = load(name)
    model = e.model()
    wanted: list[Scales | None] = [{e.whole: 1}, None, {e.attention: 1}]
    want = np.concatenate([e.expected(scales) for scales in wanted])
    kv = model.new_cache(3 * 64, "f32")
    batch = [(kv.new_sequence(), N) for _ in wanted]
    found = model.forward(np.tile(e.tokens, 3), batch, kv, rows=rows, adapters=wanted)
    np.testing.assert_array_equal(found, want[rows])
    model.close()


def test_layers_in_two_calls(load: Load) -> None:
    e = load("odd-q8_0")
    scales: Scales = {e.whole: 1, e.attention: 0.5}
    front, back = e.model(n_threads=1), e.model(n_threads=3)
    (hidden,) = run(front, e.tokens, [scales], layers=range(2))
    kv = back.new_cache(N, "f32")
    found = back.forward(hidden, [(kv.new_sequence(), N)], kv, layers=range(2, 3), adapters=[scales])
    np.testing.assert_array_equal(found, e.expected(scales))
    front.close()
    back.close()


def test_no_bit_depends_on_which_was_bound_first(load: Load) -> None:
    e = load("odd-f32")
    adapters = [adapter_for(e.config, seed, 2) for seed in range(3, 8)]
    scales: Scales = dict.fromkeys(adapters, 1.0)
    want = e.expected(scales)
    for order in (adapters, adapters[::-1]):
        model = e.model()
        for adapter in order:
            run(model, e.tokens[:2], [{adapter: 1.0}])
        np.testing.assert_array_equal(run(model, e.tokens, [dict.fromkeys(order, 1.0)])[0], want)
        model.close()


def test_adapters_of_the_same_content_are_one(load: Load) -> None:
    e = load("odd-q8_0")
    again = Adapter({name: LowRank(*(x.copy() for x in pair)) for name, pair in e.whole.pairs.items()}, "again")
    model = e.model()
    found = run(model, e.tokens, [{e.whole: 1.0}, {again: 1.0}, {e.whole: 0.1, again: 0.9}, {e.whole: 1, again: -1}])
    for rows in found[:3]:
        np.testing.assert_array_equal(rows, e.expected({e.whole: 1.0}))
    np.testing.assert_array_equal(found[3], e.expected(None))
    assert len(model._adapters) == 1
    model.close()


def merged(w: Matrix, pair: LowRank | None) -> Matrix:
    if pair is None:
        return w
    a, b = (x.astype(np.float64) for x in pair)
    return Matrix.from_float((w.data.view(np.float32).astype(np.float64) + b.T @ a).astype(np.float32))


def test_merged_weights_give_the_same_but_for_rounding(load: Load) -> None:
    e = load("odd-f32")

    def layer(i: int, w: LayerWeights) -> LayerWeights:
        def pair(stem: str, expert: int | None = None) -> LowRank | None:
            return e.whole.pairs[TensorName(stem, i, expert=expert)]

        assert w.router is not None
        stems = ("ffn_gate", "ffn_up", "ffn_down")
        experts = [
            tuple(merged(m, pair(stem, j)) for m, stem in zip(expert, stems, strict=True))
            for j, expert in enumerate(w.experts)
        ]
        changed = {name: merged(getattr(w, name), pair(f"attn_{name}")) for name in ("q", "k", "v", "output")}
        return dataclasses.replace(w, **changed, router=merged(w.router, pair("ffn_gate_inp")), experts=experts)

    weights = dataclasses.replace(e.weights, layers=[layer(i, w) for i, w in enumerate(e.weights.layers)])
    at_run_time, before = e.model(), e.model(weights=weights)
    found, want = (
        model.logits(run(model, e.tokens, adapters)[0])
        for model, adapters in ((at_run_time, [{e.whole: 1.0}]), (before, None))
    )
    assert np.abs(found - want).max() <= 1e-4 * np.abs(want).max()
    plain = at_run_time.logits(run(at_run_time, e.tokens, None)[0])
    assert np.abs(plain - want).max() >= 0.1 * np.abs(want).max()
    at_run_time.close()
    before.close()


# --- Binding -----------------------------------------------------------------------------------------------------


def test_adapters_that_count_nothing_are_not_bound(load: Load) -> None:
    e = load("odd-q8_0")
    model = e.model()
    for adapters in (None, [None], [{}], [{e.whole: 0}], [{e.whole: 1e-60}]):
        np.testing.assert_array_equal(run(model, e.tokens, adapters)[0], e.expected(None))
    assert len(model._adapters) == 0
    model.close()


def test_an_adapter_that_is_released_is_free_and_can_be_used_again(load: Load) -> None:
    e = load("odd-q8_0")
    model = e.model()
    other = adapter_for(e.config, 9)
    mine = weakref.ref(other)
    a = weakref.ref(next(iter(other.pairs.values())).a)
    together: list[Scales | None] = [{e.attention: 1.0}, {other: 1.0, e.attention: 1.0}]
    first = run(model, e.tokens, together)
    model.release(other)
    np.testing.assert_array_equal(run(model, e.tokens, [{e.attention: 1.0}])[0], first[0])
    np.testing.assert_array_equal(run(model, e.tokens, together)[1], first[1])
    model.release(other)
    model.release(other)
    model.release(e.whole)  # was never bound
    assert len(model._adapters) == 1
    del other, together
    gc.collect()
    assert mine() is None
    assert a() is None
    np.testing.assert_array_equal(run(model, e.tokens, [{e.attention: 1.0}])[0], first[0])
    model.close()


def test_an_interrupt_while_adapters_are_bound(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    e = load("odd-q8_0")
    model = e.model()
    run(model, e.tokens, [{e.whole: 1.0}])
    bind, calls = ops.Layer.adapt, []

    def interrupted(layer: ops.Layer, deltas: Any) -> None:
        calls.append(layer)
        if len(calls) == 2:
            raise KeyboardInterrupt
        bind(layer, deltas)

    monkeypatch.setattr(ops.Layer, "adapt", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(model, e.tokens, [{e.attention: 1.0}])
    monkeypatch.undo()
    np.testing.assert_array_equal(run(model, e.tokens, None)[0], e.expected(None))
    for scales in ({e.whole: 1.0}, {e.attention: 1.0}):
        np.testing.assert_array_equal(run(model, e.tokens, [scales])[0], e.expected(scales))
    model.close()


def test_what_does_not_fit_leaves_no_trace(load: Load) -> None:
    e = load("odd-q8_0")
    model = e.model()
    kv = model.new_cache(64, "f32")
    sequence = kv.new_sequence()
    foreign = adapter_for(load("tiny-q4_0").config, 1)
    wrong: list[tuple[type[Exception], str, Any]] = [
        (AdapterError, "own base model", [{foreign: 1.0}]),
        (AdapterError, "own base model", [{e.whole: 1.0, foreign: 1.0}]),
        (InvalidArgumentError, "adapters of 1 runs", []),
        (InvalidArgumentError, "adapters of 1 runs", [None, None]),
        (InvalidArgumentError, "expected an Adapter", [{"me": 1.0}]),
        *((InvalidArgumentError, "a scale", [{e.whole: s}]) for s in (np.nan, np.inf, 1e7, "x", None, 10**400)),
    ]
    for error, message, adapters in wrong:
        with pytest.raises(error, match=message):
            model.forward(e.tokens, [(sequence, N)], kv, adapters=adapters)
        assert (sequence.length, kv.n_free_pages, len(model._adapters)) == (0, 1, 0)
    scales: Scales = {e.whole: 1.0}
    np.testing.assert_array_equal(model.forward(e.tokens, [(sequence, N)], kv, adapters=[scales]), e.expected(scales))
    model.close()
