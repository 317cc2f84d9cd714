"""The scheduler: which tokens of which texts the next pass computes.

It knows no model, clock or thread: texts are numbers, and the pages are asked of a pool.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

from pymixtral.ops import PAGE

_MAX_PROMPTS = 2
"""Prompts that may be partly computed at once. With more of them none would be complete soon."""

_MAX_PASSED_OVER = 3
"""Passes that a prompt may give way to a shorter one."""


@dataclass(eq=False)
class Entry:
    """What the scheduler knows of a text.

    Attributes:
        priority: texts of a lower number come first.
        arrival: orders texts of one priority; each has another one.
        n_ids: ids of the text so far.
        n_computed: those whose keys and values are in the cache.
        shares_tail: whether its last page is partly used and another's too, so that the next token
            takes a copy of it.
        n_drafted: ids after them that are proposed and not yet certain.
        passed_over: passes since its last tokens in which it gave way to a shorter prompt.
    """

    priority: int
    arrival: int
    n_ids: int
    n_computed: int = 0
    shares_tail: bool = False
    n_drafted: int = 0
    passed_over: int = 0

    @property
    def n_left(self) -> int:
        """Ids that are still to be computed, at least 1 while the text goes on."""
        return self.n_ids - self.n_computed

    @property
    def order(self) -> tuple[int, int]:
        """The text's place among others; lower comes first."""
        return self.priority, self.arrival

    @property
    def n_pages(self) -> int:
        """Pages that the text holds, some of them perhaps with others."""
        return -(-self.n_computed // PAGE)

    def n_new_pages(self, n_tokens: int) -> int:
        """Count the pages that the next tokens take.

        Args:
            n_tokens: how many tokens.

        Returns:
            The number of pages.
        """
        return -(-(self.n_computed + n_tokens) // PAGE) - self.n_pages + self.shares_tail


class Pool(Protocol):
    """The pages, and the texts that wait for some."""

    def n_available(self) -> int:
        """Count the pages that are free, or can be made so without taking one from a running text."""

    def begin(self, entry: Entry) -> None:
        """Take a text up: set n_computed and shares_tail by what is in the cache already."""

    def release(self, entry: Entry) -> None:
        """Take all pages from a text: n_computed is 0 and shares_tail False afterwards."""


class _Pass:
    """A pass that is being planned.

    Args:
        pool: the pages.
        budget: the most tokens of prompts.

    Attributes:
        tokens: how many tokens of each text it has.
        n_left: tokens of prompts that it may still have.
        n_available: pages that it may take.
    """

    def __init__(self, pool: Pool, budget: int) -> None:
        self._pool = pool
        self._budget = budget
        self._n_pages = 0
        self.tokens: dict[Entry, int] = {}
        self.n_left = budget
        self.n_available = pool.n_available()

    @property
    def n_spare(self) -> int:
        """Pages that are available beyond those that it takes."""
        return self.n_available - self._n_pages

    @property
    def has_prompts(self) -> bool:
        """Whether it has tokens of prompts."""
        return self.n_left < self._budget

    def add(self, entry: Entry, n_tokens: int, *, prompt: bool) -> None:
        """Adds tokens of a text that it does not have, for which there is room."""
        self.tokens[entry] = n_tokens
        self._n_pages += entry.n_new_pages(n_tokens)
        self.n_left -= n_tokens * prompt

    def drop(self, entry: Entry) -> None:
        """Leaves out a running text, before that gives its pages back."""
        n_tokens = self.tokens.pop(entry, 0)
        if n_tokens:
            self._n_pages -= entry.n_new_pages(n_tokens)

    def recount(self) -> None:
        """Asks the pool again, after a text took or gave pages."""
        self.n_available = self._pool.n_available()


@dataclass
class Scheduler:
    """The texts that wait and those that run, and the choice among them.

    A lower number of priority comes first, and takes the place of a higher one; within a priority
    the first that came is the first to run. Texts that generate go before prompts, a token each.
    Where pages are short, the running text that comes last gives all of its own back, and waits at
    its old place.

    Every text ends if no text is longer than the pool less a page: the first of all always gets
    what it needs.

    Attributes:
        pool: the pages.
        max_running: most texts that run at once, at least 1.
        waiting: texts that have no pages, in their order.
        running: texts that have.
        n_preempted: times that a text had to give its pages back.
    """

    pool: Pool
    max_running: int
    waiting: list[Entry] = field(default_factory=list)
    running: list[Entry] = field(default_factory=list)
    n_preempted: int = 0

    def add(self, entry: Entry) -> None:
        """Let a text wait for its turn.

        Args:
            entry: a new text.
        """
        insort(self.waiting, entry, key=_order)

    def remove(self, entry: Entry) -> None:
        """Forget a text; its pages are the caller's concern.

        Args:
            entry: a text that waits or runs.
        """
        if entry in self.running:
            self.running.remove(entry)
        else:
            del self.waiting[bisect_left(self.waiting, entry.order, key=_order)]

    def plan(self, budget: int) -> list[tuple[Entry, int]]:
        """Choose the next pass.

        Args:
            budget: the most tokens of prompts, at least 1.

        Returns:
            The texts and how many of their next tokens to compute. It is empty only if nothing
            runs or waits.
        """
        batch = _Pass(self.pool, budget)
        decoding = sorted((entry for entry in self.running if entry.n_left == 1), key=_order)
        n_spare = batch.n_spare - sum(entry.n_new_pages(1) for entry in decoding)
        for entry in decoding:
            n_more = entry.n_new_pages(1 + entry.n_drafted) - entry.n_new_pages(1)
            if n_more > n_spare:
                n_more = entry.n_drafted = 0  # a guess is worth no other text's pages
            n_spare -= n_more
            if entry in self.running and self._make_room(entry, 1 + entry.n_drafted, batch):
                batch.add(entry, 1 + entry.n_drafted, prompt=False)
        self._plan_prompts(batch)
        for entry in self.running:
            if entry in batch.tokens:
                entry.passed_over = 0
            elif any(other.n_left > 1 and other.order > entry.order for other in batch.tokens):
                entry.passed_over += 1
        return list(batch.tokens.items())

    def _plan_prompts(self, batch: _Pass) -> None:
        """Shares the budget among prompts: those that are partly computed, then those that wait."""
        prompts = deque(sorted((entry for entry in self.running if entry.n_left > 1), key=_turn))
        admits = True
        while batch.n_left > 0:
            if prompts and prompts[0] not in self.running:
                prompts.popleft()
                continue
            first = self.waiting[0] if self.waiting and admits else None
            if first and not (prompts and prompts[0].priority <= first.priority):
                admits = self._admit(first, batch)
                entry = first
                if not admits:
                    continue
            elif prompts:
                entry = prompts.popleft()
            else:
                break
            n = _chunk(entry, batch.n_left, little=not batch.has_prompts)
            if n and self._make_room(entry, n, batch):
                batch.add(entry, n, prompt=True)

    def _admit(self, entry: Entry, batch: _Pass) -> bool:
        """Takes up a text that waits, if there is room for all of its prompt."""
        if not self._lower(entry) and (
            len(self.running) >= self.max_running or len(self._partly(batch)) >= _MAX_PROMPTS
        ):
            return False  # begin() costs more than this
        self.pool.begin(entry)
        batch.recount()
        while (others := self._in_the_way(entry, batch)) is not None:
            if not others:
                self.pool.release(entry)
                batch.recount()
                return False
            self._preempt(max(others, key=_order), batch)
        self.remove(entry)
        self.running.append(entry)
        return True

    def _in_the_way(self, entry: Entry, batch: _Pass) -> list[Entry] | None:
        """Texts of lower priority of which one has to stop for a text; None if none has to."""
        lower = self._lower(entry)
        n_new = {other: other.n_new_pages(max(batch.tokens.get(other, 0), other.n_left)) for other in self.running}
        n_short = entry.n_new_pages(entry.n_left) + sum(n_new.values()) - batch.n_available
        if n_short > sum(other.n_pages + n_new[other] for other in lower):
            return []  # it would not be enough
        partly = self._partly(batch)
        if len(partly) >= _MAX_PROMPTS:
            return [other for other in lower if other in partly]
        return lower if n_short > 0 or len(self.running) >= self.max_running else None

    def _lower(self, entry: Entry) -> list[Entry]:
        """Running texts of lower priority."""
        return [other for other in self.running if other.priority > entry.priority]

    def _partly(self, batch: _Pass) -> list[Entry]:
        """Running prompts that a pass leaves incomplete."""
        return [other for other in self.running if other.n_left > max(1, batch.tokens.get(other, 0))]

    def _make_room(self, entry: Entry, n_tokens: int, batch: _Pass) -> bool:
        """Stops running texts from the last on until a text's tokens fit; False if that was itself."""
        while entry.n_new_pages(n_tokens) > batch.n_spare:
            last = max(self.running, key=_order)
            self._preempt(last, batch)
            if last is entry:
                return False
        return True

    def _preempt(self, entry: Entry, batch: _Pass) -> None:
        batch.drop(entry)
        self.running.remove(entry)
        self.pool.release(entry)
        batch.recount()
        entry.n_drafted = entry.passed_over = 0
        self.n_preempted += 1
        self.add(entry)


def _order(entry: Entry) -> tuple[int, int]:
    return entry.order


def _turn(entry: Entry) -> tuple[int, bool, int, int]:
    """The order of prompts: the one that is soonest complete first, but none gives way for long."""
    return entry.priority, entry.passed_over < _MAX_PASSED_OVER, entry.n_left, entry.arrival


def _chunk(entry: Entry, most: int, *, little: bool) -> int:
    """The next tokens of a prompt: all, or some that end with a page, so that others can share it.

    Fewer than a quarter of a page are worth a pass only if `little` says so.
    """
    if entry.n_left <= most:
        return entry.n_left
    begin = entry.n_computed
    end = (begin + most) // PAGE * PAGE
    if end > begin:
        return end - begin
    return most if little or most >= PAGE // 4 else 0
