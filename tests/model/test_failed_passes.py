"""A failed pass leaves no trace."""

from __future__ import annotations

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from pymixtral.errors import CanceledError, ClosedError, ContextLengthError, InvalidArgumentError, NonFiniteError
from pymixtral.files.types import Matrix
from pymixtral.model.kv_cache import Sequence
from pymixtral.model.weights import ModelWeights
from support.passes import Example, Load, loader, run, state


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    return loader(tmp_path_factory)


def with_nan_token(e: Example, token: int) -> ModelWeights:
    data = e.weights.embedding.data.copy()
    data.view(np.float32)[token, 5] = np.nan
    return dataclasses.replace(e.weights, embedding=Matrix(e.weights.embedding.type, data))


def test_a_pass_that_meets_nan_leaves_no_trace(load: Load) -> None:
    e = load("odd-f32")
    model = e.model(weights=with_nan_token(e, 332))
    kv = model.new_cache(4 * 64, "f32")
    e_tokens = np.where(e.tokens == 332, 0, e.tokens).astype(np.int32)
    good, other = kv.new_sequence(), kv.new_sequence()
    want = run(model, kv, good, e_tokens)
    run(model, kv, other, e_tokens[:50])
    before = state(kv, good, other)
    good.truncate(60)
    with pytest.raises(NonFiniteError) as caught:
        model.forward(np.array([1, 2, 332, 3], np.int32), [(other, 2), (good, 2)], kv)
    assert caught.value.row == 2
    assert (good.length, other.length) == (60, 50)
    np.testing.assert_array_equal(run(model, kv, good, e_tokens[60:]), want[60:])
    np.testing.assert_array_equal(run(model, kv, other, e_tokens[50:]), want[50:])
    assert before[0] == state(kv, good, other)[0] + 1  # `other` has crossed into its second page
    model.close()


def test_keys_beyond_f16_name_the_row_and_fit_f32(load: Load) -> None:
    e = load("odd-f32")
    layers = list(e.weights.layers)
    layers[1] = dataclasses.replace(layers[1], k=Matrix.from_float(layers[1].k.data.view(np.float32) * np.float32(1e6)))
    model = e.model(weights=dataclasses.replace(e.weights, layers=layers))
    half, full = model.new_cache(128, "f16"), model.new_cache(128, "f32")
    sequence = half.new_sequence()
    before = state(half, sequence)
    with pytest.raises(NonFiniteError, match="f32 cache") as caught:
        run(model, half, sequence, e.tokens)
    assert caught.value.row == 0
    assert state(half, sequence) == before
    assert np.isfinite(run(model, full, full.new_sequence(), e.tokens)).all()
    model.close()


def test_a_full_cache_leaves_no_trace(load: Load) -> None:
    e = load("odd-f32")
    model = e.model()
    kv = model.new_cache(3 * 64, "f32")
    first, second = kv.new_sequence(), kv.new_sequence()
    run(model, kv, first, e.tokens[:64])
    before = state(kv, first, second)
    with pytest.raises(ContextLengthError):
        model.forward(np.zeros(200, np.int32), [(second, 200)], kv)
    assert state(kv, first, second) == before
    with pytest.raises(ContextLengthError):  # the first one fits, both together do not
        model.forward(np.zeros(140, np.int32), [(first, 40), (second, 100)], kv)
    assert state(kv, first, second) == before
    np.testing.assert_array_equal(run(model, kv, first, e.tokens[64:]), e.hidden()[64:])
    model.close()


def test_batches_that_make_no_sense_are_refused(load: Load) -> None:
    e = load("odd-f32")
    model = e.model()
    kv = model.new_cache(3 * 64, "f32")
    a, b = kv.new_sequence(), kv.new_sequence()
    before = state(kv, a, b)
    tokens = e.tokens[:4]
    batches: list[list[tuple[Sequence, int]]] = [
        [],
        [(a, 3)],
        [(a, 5)],
        [(a, 2), (a, 2)],
        [(a, -1), (b, 5)],
        [(a, 3), (b, 0)],
    ]
    for batch in batches:
        with pytest.raises(InvalidArgumentError):
            model.forward(tokens, batch, kv)
    with pytest.raises(InvalidArgumentError):
        model.forward(tokens[:0], [(a, 0)], kv)
    for bad in (-1, e.config.n_vocab, (1 << 31) - 1):
        with pytest.raises(InvalidArgumentError, match=rf"^ids\[1\]: expected .* found {bad}$"):
            model.forward(np.array([1, bad], np.int32), [(a, 2)], kv)
    with pytest.raises(InvalidArgumentError, match="int32"):
        model.forward(np.array([1, 1 << 32]), [(a, 2)], kv)
    with pytest.raises(InvalidArgumentError, match="shape"):
        model.forward(np.zeros((2, e.config.hidden - 1), np.float32), [(a, 2)], kv)
    stranger = model.new_cache(64, "f32").new_sequence()
    with pytest.raises(InvalidArgumentError, match="of the given cache"):
        model.forward(tokens, [(a, 2), (stranger, 2)], kv)
    assert (stranger.length, len(stranger.pages)) == (0, 0)
    assert state(kv, a, b) == before
    model.close()


def test_a_long_prefill_is_canceled_and_leaves_no_trace(load: Load) -> None:
    e = load("tiny-q8_0")
    model = e.model("scalar", 2)  # several seconds' work
    kv = model.new_cache(2048, "f32")
    sequence = kv.new_sequence()
    before = state(kv, sequence)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(model.forward, np.resize(e.tokens, 2000), [(sequence, 2000)], kv)
        time.sleep(0.3)
        assert not call.done()
        asked = time.process_time()
        model.cancel()
        with pytest.raises(CanceledError):
            call.result()
        assert time.process_time() - asked < 1
    assert state(kv, sequence) == before
    with pytest.raises(CanceledError):  # until it is taken back
        run(model, kv, sequence, e.tokens[:20])
    model.cancel(False)
    np.testing.assert_array_equal(run(model, kv, sequence, e.tokens[:20]), e.hidden()[:20])
    model.close()


def test_a_closed_model_says_so(load: Load) -> None:
    e = load("odd-f32")
    model = e.model()
    kv = model.new_cache(64)
    model.close()
    model.close()
    with pytest.raises(ClosedError):
        run(model, kv, kv.new_sequence(), e.tokens[:1])
    with pytest.raises(ClosedError):
        model.logits(np.zeros((1, e.config.hidden), np.float32))


@pytest.mark.parametrize(
    "rows",
    [np.array([2]), np.array([-1]), np.array([0, 1, 0]), np.array([0.0]), np.array([[0]]), 1, [0], "0", None],
    ids=repr,
)
def test_rows_that_are_not_there(load: Load, rows: Any) -> None:
    e = load("odd-q8_0")
    model = e.model()
    kv = model.new_cache(64, "f32")
    sequence = kv.new_sequence()
    with pytest.raises(InvalidArgumentError, match="expected rows to be a slice or an array of at most 2 indices"):
        model.forward(e.tokens[:2], [(sequence, 2)], kv, rows=rows)
    assert state(kv, sequence) == (1, [(0, [])])
    model.close()
