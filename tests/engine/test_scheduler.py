"""The scheduler's single decisions: who begins, who goes on, who gives way."""

from __future__ import annotations

import pytest

from pymixtral.engine.scheduler import Entry, Scheduler
from pymixtral.ops import PAGE
from support.page_pool import Pool, end


def entries(scheduler: Scheduler, *texts: tuple[int, int]) -> list[Entry]:
    """New texts of some priority and length, which wait."""
    assert isinstance(scheduler.pool, Pool)
    result = []
    for priority, n_ids in texts:
        number = len(scheduler.pool.numbers)
        result.append(Entry(priority, number, n_ids))
        scheduler.pool.numbers[result[-1]] = number, 0
        scheduler.add(result[-1])
    return result


def step(scheduler: Scheduler, budget: int) -> dict[Entry, int]:
    """A plan and its pass; texts that are computed generate a token."""
    pool = scheduler.pool
    assert isinstance(pool, Pool)
    batch = scheduler.plan(budget)
    for entry, n in batch:
        pool.compute(entry, n)
        pool.share(entry)
        entry.n_ids += not entry.n_left
    return dict(batch)


@pytest.mark.parametrize("budget", [512, 64])
def test_a_higher_priority_takes_the_place_of_a_text_that_generates(budget: int) -> None:
    scheduler = Scheduler(Pool(100), 2)
    low = entries(scheduler, (5, 10), (5, 10))
    step(scheduler, 512)
    (high,) = entries(scheduler, (0, 10))
    assert step(scheduler, budget) == {low[0]: 1, high: 10}
    assert scheduler.waiting == [low[1]]


def test_an_equal_priority_takes_no_place() -> None:
    scheduler = Scheduler(Pool(100), 2)
    entries(scheduler, (5, 10), (5, 10))
    step(scheduler, 512)
    (later,) = entries(scheduler, (5, 10))
    step(scheduler, 512)
    assert scheduler.waiting == [later]


def test_a_higher_priority_goes_before_long_prompts() -> None:
    scheduler = Scheduler(Pool(1000), 8)
    low = entries(scheduler, (5, 10_000), (5, 9_000))
    step(scheduler, 100)
    step(scheduler, 100)
    (high,) = entries(scheduler, (0, 300))
    assert step(scheduler, 512)[high] == 300
    assert {*scheduler.running, *scheduler.waiting} == {*low, high}


def test_a_text_that_cannot_begin_stops_no_other() -> None:
    scheduler = Scheduler(Pool(10), 8)
    (first,) = entries(scheduler, (0, 64 * 6))
    step(scheduler, 512)
    (low,) = entries(scheduler, (5, 32))
    step(scheduler, 512)
    (high,) = entries(scheduler, (0, 64 * 8))
    assert step(scheduler, 512) == {first: 1, low: 1}
    assert scheduler.waiting == [high]


def test_a_long_prompt_gets_its_turn_among_shorter_ones() -> None:
    scheduler = Scheduler(Pool(1000), 8)
    (long,) = entries(scheduler, (0, 64 * 40))
    n_passes = 0
    while long.n_left > 1:
        entries(scheduler, (0, 1900))
        step(scheduler, 72)  # a page, and too little of a second prompt
        n_passes += 1
        for entry in [entry for entry in scheduler.running if entry.n_left == 1 and entry is not long]:
            end(scheduler, entry)
    assert n_passes < 100  # over 300 if each shorter one goes before it


def test_a_long_prompt_of_higher_priority_leaves_one_other_partly_computed() -> None:
    scheduler = Scheduler(Pool(1000), 8)
    low = entries(scheduler, (5, 10_000), (5, 9_000))
    step(scheduler, 100)
    assert scheduler.running == low
    (high,) = entries(scheduler, (0, 300))
    assert step(scheduler, 100) == {high: 64, low[0]: 36}
    assert scheduler.waiting == [low[1]]


def test_a_text_that_gives_way_leaves_its_pages_for_this_pass() -> None:
    scheduler = Scheduler(Pool(4), 8)
    (low,) = entries(scheduler, (5, 64))
    step(scheduler, 512)  # its next token takes a page
    (high,) = entries(scheduler, (0, 250))
    assert step(scheduler, 512) == {high: 250}
    assert scheduler.waiting == [low]


def test_a_guess_takes_no_pages_from_another_text() -> None:
    scheduler = Scheduler(Pool(3), 8)
    first, second = entries(scheduler, (0, 61), (0, 61))
    step(scheduler, 512)
    first.n_drafted = second.n_drafted = 4
    assert dict(scheduler.plan(512)) == {first: 5, second: 1}
    assert second.n_drafted == 0


def test_a_few_tokens_of_a_second_prompt_are_not_worth_it() -> None:
    scheduler = Scheduler(Pool(100), 8)
    first, _second = entries(scheduler, (0, 500), (0, 400))
    assert step(scheduler, 70) == {first: 64}


def test_a_text_begins_only_if_running_prompts_have_room_for_all_of_theirs() -> None:
    scheduler = Scheduler(Pool(10), 8)
    (first,) = entries(scheduler, (0, 64 * 9))
    step(scheduler, 64)
    (second,) = entries(scheduler, (0, 65))
    while first.n_left > 1:
        step(scheduler, 100)
        assert scheduler.waiting == [second]
    assert scheduler.n_preempted == 0


def test_a_small_budget_gives_each_pass_tokens_of_a_prompt() -> None:
    scheduler = Scheduler(Pool(1000), 8)
    entries(scheduler, (0, 5))
    step(scheduler, 8)
    (prompt,) = entries(scheduler, (0, 200))
    for _ in range(40):
        step(scheduler, 8)
    assert prompt.n_left == 1


@pytest.mark.parametrize("n_computed", [1, 63, 65, 127])
def test_a_lone_text_with_a_shared_tail_goes_on_in_a_page_more_than_it_has(n_computed: int) -> None:
    pool = Pool(3)
    scheduler = Scheduler(pool, 4)
    first, second = (Entry(0, i, n_computed + 1, n_computed, shares_tail=True) for i in range(2))
    n_held = -(-n_computed // PAGE)
    pool.numbers |= {first: (0, 0), second: (1, 0)}
    pool.own |= {first: 0, second: 0}
    for i in range(n_held):
        pool.index["text", 0, i] = {first, second}
    scheduler.running += [first, second]
    for _ in range(2 * PAGE - n_computed):
        batch = step(scheduler, 64)
        assert batch.get(first) == 1


def test_a_plan_is_cheap_with_many_texts() -> None:
    pool = Pool(10_000)
    scheduler = Scheduler(pool, 64)
    entries(scheduler, *[(i % 3, 100 + i) for i in range(1064)])
    while len(scheduler.running) < 64 or any(entry.n_left > 1 for entry in scheduler.running):
        step(scheduler, 512)
    pool.n_calls = 0
    for _ in range(20):
        scheduler.plan(512)
    assert pool.n_calls == 20  # each walks over all pages


def test_a_guess_takes_no_page_that_another_text_needs() -> None:
    guessing, other = Entry(0, 1, 61, 60, n_drafted=8), Entry(0, 2, 65, 64)
    scheduler = Scheduler(Pool(1), 4)
    scheduler.running += [guessing, other]
    assert scheduler.plan(16) == [(guessing, 1), (other, 1)]
    assert (scheduler.n_preempted, guessing.n_drafted) == (0, 0)
