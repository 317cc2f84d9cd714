"""The scheduler over random histories, with a pool of pages that are counted one by one."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pymixtral.engine.scheduler import Entry, Scheduler
from pymixtral.ops import PAGE

Key = tuple[str, int, int]
"""What a page has: the page's number in the text of a family or of a text of its own."""

CONSTANT = 200
"""Positions that the texts of a family have in common: 3 whole pages and a part of a fourth."""


@dataclass
class Text:
    """A text to come.

    Attributes:
        plan: the plan before which it comes.
        n_prompt: its ids at first.
        n_generated: ids until it ends.
        priority: see Entry.
        family: texts of one family begin alike; 0: like no other.
        cancel: plans after which it is cancelled; 0: never.
        n_drafted: proposed tokens in each pass.
        n_right: those of them that are right.
    """

    plan: int
    n_prompt: int
    n_generated: int
    priority: int = 0
    family: int = 0
    cancel: int = 0
    n_drafted: int = 0
    n_right: int = 0


@dataclass
class Pool:
    """Counts pages as the engine's loop does, with a prefix cache by key in place of contents.

    Attributes:
        n_pages: pages in all.
        index: the pages of the prefix cache, with the texts that hold them too.
        own: of each text, its pages that the prefix cache does not have.
        tails: of each text that has given its pages back, the positions of its last page.
        numbers: the number of each entry, and its family.
        n_calls: of n_available().
    """

    n_pages: int
    index: dict[Key, set[Entry]] = field(default_factory=dict)
    own: dict[Entry, int] = field(default_factory=dict)
    tails: dict[Key, int] = field(default_factory=dict)
    numbers: dict[Entry, tuple[int, int]] = field(default_factory=dict)
    n_calls: int = 0

    def key(self, entry: Entry, i: int) -> Key:
        number, family = self.numbers[entry]
        return ("family", family, i) if family and (i + 1) * PAGE <= CONSTANT else ("text", number, i)

    @property
    def n_free(self) -> int:
        return self.n_pages - len(self.index) - sum(self.own.values())

    def n_available(self) -> int:
        self.n_calls += 1
        return self.n_free + sum(not holders for holders in self.index.values())

    def begin(self, entry: Entry) -> None:
        assert entry.n_computed == 0
        assert entry not in self.own
        self.own[entry] = 0
        most = entry.n_ids - 1
        n = 0
        while n < most and self.key(entry, n // PAGE) in self.index:
            key = self.key(entry, n // PAGE)
            self.index[key].add(entry)
            n += min(PAGE, most - n, self.tails.get(key, PAGE))
            if n % PAGE:
                break
        entry.n_computed = n
        entry.shares_tail = n % PAGE > 0

    def release(self, entry: Entry) -> None:
        self.leave(entry)
        entry.n_computed = 0
        entry.shares_tail = False

    def leave(self, entry: Entry) -> None:
        for holders in self.index.values():
            holders.discard(entry)
        if self.own.pop(entry, 0):  # at most the last page, which becomes a leaf of the index
            key = self.key(entry, entry.n_computed // PAGE)
            if key not in self.index:
                self.index[key] = set()
                self.tails[key] = entry.n_computed % PAGE

    def compute(self, entry: Entry, n: int) -> None:
        """Takes the pages of a text's next tokens, each from the free ones or from the prefix cache."""
        begin = entry.n_computed
        n_new = -(-(begin + n) // PAGE) - -(-begin // PAGE)
        if entry.shares_tail:
            n_new += 1
            for key, holders in list(self.index.items()):
                if key[2] == begin // PAGE:
                    holders.discard(entry)
        for _ in range(n_new):
            if not self.n_free:
                del self.index[next(key for key in reversed(self.index) if not self.index[key])]
            self.own[entry] += 1
        entry.n_computed += n
        entry.shares_tail = False

    def truncate(self, entry: Entry, n: int) -> None:
        """Takes back the last tokens of a text, which are on pages of its own."""
        self.own[entry] -= -(-entry.n_computed // PAGE) - -(-n // PAGE)
        entry.n_computed = n

    def share(self, entry: Entry) -> None:
        """Gives the whole pages of a text to the prefix cache, or takes its equal ones."""
        n_whole = entry.n_computed // PAGE
        for i in range(n_whole):
            holders = self.index.setdefault(self.key(entry, i), set())
            if self.key(entry, i) in self.tails:
                del self.tails[self.key(entry, i)]
            holders.add(entry)
        self.own[entry] = int(entry.n_computed % PAGE > 0)


@dataclass
class Run:
    """What became of a history.

    Attributes:
        ends: the plan in which each text ended, by its number.
        n_plans: plans in all.
        n_preempted: texts that gave their pages back.
    """

    ends: dict[int, int]
    n_plans: int
    n_preempted: int


def run(
    texts: list[Text], n_pages: int, max_running: int, budgets: list[int], lost: frozenset[int] = frozenset()
) -> Run:
    """Plays a history and checks each plan.

    Args:
        texts: what comes.
        n_pages: pages of the pool.
        max_running: see Scheduler.
        budgets: of the plans, in turns.
        lost: plans whose pass comes to nothing, as if it was cancelled.
    """
    pool = Pool(n_pages)
    scheduler = Scheduler(pool, max_running)
    coming = sorted(enumerate(texts), key=lambda pair: pair[1].plan)
    numbers: dict[Entry, int] = {}
    ends: dict[int, int] = {}
    work = sum(5 * (text.n_prompt + text.n_generated) + 10 for text in texts)
    bound = max((text.plan for text in texts), default=0) + work + len(lost)
    plan = 0
    while coming or numbers:
        assert plan <= bound, "a text does not end"
        while coming and coming[0][1].plan <= plan:
            number, text = coming.pop(0)
            entry = Entry(text.priority, number + 1000 * text.plan, text.n_prompt)
            numbers[entry] = number
            pool.numbers[entry] = number, text.family
            scheduler.add(entry)
        for entry, number in list(numbers.items()):
            if 0 < texts[number].cancel <= plan - texts[number].plan:
                end(scheduler, entry)
                del numbers[entry]
        for entry in scheduler.running:
            if entry.n_left == 1 and entry.n_ids > texts[numbers[entry]].n_prompt:
                text = texts[numbers[entry]]
                entry.n_drafted = min(text.n_drafted, text.n_prompt + text.n_generated - entry.n_ids - 1)
        budget = budgets[plan % len(budgets)]
        before = {entry: entry.n_left for entry in scheduler.running}
        n_preempted = scheduler.n_preempted
        batch = scheduler.plan(budget)
        check(pool, scheduler, batch, budget, before, exact=scheduler.n_preempted == n_preempted and not lost)
        assert bool(batch) == bool(numbers)
        if plan not in lost:
            for entry, n in batch:
                pool.compute(entry, n)
            for entry, _ in batch:
                text = texts[numbers[entry]]
                if entry.n_left <= 0:  # the last rows give a token, and one more for each right guess
                    n_wrong = entry.n_drafted - min(text.n_right, entry.n_drafted)
                    pool.truncate(entry, entry.n_computed - n_wrong)
                    entry.n_ids = entry.n_computed + 1
                    entry.n_drafted = 0
                pool.share(entry)
                if entry.n_ids >= text.n_prompt + text.n_generated:
                    ends[numbers.pop(entry)] = plan
                    end(scheduler, entry)
        plan += 1
    assert not scheduler.running
    assert not scheduler.waiting
    assert pool.n_available() == n_pages
    return Run(ends, plan, scheduler.n_preempted)


def end(scheduler: Scheduler, entry: Entry) -> None:
    assert isinstance(scheduler.pool, Pool)
    scheduler.remove(entry)
    scheduler.pool.leave(entry)


def check(
    pool: Pool,
    scheduler: Scheduler,
    batch: list[tuple[Entry, int]],
    budget: int,
    before: dict[Entry, int],
    *,
    exact: bool,
) -> None:
    """Checks a plan.

    Args:
        before: the texts that ran before, with what was left of them.
        exact: no text gave its pages back, and no pass was lost.
    """
    assert len(scheduler.running) <= scheduler.max_running
    assert len({entry for entry, _ in batch}) == len(batch)
    assert sum(entry.n_new_pages(n) for entry, n in batch) <= pool.n_available()
    left = budget
    for entry, n in batch:
        assert entry in scheduler.running
        if before.get(entry) == 1 and entry.n_left == 1:  # it generates
            assert n == 1 + entry.n_drafted
            continue
        assert 1 <= n <= entry.n_left
        if exact:
            to_page_end = PAGE - entry.n_computed % PAGE
            whole = n == entry.n_left or (entry.n_computed + n) % PAGE == 0
            assert whole or to_page_end > left, "a chunk could have ended with a page"
        left -= n
    assert left >= 0
    planned = dict(batch)
    partly = [entry for entry in scheduler.running if entry.n_left > max(1, planned.get(entry, 0))]
    if exact:
        assert len(partly) <= 2
    for entry in scheduler.waiting:
        assert entry.n_computed == 0
        assert not entry.shares_tail
    generating = [entry for entry, n_left in before.items() if n_left == 1 and entry in scheduler.running]
    assert all(entry in planned for entry in generating), "a text that generates waits in vain"


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Text], int, int, list[int], frozenset[int]]:
    n_pages = draw(st.integers(2, 12))
    longest = (n_pages - 1) * PAGE
    texts = []
    for _ in range(draw(st.integers(1, 10))):
        n_prompt = draw(st.integers(1, longest))
        n_drafted = draw(st.sampled_from([0, 0, 4]))
        texts.append(
            Text(
                draw(st.integers(0, 30)),
                n_prompt,
                min(draw(st.integers(1, 80)), longest - n_prompt + 1),
                priority=draw(st.integers(-1, 1)),
                family=draw(st.integers(0, 2)),
                cancel=draw(st.sampled_from([0, 0, 0, 1, 5, 20])),
                n_drafted=n_drafted,
                n_right=draw(st.integers(0, n_drafted)),
            )
        )
    budgets = draw(st.lists(st.integers(1, 300), min_size=1, max_size=4))
    lost = draw(st.frozensets(st.integers(0, 60), max_size=6))
    return texts, n_pages, draw(st.integers(1, 6)), budgets, lost


@settings(max_examples=1500, deadline=None)
@given(histories())
def test_every_text_ends_and_pages_suffice(history: tuple[list[Text], int, int, list[int], frozenset[int]]) -> None:
    texts, n_pages, max_running, budgets, lost = history
    ends = run(texts, n_pages, max_running, budgets, lost).ends
    assert {i for i, text in enumerate(texts) if not text.cancel} <= ends.keys()


@settings(max_examples=700, deadline=None)
@given(
    st.integers(2, 8),
    st.data(),
    st.integers(1, 5),
    st.lists(st.integers(1, 300), min_size=1, max_size=5),
    st.lists(st.integers(0, 8), min_size=2, max_size=8),
)
def test_equal_texts_end_in_the_order_they_came(
    n_pages: int, data: st.DataObject, max_running: int, budgets: list[int], plans: list[int]
) -> None:
    longest = (n_pages - 1) * PAGE
    n_prompt = data.draw(st.integers(1, longest))
    n_generated = min(data.draw(st.integers(1, 100)), longest - n_prompt + 1)
    ends = run([Text(plan, n_prompt, n_generated) for plan in sorted(plans)], n_pages, max_running, budgets).ends
    assert [ends[i] for i in range(len(plans))] == sorted(ends.values())


def test_texts_that_give_their_pages_back_end_too() -> None:
    result = run([Text(0, 60, 200), Text(0, 60, 200), Text(0, 60, 200)], 6, 3, [512])
    assert result.n_preempted > 0
    assert result.ends[0] < result.ends[1] < result.ends[2]


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
