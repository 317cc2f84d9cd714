"""What sampling promises: seeds, probabilities, ties, edges, and errors."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pymixtral.errors import InvalidArgumentError, NonFiniteError
from support.samplers import sampler_of

LOGITS = (np.random.default_rng(5).standard_normal(1000) * 3).astype(np.float32)
# PYTHONPATH=tests/sampling python -c 'from test_sampler import *; print(draw(8, seed=7))'
GOLDEN = [871, 861, 185, 639, 803, 58, 639, 615]


def draw(n: int, logits: NDArray[np.float32] = LOGITS, **options: Any) -> list[int]:
    sampler = sampler_of(**options)
    return [sampler.sample(logits) for _ in range(n)]


def test_same_seed_same_ids_on_every_machine() -> None:
    assert draw(20, seed=7) == draw(20, seed=7)
    assert draw(20, seed=7) != draw(20, seed=8)
    assert draw(20) != draw(20)  # no seed: a new one each time
    assert draw(8, seed=7) == GOLDEN


def test_frequencies_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    counts = Counter(draw(4000, logits, temperature=1.0, top_k=0, top_p=1.0, seed=1))
    for i, p in enumerate([0.5, 0.3, 0.15, 0.05]):
        assert counts[i] / 4000 == pytest.approx(p, abs=0.03)
    assert set(draw(500, logits, temperature=1.0, top_k=3, top_p=1.0, seed=1)) == {0, 1, 2}
    assert set(draw(500, logits, temperature=1.0, top_k=0, top_p=0.75, seed=1)) == {0, 1}


def test_top_p_looks_at_the_models_own_probabilities_whatever_the_temperature() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    hot = draw(500, logits, temperature=1000.0, top_k=0, top_p=0.75, seed=1)
    assert set(hot) == {0, 1}
    assert Counter(hot)[1] > 200  # and the two are by then equally likely


def test_ties_go_to_the_lowest_id() -> None:
    logits = np.array([1, 2, -0.0, 2, 2, 0], np.float32)
    assert draw(1, logits, temperature=0) == [1]
    assert set(draw(200, logits, top_k=2, seed=1)) == {1, 3}
    assert set(draw(400, np.array([-0.0, 0, -0.0], np.float32), top_k=2, top_p=1.0, seed=1)) == {0, 1}


@pytest.mark.parametrize(
    "options", [{"temperature": 0}, {"temperature": 1e-60}, {"temperature": 1e-40}, {"top_k": 1}, {"top_p": 0}]
)
def test_edges_that_leave_one_token(options: dict[str, Any]) -> None:
    assert set(draw(20, seed=1, **options)) == {int(np.argmax(LOGITS))}


def test_extreme_values_are_defined() -> None:
    assert len(set(draw(50, temperature=1e9, top_k=10**12, top_p=1.0, seed=1))) > 40
    wide = np.array([-np.inf, 3e38, -3e38], np.float32)
    assert set(draw(20, wide, temperature=1.0, top_k=0, top_p=1.0, seed=1)) == {1}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0, 0.8])
def test_logits_that_are_not_finite_are_an_error_never_a_token(bad: float, temperature: float) -> None:
    logits = LOGITS.copy()
    logits[123] = bad
    with pytest.raises(NonFiniteError, match="token 123"):
        draw(1, logits, temperature=temperature)
    with pytest.raises(NonFiniteError):
        draw(1, np.full(4, -np.inf, np.float32), temperature=temperature)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("temperature", v) for v in (-1, -1e-9, float("nan"), float("inf"), 1e10, "1", None, True)],
        *[("top_p", v) for v in (-0.1, 1.0001, 2, float("nan"), "x", None)],
        *[("top_k", v) for v in (-1, 1.5, "4", None, True)],
        *[("seed", v) for v in (-1, 1.5, "4", True)],
    ],
)
def test_parameters_out_of_range_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=f"expected {name} to be"):
        sampler_of(**{name: value})
