"""The scheduler over random histories, with a pool of pages that are counted one by one."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from pymixtral.engine.scheduler import Entry, Scheduler
from pymixtral.ops import PAGE
from support.page_pool import Pool, end


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
