"""Sampling in C against the oracle: equal tokens, whatever the parameters, the logits, the
instruction set, the threads and the other rows.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pymixtral import ops
from pymixtral.arrays import F32, I32, U32
from pymixtral.errors import InvalidArgumentError, NonFiniteError, PymixtralError
from pymixtral.reference.sampling import Sampler as Oracle
from pymixtral.sampling.parameters import SamplingParameters
from pymixtral.sampling.sampler import Sampler, draw
from support.samplers import NO_TEXT, mask_of
from support.variants import CONTEXTS, every_context

PROBABILITY = st.one_of(st.sampled_from([0.0, 0.5, 0.9, 1.0]), st.floats(0, 1))
PENALTY = st.one_of(st.just(0.0), st.floats(-100, 100))
PARAMETERS: dict[str, Any] = {
    "temperature": st.one_of(st.sampled_from([0.0, 1.0, 1e-40]), st.floats(1e-3, 100)),
    "top_k": st.one_of(st.just(0), st.integers(0, 70)),
    "top_p": PROBABILITY,
    "min_p": st.one_of(st.just(0.0), PROBABILITY),
    "typical_p": st.one_of(st.just(1.0), PROBABILITY),
    "repetition_penalty": st.one_of(st.just(1.0), st.floats(0.01, 100)),
    "presence_penalty": PENALTY,
    "frequency_penalty": PENALTY,
    "penalty_window": st.integers(0, 30),
    "dry_multiplier": st.one_of(st.sampled_from([0.0, 0.8, 100.0]), st.floats(0, 100)),
    "dry_base": st.one_of(st.just(1.0), st.floats(1, 100)),
    "dry_allowed_length": st.integers(1, 4),
    "dry_window": st.integers(0, 30),
    "top_n_sigma": st.one_of(st.just(0.0), st.floats(0, 5)),
    "xtc_probability": st.sampled_from([0.0, 0.5, 1.0]),
    "xtc_threshold": st.one_of(st.sampled_from([0.0, 0.25, 0.5]), st.floats(0, 0.3)),
    "mirostat_tau": st.one_of(st.sampled_from([0.0, 0.0, 1.0, 0.5]), st.floats(0, 10)),
    "mirostat_eta": st.floats(0, 1),
    "min_tokens": st.integers(0, 5),
    "seed": st.integers(0, 1 << 70),
}


@st.composite
def rows(draw_: st.DrawFn, n_vocab: int) -> F32:
    """Logits of one kind, some of them -inf."""
    numbers = np.random.default_rng(draw_(st.integers(0, 1 << 32)))
    kind = draw_(st.sampled_from(["normal", "ties", "wide", "flat", "peaked", "equal"]))
    x = numbers.standard_normal(n_vocab)
    if kind == "ties":
        x = np.rint(x * 2)
    elif kind == "wide":
        x = x * 10.0 ** numbers.integers(-38, 38, n_vocab)
    elif kind == "flat":
        x = x * 1e-3
    elif kind == "peaked":
        x = x + np.where(numbers.random(n_vocab) < 3 / n_vocab, 20, 0)
    elif kind == "equal":
        x = x * 0
    x = x.astype(np.float32)
    x[numbers.random(n_vocab) < draw_(st.sampled_from([0, 0, 0.3, 0.99]))] = -np.inf
    if not np.isfinite(x).any():
        x[numbers.integers(n_vocab)] = 1
    return x


def found_or_error(sampler: Oracle, logits: F32, text: I32, mask: U32 | None) -> int | type[PymixtralError]:
    try:
        return sampler.sample(logits, text, mask)
    except PymixtralError as error:
        return type(error)


@settings(max_examples=500, deadline=None)
@given(data=st.data(), n_vocab=st.one_of(st.integers(1, 70), st.sampled_from([257, 1000, 5000])))
def test_draws_as_the_oracle(data: st.DataObject, n_vocab: int) -> None:
    ids = st.integers(0, n_vocab - 1)
    options = {name: data.draw(values, name) for name, values in PARAMETERS.items() if data.draw(st.booleans())}
    options["logit_bias"] = data.draw(
        st.dictionaries(ids, st.one_of(st.floats(-10, 10), st.just(-math.inf)), max_size=5), "bias"
    )
    few = st.lists(ids, min_size=1, max_size=3)
    options["bad_words"] = data.draw(st.lists(few, max_size=3), "bad_words")
    options["dry_breakers"] = data.draw(st.lists(few, max_size=2), "dry_breakers")
    options["allowed_token_ids"] = data.draw(st.one_of(st.none(), st.none(), st.lists(ids, min_size=1)), "allowed")
    options.setdefault("seed", 1)
    parameters = SamplingParameters(**options)
    arguments: dict[str, Any] = {
        "eos_ids": data.draw(st.sets(ids, max_size=2), "eos_ids"),
        "ignore_eos": data.draw(st.booleans()),
        "n_prompt": data.draw(st.integers(0, 5)),
        "seed_index": data.draw(st.integers(0, 3)),
    }
    sampler, oracle = Sampler(parameters, n_vocab=n_vocab, **arguments), Oracle(parameters, **arguments)
    text = [id for part in data.draw(st.lists(few, max_size=6), "text") for id in part * data.draw(st.integers(1, 3))]
    for _ in range(3):
        ctx = CONTEXTS[data.draw(st.sampled_from([*CONTEXTS]))]
        logits = data.draw(rows(n_vocab), "logits")
        allowed = data.draw(st.one_of(st.none(), st.none(), st.sets(ids, max_size=70)))
        mask = None if allowed is None else mask_of(allowed, n_vocab)
        (found,) = draw(ctx, [sampler], logits[np.newaxis], [np.array(text, np.int32)], [mask])
        expected = found_or_error(oracle, logits, np.array(text, np.int32), mask)
        assert (found if isinstance(found, int) else type(found)) == expected
        text.append(found if isinstance(found, int) else 0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.0, "top_k": 0, "top_p": 1.0},
        {"top_k": 0, "top_p": 0.999},
        {"top_k": 5000, "top_p": 1.0, "min_p": 1e-4},
        {"top_k": 0, "top_p": 1.0, "min_p": 1e-9, "temperature": 1.7},
        {"top_k": 0, "top_p": 1.0, "typical_p": 0.9},
        {"top_k": 40000, "top_p": 1.0, "temperature": 3.0},
        {"top_k": 0, "top_p": 1.0, "top_n_sigma": 1.5},
        {"top_k": 0, "top_p": 1.0, "xtc_probability": 1.0, "xtc_threshold": 0.01},
        {"top_k": 0, "top_p": 0.99, "xtc_probability": 0.5, "xtc_threshold": 0.001},
        {"mirostat_tau": 3.0, "mirostat_eta": 0.3},
        {"mirostat_tau": 8.0, "temperature": 1.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("scale", [0.01, 1, 3, 30])
def test_a_whole_vocabulary_draws_as_the_oracle(options: dict[str, Any], scale: float) -> None:
    parameters = SamplingParameters(seed=3, **options)
    oracle, sampler = Oracle(parameters), Sampler(parameters, n_vocab=32000)
    numbers = np.random.default_rng(4)
    for ctx in CONTEXTS.values():
        logits = (numbers.standard_normal(32000) * scale).astype(np.float32)
        assert draw(ctx, [sampler], logits[np.newaxis], [NO_TEXT]) == [oracle.sample(logits, NO_TEXT)]


@every_context
def test_xtc_counts_no_banned_token(ctx: ops.Context) -> None:
    off: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    for threshold in (0.0, 1e-300, 0.1):
        parameters = SamplingParameters(
            seed=1, xtc_probability=1.0, xtc_threshold=threshold, logit_bias={1: -math.inf, 6: -math.inf}, **off
        )
        oracle, sampler = Oracle(parameters), Sampler(parameters, n_vocab=9)
        for row in np.random.default_rng(2).standard_normal((20, 9)).astype(np.float32):
            assert draw(ctx, [sampler], row[np.newaxis], [NO_TEXT]) == [oracle.sample(row, NO_TEXT)]


@pytest.mark.parametrize("n", [2, 3, 64, 1000, 4096])
def test_a_sum_that_is_exactly_the_part_asked_for_is_no_more(n: int) -> None:
    """The total must be that of the right order, to the bit: bounds of it do not decide."""
    numbers = np.random.default_rng(n)
    logits = np.where(numbers.random(n) < 0.5, 0, -0.7).astype(np.float32)
    weights = np.cumsum(np.sort(np.where(logits == 0, 1, np.float64(np.exp(np.float32(-0.7)))))[::-1])
    for kept in {1, n // 2, n - 1}:
        for nudge in (-1, 0, 1):
            part = weights[kept - 1] / weights[-1]
            part = min(float(np.nextafter(part, part + nudge)), 1.0)
            parameters = SamplingParameters(seed=5, temperature=100, top_k=0, top_p=part)
            oracle, sampler = Oracle(parameters), Sampler(parameters, n_vocab=n)
            for _ in range(20):
                found = draw(CONTEXTS["scalar-1"], [sampler], logits[np.newaxis], [NO_TEXT])
                assert found == [oracle.sample(logits, NO_TEXT)]


@every_context
def test_a_row_draws_as_it_would_alone(ctx: ops.Context) -> None:
    n, n_vocab = 33, 500
    numbers = np.random.default_rng(6)
    logits = (numbers.standard_normal((n, n_vocab)) * 3).astype(np.float32)
    logits[7, 3], logits[8, :] = np.nan, -np.inf
    options: list[dict[str, Any]] = [
        {"temperature": 0},
        {"top_k": 0, "top_p": 1.0},
        {"typical_p": 0.5, "presence_penalty": 1.0},
        {},
    ]
    parameters = [SamplingParameters(seed=i, **options[i % 4]) for i in range(n)]
    texts = [numbers.integers(0, n_vocab, i).astype(np.int32) for i in range(n)]
    masks = [None if i % 3 else mask_of(range(i, n_vocab, 2), n_vocab) for i in range(n)]
    masks[9] = mask_of([], n_vocab)
    together = [Sampler(p, n_vocab=n_vocab) for p in parameters]
    alone = [Oracle(p) for p in parameters]
    for _ in range(3):
        found = draw(ctx, together, logits, texts, masks)
        expected = [found_or_error(*row) for row in zip(alone, logits, texts, masks, strict=True)]
        assert [x if isinstance(x, int) else type(x) for x in found] == expected
        assert [i for i, x in enumerate(found) if not isinstance(x, int)] == [7, 8, 9]
        assert (expected[7], expected[8], expected[9]) == (NonFiniteError, NonFiniteError, InvalidArgumentError)


def test_each_sample_of_a_prompt_has_its_own_generator() -> None:
    logits = np.zeros((1, 1000), np.float32)

    def some(**arguments: Any) -> list[Any]:
        sampler = Sampler(SamplingParameters(seed=1, top_k=0, top_p=1.0), n_vocab=1000, **arguments)
        return [draw(CONTEXTS["scalar-1"], [sampler], logits, [NO_TEXT])[0] for _ in range(5)]

    assert some() == some(seed_index=0)
    assert len({tuple(some(seed_index=k)) for k in range(5)}) == 5
    children = np.random.SeedSequence(1).spawn(4)
    expected = [int((int(np.random.PCG64(child).random_raw()) >> 11) * 2.0**-53 * 1000) for child in children]
    assert [some(seed_index=k)[0] for k in (1, 2, 3)] == expected[1:]


def test_arguments_that_do_not_fit_are_refused() -> None:
    ctx, sampler = CONTEXTS["scalar-1"], Sampler(SamplingParameters(presence_penalty=1.0), n_vocab=100)
    logits = np.zeros((1, 100), np.float32)
    for wrong in (
        ([sampler], np.zeros((1, 99), np.float32), [NO_TEXT], [None]),
        ([sampler], np.zeros((2, 100), np.float32), [NO_TEXT], [None]),
        ([sampler], logits, [], [None]),
        ([sampler], logits, [NO_TEXT], []),
        ([sampler], logits, [NO_TEXT], [np.zeros(3, np.uint32)]),
        ([sampler], logits, [np.array([100], np.int32)], [None]),
        ([sampler], logits, [np.array([1 << 40])], [None]),
    ):
        with pytest.raises(InvalidArgumentError):
            draw(ctx, *wrong)  # type: ignore[arg-type]
    for id in (-1, 100):
        with pytest.raises(InvalidArgumentError, match="from 0 to 99 in eos_ids"):
            Sampler(SamplingParameters(), n_vocab=100, eos_ids=[id])


@pytest.mark.parametrize("name", ["bad_words", "dry_breakers", "allowed_token_ids"])
def test_ids_of_parameters_outside_the_vocabulary_are_refused(name: str) -> None:
    ids: Any = [3, 100] if name == "allowed_token_ids" else [[3], [7, 100]]
    with pytest.raises(InvalidArgumentError, match=f"from 0 to 99 in {name}, found 100"):
        Sampler(SamplingParameters(**{name: ids}), n_vocab=100)
