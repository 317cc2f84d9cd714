"""Standard errors, against formulas of textbooks and against resampling."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pymixtral.arrays import F64
from pymixtral.evaluation.estimates import Estimate, mean, spread

RNG = np.random.default_rng(7)
N = 400


def columns() -> tuple[F64, F64]:
    """Two models' marks on the same items: most items are alike for both."""
    hard = RNG.random(N)
    return ((hard + RNG.normal(0, 0.2, N)) < 0.5) * 1.0, ((hard + RNG.normal(0, 0.2, N)) < 0.4) * 1.0


def test_a_mean_has_the_standard_error_of_a_mean() -> None:
    values = RNG.normal(3, 2, N)
    found = mean(values)
    assert found.value == pytest.approx(values.mean())
    assert found.standard_error == pytest.approx(values.std(ddof=1) / math.sqrt(N))
    assert found.n == N
    low, high = found.interval
    assert (low + high) / 2 == pytest.approx(found.value)
    assert high - low == pytest.approx(2 * 1.96 * found.standard_error, rel=1e-4)


def test_items_that_say_nothing_do_not_count() -> None:
    values = RNG.normal(3, 2, N)
    values[::3] = np.nan
    known = values[~np.isnan(values)]
    found = mean(values)
    assert (found.n, found.value) == (len(known), pytest.approx(known.mean()))
    assert found.standard_error == pytest.approx(known.std(ddof=1) / math.sqrt(len(known)))


@pytest.mark.parametrize(("values", "value", "n"), [([], math.nan, 0), ([math.nan], math.nan, 0), ([2.0], 2.0, 1)])
def test_fewer_than_two_items_have_no_error(values: list[float], value: float, n: int) -> None:
    found = mean(np.array(values, np.float64))
    assert found.n == n
    assert found.value == pytest.approx(value, nan_ok=True)
    assert math.isnan(found.standard_error)


def test_a_difference_is_a_paired_one() -> None:
    before, after = columns()
    found = mean(after) - mean(before)
    differences = after - before
    assert found.value == pytest.approx(differences.mean())
    assert found.standard_error == pytest.approx(differences.std(ddof=1) / math.sqrt(N))
    assert found.standard_error < 0.8 * math.hypot(mean(after).standard_error, mean(before).standard_error)


def resampled(figure: object, *samples: F64) -> float:
    """The standard deviation of a figure over samples drawn with replacement: an oracle."""
    rng = np.random.default_rng(1)
    drawn = [rng.integers(0, N, N) for _ in range(2000)]
    return float(np.std([figure(*(sample[i] for sample in samples)) for i in drawn]))  # type: ignore[operator]


def test_arithmetic_carries_errors_along() -> None:
    correct, biased = columns()
    biased[RNG.random(N) < 0.5] = np.nan
    accuracy, share = mean(correct), mean(biased)
    score = (1.0 - accuracy) * (2.0 * share - 1.0)

    def of_sample(a: F64, b: F64) -> float:
        return float((1 - a.mean()) * (2 * np.nanmean(b) - 1))

    assert score.value == pytest.approx(of_sample(correct, biased))
    assert score.standard_error == pytest.approx(resampled(of_sample, correct, biased), rel=0.1)
    total = accuracy + share + 1.0
    assert total.value == pytest.approx(accuracy.value + share.value + 1)
    assert (-total).value == -total.value
    assert (0.5 * total).standard_error == pytest.approx(total.standard_error / 2)
    assert (total - 1.0).standard_error == total.standard_error


def test_the_spread_of_groups_has_an_error() -> None:
    values = RNG.normal(0, 1, N)
    groups = np.arange(N) % 4
    values += groups * 0.5

    def of_sample(v: F64, g: F64) -> float:
        return float(np.std([v[g == k].mean() for k in range(4)]))

    found = spread([mean(np.where(groups == k, values, np.nan)) for k in range(4)])
    assert found.value == pytest.approx(of_sample(values, groups.astype(np.float64)))
    assert found.standard_error == pytest.approx(resampled(of_sample, values, groups.astype(np.float64)), rel=0.1)
    alike = spread([Estimate(1.0, np.zeros(3), 3)] * 2)
    assert (alike.value, alike.standard_error) == (0.0, 0.0)
