"""The pace on machines of many speeds, whose passes take times by a rule."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pymixtral.engine.pace import Pace
from pymixtral.ops import PAGE

SECONDS = st.floats(0, 1e5) | st.sampled_from([0.0, 1e-12, 1e5])


def settled(pace: Pace, alone: float, per_token: float, n_decoding: int = 2, n: int = 30) -> int:
    """The budget after some passes, each with as many tokens of prompts as it may have."""
    for _ in range(n):
        budget = pace.budget(n_decoding)
        pace.observe(n_decoding, budget, alone + per_token * budget)
        pace.observe(n_decoding, 0, alone)
    return pace.budget(n_decoding)


@settings(max_examples=1000, deadline=None)
@given(
    st.none() | st.floats(1e-3, 1e6),
    st.integers(1, 100_000),
    st.lists(st.tuples(st.integers(0, 256), st.integers(0, 5000), SECONDS), max_size=30),
)
def test_a_budget_is_in_bounds_whatever_was_measured(
    limit: float | None, most: int, passes: list[tuple[int, int, float]]
) -> None:
    pace = Pace(limit, most)
    largest = PAGE // 2
    for n_decoding, n_prompt, seconds in passes:
        budget = pace.budget(n_decoding)
        assert type(budget) is int
        if n_decoding:
            assert 1 <= budget <= min(most, 2 * largest)
        else:
            assert budget == most
        pace.observe(n_decoding, n_prompt, seconds)
        largest = max(largest, n_prompt)


@settings(max_examples=300, deadline=None)
@given(st.floats(1e-3, 10), st.floats(1e-6, 1), st.floats(1.5, 50))
def test_a_pass_takes_what_the_limit_says(alone: float, per_token: float, times: float) -> None:
    budget = settled(Pace(times * alone, 512), alone, per_token)
    expected = (times - 1) * alone / per_token
    assert budget == pytest.approx(min(max(expected, 16), 512), abs=2, rel=1e-3)


@pytest.mark.parametrize(("alone", "per_token", "expected"), [(0.65, 0.1, 45), (0.09, 0.003, 210), (0.09, 0.0003, 512)])
def test_without_a_limit_a_pass_takes_eight_times_one_without_prompts(
    alone: float, per_token: float, expected: int
) -> None:
    assert settled(Pace(None, 512), alone, per_token) == pytest.approx(expected, abs=1)


def test_a_machine_that_slows_down_gets_less_and_then_more_again() -> None:
    pace = Pace(0.5, 512)
    fast = settled(pace, 0.1, 0.002)
    slow = settled(pace, 0.1, 0.01)
    assert (fast, slow) == (200, 40)
    assert settled(pace, 0.1, 0.002) in (199, 200)


def test_a_limit_below_a_pass_without_prompts_still_lets_prompts_go_on() -> None:
    assert settled(Pace(0.001, 512), 1.0, 0.1) == 16
    assert settled(Pace(0.001, 4), 1.0, 0.1) == 4


def test_a_budget_grows_only_with_what_was_measured() -> None:
    pace = Pace(None, 4096)
    pace.observe(0, 20, 1e-6)
    pace.observe(3, 0, 1.0)
    assert [pace.budget(3) for _ in range(10)] == [64] * 10
    for expected in (128, 256, 512):
        pace.observe(3, pace.budget(3), 1.0001)
        assert pace.budget(3) == expected


def test_it_learns_though_no_pass_is_without_prompts() -> None:
    pace = Pace(None, 512)
    pace.observe(0, 100, 1.0)
    budgets = []
    for _ in range(10):
        budgets.append(pace.budget(4))
        pace.observe(4, budgets[-1], 0.2 + 0.001 * budgets[-1])
    assert budgets[0] == 1
    assert budgets[-1] > 300


def test_a_pass_that_is_nearly_all_one_prompt_token_is_not_the_price_of_a_token() -> None:
    pace = Pace(None, 512)
    settled(pace, 0.1, 0.001)
    before = pace.budget(2)
    for _ in range(50):
        pace.observe(1, 2, 5.0)
    assert pace.budget(2) == before


def test_the_nearest_number_of_texts_counts() -> None:
    pace = Pace(None, 512)
    pace.observe(0, 512, 5.12)
    pace.observe(2, 0, 0.1)
    pace.observe(12, 0, 0.5)
    assert [pace.budget(n) for n in (1, 6, 8, 100)] == [70, 70, 350, 350]
