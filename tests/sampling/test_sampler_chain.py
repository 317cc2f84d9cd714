"""The whole chain of the sampler against the contract's own words, one scalar at a time, and what
each step is for.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pymixtral.errors import InvalidArgumentError, NonFiniteError
from pymixtral.reference.arithmetic import exp
from pymixtral.sampling.parameters import SamplingParameters
from support.samplers import OneText, mask_of, sampler_of
from support.variants import FIRST_CONTEXT

OFF: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
# PYTHONPATH=tests/sampling python -c 'from test_sampler_chain import *; print(golden_ids())'
GOLDEN = [185, 643, 636, 803, 871, 169, 639, 643, 625, 185]
F32 = np.float32


def weight(x: F32) -> float:
    return float(exp(np.array([x], F32))[0])


def edited(logits: list[float], text: list[int], o: dict[str, Any]) -> list[F32]:
    """Steps 1 to 3 of docs/numerics.md, "sampling"."""
    out = [F32(x) for x in logits]
    for i, bias in o["logit_bias"].items():
        out[i] = out[i] + F32(bias)
    counts = Counter(text[-o["penalty_window"] :] if o["penalty_window"] else text)
    for i, count in counts.items():
        penalty = F32(o["repetition_penalty"])
        out[i] = min(out[i] / penalty if out[i] > 0 else out[i] * penalty, np.finfo(F32).max)
        out[i] = out[i] - F32(o["presence_penalty"] + o["frequency_penalty"] * count)
    return out


def shortest(order: list[int], weights: dict[int, float], p: float) -> list[int]:
    total = 0.0
    for i in order:
        total += weights[i]
    reached = 0.0
    for n, i in enumerate(order):
        reached += weights[i]
        if reached >= p * total:
            return order[: n + 1]
    raise AssertionError("the whole reaches any part of it")


def oracle(logits: list[F32], o: dict[str, Any], uniform: float) -> int:
    """Steps 4 to 8."""
    left = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if F32(o["temperature"]) == 0:
        return left[0]
    left = left[: o["top_k"] or None]

    def below() -> dict[int, F32]:
        return {i: logits[i] - logits[left[0]] for i in left}

    if o["typical_p"] < 1:
        b = below()
        e = {i: weight(b[i]) for i in left}
        total = mean = 0.0
        for i in left:
            total += e[i]
            if e[i] > 0:
                mean += e[i] * float(b[i])
        nearest = sorted(left, key=lambda i: abs(float(b[i]) - mean / total))
        kept = shortest(nearest, e, o["typical_p"])
        left = [i for i in left if i in kept]
    if o["top_p"] < 1:
        left = shortest(left, {i: weight(x) for i, x in below().items()}, o["top_p"])
    left = [i for i, x in below().items() if weight(x) >= o["min_p"]]
    drawn = {i: weight(x / F32(o["temperature"])) for i, x in below().items()}
    total = 0.0
    for i in left:
        total += drawn[i]
    reached = 0.0
    for i in left:
        reached += drawn[i]
        if reached > uniform * total:
            return i
    raise AssertionError("a uniform below 1 always finds its token")


PROBABILITY = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1))
PENALTY = st.one_of(st.just(0.0), st.floats(-100, 100))


@settings(max_examples=400, deadline=None)
@given(
    logits=st.lists(
        st.one_of(
            st.integers(-3, 3).map(float),
            st.floats(-30, 30, width=32),
            st.floats(width=32, allow_nan=False, allow_infinity=False),
        ),
        min_size=1,
        max_size=40,
    ),
    data=st.data(),
    options=st.fixed_dictionaries(
        {
            "temperature": st.one_of(st.just(0.0), st.floats(1e-3, 100)),
            "top_k": st.integers(0, 45),
            "top_p": PROBABILITY,
            "min_p": PROBABILITY,
            "typical_p": PROBABILITY,
            "repetition_penalty": st.one_of(st.just(1.0), st.floats(0.01, 100)),
            "presence_penalty": PENALTY,
            "frequency_penalty": PENALTY,
            "penalty_window": st.integers(0, 30),
        }
    ),
    seed=st.integers(0, 1 << 70),
)
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # the scalars' own, which is -inf
def test_draws_what_the_contract_says(
    logits: list[float], data: st.DataObject, options: dict[str, Any], seed: int
) -> None:
    ids = st.integers(0, len(logits) - 1)
    text = data.draw(st.lists(ids, max_size=40), "text")
    options["logit_bias"] = data.draw(
        st.dictionaries(ids, st.one_of(st.floats(-10, 10), st.just(-math.inf)), max_size=5), "bias"
    )
    array = np.array(logits, F32)
    sampler = sampler_of(**options, seed=seed)
    uniform = (int(np.random.PCG64(seed).random_raw()) >> 11) * 2.0**-53
    expected = edited(logits, text, options)
    if max(expected) == -math.inf:
        with pytest.raises(InvalidArgumentError, match="all banned"):
            sampler.sample(array, np.array(text, np.int32))
    else:
        assert sampler.sample(array, np.array(text, np.int32)) == oracle(expected, options, uniform)
    assert (array == np.array(logits, F32)).all()


def golden_ids() -> list[int]:
    logits = (np.random.default_rng(5).standard_normal(1000) * 3).astype(F32)
    sampler = sampler_of(
        temperature=1.2,
        top_k=100,
        top_p=0.9,
        min_p=0.02,
        typical_p=0.95,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=0.3,
        penalty_window=3,
        logit_bias={58: -math.inf, 80: 2.5},
        seed=7,
    )
    text: list[int] = []
    for _ in range(10):
        text.append(sampler.sample(logits, np.array(text, np.int32)))
    return text


def test_same_seed_same_ids_on_every_machine() -> None:
    assert golden_ids() == GOLDEN


def drawn(probabilities: list[float], text: list[int] | None = None, n: int = 400, **options: Any) -> set[int]:
    sampler = sampler_of(**(OFF | options), seed=1)
    logits = np.log(np.array(probabilities, F32))
    return {sampler.sample(logits, np.array(text or [], np.int32)) for _ in range(n)}


def test_min_p_is_relative_to_the_most_likely() -> None:
    p = [0.5, 0.26, 0.14, 0.1]
    assert drawn(p, min_p=0.0) == {0, 1, 2, 3}
    assert drawn(p, min_p=0.5) == {0, 1}
    assert drawn(p, min_p=0.25) == {0, 1, 2}
    assert drawn([0.3, 0.3, 0.4, 0.4], min_p=1.0) == {2, 3}  # equals stay


def test_typical_p_may_leave_out_the_most_likely() -> None:
    p = [0.4, *[0.1] * 6]  # surprises 0.92 and 2.30, mean 1.75: the six are nearer
    assert drawn(p, typical_p=0.5) == {1, 2, 3, 4, 5}
    assert drawn(p, typical_p=0.0) == {1}
    assert drawn(p, typical_p=0.5, min_p=0.9) == {1, 2, 3, 4, 5}  # relative to the most likely of those that are left


def test_typical_takes_the_more_likely_of_two_that_are_equally_typical() -> None:
    logits = np.array([0, -math.log(2), -math.log(2)], F32)  # of weights 1, 0.5 and 0.5: the mean is in the middle
    assert exp(logits).tolist() == [1, 0.5, 0.5]
    sampler = sampler_of(**OFF, typical_p=0.4, seed=1)
    assert {sampler.sample(logits) for _ in range(100)} == {0}


def test_filters_work_one_after_the_other() -> None:
    p = [0.4, 0.3, 0.2, 0.1]
    assert drawn(p, top_k=2, top_p=0.5) == {0}  # 0.4 of 0.7 is more than half
    assert drawn(p, top_p=0.5) == {0, 1}


def test_repetition_penalty_lowers_logits_of_either_sign() -> None:
    logits = np.array([2.0, 1.5, -1.0, -1.5], F32)
    greedy = sampler_of(temperature=0, repetition_penalty=2.0, logit_bias=None)
    assert greedy.sample(logits, np.array([0], np.int32)) == 1
    assert greedy.sample(logits, np.array([0, 0, 0], np.int32)) == 1  # once for each token, not for each time
    assert greedy.sample(logits[2:], np.array([0], np.int32)) == 1
    assert greedy.sample(logits, np.array([1], np.int32)) == 0


def test_presence_counts_once_and_frequency_every_time() -> None:
    logits = np.array([3.0, 1.6, 0.0], F32)
    text = np.array([0, 0, 0], np.int32)
    assert sampler_of(temperature=0, presence_penalty=1.0).sample(logits, text) == 0
    assert sampler_of(temperature=0, frequency_penalty=0.5).sample(logits, text) == 1
    assert sampler_of(temperature=0, frequency_penalty=0.5).sample(logits, text[:2]) == 0
    assert sampler_of(temperature=0, presence_penalty=-1.5).sample(logits, np.array([1], np.int32)) == 1


@pytest.mark.parametrize(("window", "expected"), [(1, 0), (2, 0), (3, 1), (0, 1), (100, 1)])
def test_penalties_look_at_the_last_tokens_only(window: int, expected: int) -> None:
    logits = np.array([2.0, 1.5, 0.0], F32)
    text = np.array([0, 2, 2], np.int32)
    for name, value in (("repetition_penalty", 2.0), ("presence_penalty", 1.0), ("frequency_penalty", 1.0)):
        sampler = sampler_of(temperature=0, penalty_window=window, **{name: value})  # type: ignore[arg-type]
        assert sampler.sample(logits, text) == expected


def test_logit_bias_raises_lowers_and_bans() -> None:
    p = [0.7, 0.2, 0.1]
    assert drawn(p, logit_bias={0: -math.inf}) == {1, 2}
    assert drawn(p, logit_bias={2: 1e9}) == {2}
    assert drawn(p, logit_bias={2: 2.5}, temperature=0) == {2}
    assert drawn(p, logit_bias={0: -1e300, 1: -math.inf}) == {2}
    assert drawn(p, logit_bias={}, top_k=1) == {0}
    assert drawn(p, logit_bias={0: -5}, top_k=1) == {1}


def test_banned_ids_are_never_drawn_whatever_their_bias() -> None:
    assert drawn([0.7, 0.2, 0.1], banned={0, 2}, logit_bias={0: 1e9}) == {1}
    with pytest.raises(InvalidArgumentError, match="all banned"):
        drawn([0.7, 0.3], banned=[0], logit_bias={1: -math.inf})


# --- DRY, top-n-sigma, XTC, mirostat -------------------------------------------------------------------------------


def penalties(text: list[int], n_vocab: int = 8, **options: Any) -> list[float]:
    """By how much DRY lowers each logit: what a bias must lift it by to win."""
    found = []
    for id in range(n_vocab):
        low, high = -1.0, 2e9
        while high - low > max(1e-3, 1e-6 * high):
            bias = (low + high) / 2
            sampler = sampler_of(temperature=0, logit_bias={id: min(bias, 1e9), n_vocab: 0.0}, **options)
            logits = np.full(n_vocab + 1, -math.inf, F32)
            logits[[id, n_vocab]] = max(bias - 1e9, 0), 0
            low, high = (low, bias) if sampler.sample(logits, np.array(text, np.int32)) == id else (bias, high)
        found.append(round(high, 2))
    return found


def test_dry_penalizes_what_continues_a_repetition_the_more_the_longer_it_is() -> None:
    dry: dict[str, Any] = {"dry_multiplier": 0.8, "dry_base": 2.0, "dry_allowed_length": 2}
    assert penalties([1, 2, 3, 4, 1, 2], **dry)[3] == 0.8  # "1 2" has been followed by 3
    assert penalties([5, 1, 2, 3, 4, 5, 1, 2], **dry)[3] == 1.6
    assert penalties([6, 5, 1, 2, 3, 4, 6, 5, 1, 2], **dry)[3] == 3.2
    assert penalties([1, 2, 3, 4, 1, 2], **dry)[4] == 0
    assert penalties([2, 3, 4, 2], **dry) == [0] * 8  # one token is no repetition yet
    assert penalties([2, 3, 4, 2], **(dry | {"dry_allowed_length": 1}))[3] == 0.8
    assert penalties([1, 2, 3, 4, 1, 2], dry_window=4, **dry) == [0] * 8
    assert penalties([7, 7, 7, 7], **dry)[7] == 1.6  # of itself, one earlier: three of them
    assert penalties([7] * 300, **dry)[7] == pytest.approx(1e9)  # however long


def test_dry_does_not_look_across_a_breaker() -> None:
    dry: dict[str, Any] = {"dry_multiplier": 0.8, "dry_base": 2.0, "dry_allowed_length": 2}
    text = [6, 5, 1, 2, 3, 4, 6, 5, 1, 2]
    assert penalties(text, dry_breakers=[[5]], **dry)[3] == 0.8  # 1 2 are behind it
    assert penalties(text, dry_breakers=[[6, 5]], **dry)[3] == 0.8
    assert penalties(text, dry_breakers=[[5, 6]], **dry)[3] == 3.2
    assert penalties(text, dry_breakers=[[1]], **dry)[3] == 0
    assert penalties(text, dry_breakers=[[3]], **dry)[3] == 0  # a breaker itself is not penalized


def test_top_n_sigma_counts_standard_deviations_below_the_largest() -> None:
    logits = np.array([2, 1, 0, -1, -2, -math.inf], F32)  # of standard deviation 1.414
    sampled = {
        n: {sampler_of(**OFF, top_n_sigma=n, seed=i).sample(logits) for i in range(200)} for n in (0.5, 0.8, 1.5, 3)
    }
    assert sampled == {0.5: {0}, 0.8: {0, 1}, 1.5: {0, 1, 2}, 3: {0, 1, 2, 3, 4}}


def test_xtc_leaves_the_least_likely_of_the_top_choices() -> None:
    p = [0.4, 0.3, 0.2, 0.1]
    assert drawn(p, xtc_probability=1.0, xtc_threshold=0.15) == {2, 3}
    assert drawn(p, xtc_probability=1.0, xtc_threshold=0.35) == {0, 1, 2, 3}  # a single one is no choice
    assert drawn(p, xtc_probability=1.0, xtc_threshold=0.0) == {3}
    assert drawn(p, xtc_probability=0.5, xtc_threshold=0.15) == {0, 1, 2, 3}
    assert drawn(p, xtc_probability=1.0, xtc_threshold=0.25, top_k=2) == {1}


def test_a_token_at_the_threshold_is_a_top_choice() -> None:
    assert drawn([0.25] * 4, xtc_probability=1.0, xtc_threshold=0.25) == {3}
    assert drawn([0.25] * 4, xtc_probability=1.0, xtc_threshold=0.25 + 1e-12) == {0, 1, 2, 3}


@pytest.mark.parametrize("banned", [{3: -math.inf}, {3: -math.inf, 0: -math.inf}])
def test_xtc_with_banned_tokens(banned: dict[int, float]) -> None:
    assert drawn([0.4, 0.3, 0.2, 0.1], xtc_probability=1.0, xtc_threshold=0.0, logit_bias=banned) == {2}


def test_xtc_works_at_some_tokens_only() -> None:
    sampler = sampler_of(**OFF, xtc_probability=0.25, xtc_threshold=0.1, seed=1)
    logits = np.log(np.array([0.5, 0.5 - 1e-6], F32))  # without XTC both, with it the second
    counts = Counter(sampler.sample(logits) for _ in range(4000))
    assert counts[1] / 4000 == pytest.approx(0.25 + 0.75 / 2, abs=0.03)


@pytest.mark.parametrize("tau", [2.0, 4.0, 6.0])
def test_mirostat_holds_the_surprise(tau: float) -> None:
    p = 1 / np.arange(1, 5001) ** 1.1
    logits = np.log(p / p.sum()).astype(F32)
    sampler = sampler_of(mirostat_tau=tau, mirostat_eta=0.1, temperature=1, top_k=1, seed=1)  # top_k is left out
    ids = [sampler.sample(logits) for _ in range(3000)]
    # Of what was kept: a bound on the surprise that is steady keeps about the same tokens each time.
    late = [-math.log2(p[i] / p[: max(ids[500:]) + 1].sum()) for i in ids[500:]]
    assert np.mean(late) == pytest.approx(tau, rel=0.25)


def test_mirostat_keeps_a_surprise_up_to_the_bound() -> None:
    assert drawn([0.25] * 4, mirostat_tau=1.0, mirostat_eta=0.0) == {0, 1, 2, 3}  # of 2 bits each
    assert drawn([0.25] * 4, mirostat_tau=1.0 - 1e-10, mirostat_eta=0.0) == {0}


def test_mirostat_keeps_one_token_at_least() -> None:
    assert drawn([0.5, 0.3, 0.2], mirostat_tau=1e-9, mirostat_eta=0.0) == {0}
    assert drawn([0.5, 0.3, 0.2], mirostat_tau=100.0) == {0, 1, 2}
    assert drawn([0.5, 0.3, 0.2], mirostat_tau=100.0, temperature=0) == {0}


# --- Bans ----------------------------------------------------------------------------------------------------------


def test_end_tokens_are_banned_until_enough_is_written() -> None:
    logits = np.array([0, 5, 1], F32)
    parameters = SamplingParameters(temperature=0, min_tokens=2)
    sampler = OneText(parameters, FIRST_CONTEXT, 3, eos_ids=[1], n_prompt=4)
    assert [sampler.sample(logits, np.zeros(n, np.int32)) for n in (4, 5, 6, 7)] == [2, 2, 1, 1]


def test_bad_words_are_never_completed() -> None:
    logits = np.array([0, 3, 2, 1], F32)
    greedy = sampler_of(temperature=0, bad_words=[[1, 1], [0, 2, 1], [3]])
    for text, expected in (([], 1), ([1], 2), ([0, 1], 2), ([2], 1), ([0, 2], 2), ([0, 0, 2], 2), ([1, 0], 1)):
        assert greedy.sample(logits, np.array(text, np.int32)) == expected


def test_only_allowed_tokens_are_drawn() -> None:
    assert drawn([0.5, 0.2, 0.2, 0.1], allowed_token_ids=[3, 1]) == {1, 3}
    logits = np.zeros(100, F32)
    sampler = sampler_of(**OFF, allowed_token_ids=range(50, 100), seed=1)
    assert {sampler.sample(logits, mask=mask_of(range(48, 53), 100)) for _ in range(100)} == {50, 51, 52}
    with pytest.raises(InvalidArgumentError, match="all banned"):
        sampler.sample(logits, mask=mask_of([3], 100))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_an_error_even_of_banned_tokens(bad: float) -> None:
    with pytest.raises(NonFiniteError, match="token 1"):
        sampler_of(logit_bias={1: -math.inf}).sample(np.array([1, bad, 0], F32))


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_penalty_cannot_make_a_logit_infinite(temperature: float) -> None:
    sampler = sampler_of(temperature=temperature, repetition_penalty=0.01)
    assert sampler.sample(np.array([3e38, -3e38, 1], F32), np.array([0, 1, 2], np.int32)) == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, v) for name in ("min_p", "typical_p") for v in (-0.1, 1.0001, float("nan"), "x", None, True)],
        *[("repetition_penalty", v) for v in (0, -1, 0.009, 101, float("inf"), float("nan"), "1", None)],
        *[
            (name, v)
            for name in ("presence_penalty", "frequency_penalty")
            for v in (-101, 101, float("nan"), float("inf"), "1", None)
        ],
        *[("penalty_window", v) for v in (-1, 1.5, "4", None, True)],
        *[("dry_multiplier", v) for v in (-0.1, 101, float("nan"), "1", None)],
        *[("dry_base", v) for v in (0.9, 101, float("nan"), None)],
        *[("dry_allowed_length", v) for v in (0, -1, 1.5, None)],
        *[(name, v) for name in ("dry_window", "min_tokens") for v in (-1, 1.5, None, True)],
        *[(name, v) for name in ("top_n_sigma", "mirostat_tau") for v in (-1, 101, float("nan"), None)],
        *[
            (name, v)
            for name in ("xtc_probability", "xtc_threshold", "mirostat_eta")
            for v in (-0.1, 1.1, float("nan"), None)
        ],
        *[
            (name, v)
            for name in ("bad_words", "dry_breakers")
            for v in (5, "ab", [5], [[]], ["ab"], [[-1]], [[10]], [[1.5]], {1: 2})
        ],
        *[("allowed_token_ids", v) for v in (5, "ab", [], [-1], [10], [1.5], ["a"], [2**70], {1: 2})],
        *[("logit_bias", v) for v in ([1], 5, "1=2", {1: float("nan")}, {1: math.inf}, {1: 2e9}, {1: "x"}, {1: None})],
        *[("logit_bias", {v: 1.0}) for v in (-1, 1.5, "1", 10, 2**70, True)],
    ],
)
def test_parameters_out_of_range_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=f"expected .*{name}"):
        sampler_of(n_vocab=10, **{name: value})


def test_a_bias_outside_the_logits_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="from 0 to 2 in logit_bias, found 3"):
        sampler_of(logit_bias={3: 1.0}, n_vocab=3)
