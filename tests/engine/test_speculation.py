"""Prompt lookup against a search by the letter, and when it stops."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pymixtral.arrays import I32
from pymixtral.engine.speculation import PromptLookup


def array(ids: list[int]) -> I32:
    return np.array(ids, np.int32)


def searched(ids: list[int], most: int) -> list[int]:
    """What followed the last occurrence of the last 4, 3 or 2 ids."""
    for n in (4, 3, 2):
        for begin in range(len(ids) - n - 1, -1, -1):
            if ids[begin : begin + n] == ids[-n:]:
                return ids[begin + n :][:most]
    return []


@settings(max_examples=2000, deadline=None)
@given(
    st.integers(0, 3).flatmap(lambda n: st.lists(st.integers(0, n), max_size=40)), st.integers(1, 9), st.integers(0, 9)
)
def test_it_proposes_what_followed_the_last_occurrence(ids: list[int], most: int, room: int) -> None:
    proposed = PromptLookup(most).propose(array(ids), room)
    assert proposed.dtype == np.int32
    assert proposed.tolist() == searched(ids, min(most, room))


def test_a_longer_match_counts_more_than_a_later_one() -> None:
    assert PromptLookup(2).propose(array([1, 2, 3, 4, 5, 6, 3, 4, 7, 8, 1, 2, 3, 4]), 9).tolist() == [5, 6]


@pytest.mark.parametrize("ids", [[], [1], [1, 1], [1, 2], [1, 2, 3, 4]])
def test_a_text_that_repeats_nothing_gets_no_proposal(ids: list[int]) -> None:
    assert len(PromptLookup(4).propose(array(ids), 4)) == 0


def pattern(lookup: PromptLookup, n_accepted: int, n: int) -> list[bool]:
    """In which of n passes it proposes 4 tokens, if so many of them are right."""
    ids = array([5, 6, 7, 8, 9, 10] * 3)
    result = []
    for _ in range(n):
        n_drafted = len(lookup.propose(ids, 4))
        result.append(n_drafted == 4)
        if n_drafted:
            lookup.learn(n_drafted, n_accepted)
    return result


@pytest.mark.parametrize("n_accepted", [2, 3, 4])
def test_it_goes_on_while_it_pays(n_accepted: int) -> None:
    assert all(pattern(PromptLookup(4), n_accepted, 300))


@pytest.mark.parametrize("n_accepted", [0, 1])
def test_it_stops_while_it_does_not_pay_and_tries_again(n_accepted: int) -> None:
    proposes = pattern(PromptLookup(4), n_accepted, 400)
    rests = [len(rest) for rest in "".join("x" if proposed else "." for proposed in proposes).split("x") if rest]
    assert proposes[0]
    assert len(rests) >= 5
    assert rests[:-1] == [32] * (len(rests) - 1)
    assert sum(proposes) < 160


def test_a_text_that_begins_to_repeat_later_is_found() -> None:
    lookup = PromptLookup(4)
    assert sum(pattern(lookup, 0, 200)) < 80
    assert sum(pattern(lookup, 4, 200)) >= 168


def test_a_proposal_that_costs_more_must_be_right_more_often() -> None:
    cheap, dear = (sum(pattern(PromptLookup(4, cost), 2, 300)) for cost in (0.2, 0.8))
    assert cheap == 300
    assert dear < 100


@pytest.mark.parametrize("ids", [[7] * 400_000, [1, 2, 3] * 130_000, [*range(200_000), 199_998, 199_999]])
def test_a_long_text_takes_no_long_time(ids: list[int]) -> None:
    text = array(ids)
    begin = time.process_time()
    PromptLookup(16).propose(text, 16)
    assert time.process_time() - begin < 20  # a search by the letter takes minutes
