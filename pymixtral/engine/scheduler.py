"""The scheduler: which tokens of which texts the next pass computes.

It knows no model, clock or thread: texts are numbers, and the pages are asked of a pool.
"""

from __future__ import annotations

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
        passed_over: passes in which it gave way to a shorter prompt.
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

    def n_new_pages(self, n_tokens: int) -> int:
        """Count the pages that the next tokens take.

        Args:
            n_tokens: how many tokens.

        Returns:
            The number of pages.
        """
        n_held = -(-self.n_computed // PAGE)
        return -(-(self.n_computed + n_tokens) // PAGE) - n_held + self.shares_tail


class Pool(Protocol):
    """The pages, and the texts that wait for some."""

    def n_available(self) -> int:
        """Count the pages that are free, or can be made so without taking one from a running text."""

    def begin(self, entry: Entry) -> None:
        """Take a text up: set n_computed and shares_tail by what is in the cache already."""

    def release(self, entry: Entry) -> None:
        """Take all pages from a text: n_computed is 0 and shares_tail False afterwards."""


@dataclass
class Scheduler:
    """The texts that wait and those that run, and the choice among them.

    Within a priority the first that came is the first to run. Texts that generate go before
    prompts, a token each. Where pages are short, the running text that comes last gives all of its
    own back, and waits at its old place.

    Attributes:
        pool: the pages.
        max_running: most texts that run at once, at least 1.
        waiting: texts that have no pages.
        running: texts that have.
    """

    pool: Pool
    max_running: int
    waiting: list[Entry] = field(default_factory=list)
    running: list[Entry] = field(default_factory=list)

    def add(self, entry: Entry) -> None:
        """Let a text wait for its turn.

        Args:
            entry: a new text.
        """
        self.waiting.append(entry)

    def remove(self, entry: Entry) -> None:
        """Forget a text; its pages are the caller's concern.

        Args:
            entry: a text that waits or runs.
        """
        (self.running if entry in self.running else self.waiting).remove(entry)

    def plan(self, budget: int) -> list[tuple[Entry, int]]:
        """Choose the next pass.

        Args:
            budget: the most tokens of prompts, at least 1. A prompt's first tokens may go beyond it
                up to the end of their page if there is nothing else to do.

        Returns:
            The texts and how many of their next tokens to compute. It is empty only if nothing
            runs or waits.
        """
        batch: list[tuple[Entry, int]] = []
        decoding = [entry for entry in self.running if entry.n_left == 1]
        full = False  # whether a text had to give pages back: then none begins
        for entry in sorted(decoding, key=lambda e: e.order):
            if entry not in self.running:
                continue
            if self._n_planned(batch) + entry.n_new_pages(1 + entry.n_drafted) > self.pool.n_available():
                entry.n_drafted = 0  # a guess is worth no other text's pages
            full |= self._make_room(entry, 1 + entry.n_drafted, batch)
            if entry in self.running:
                batch.append((entry, 1 + entry.n_drafted))
        left = budget
        prompts = [entry for entry in self.running if entry.n_left > 1]
        for entry in sorted(prompts, key=lambda e: (e.passed_over < _MAX_PASSED_OVER, e.n_left, e.order)):
            if entry not in self.running:
                continue
            n = _chunk(entry, left, alone=not batch)
            if n:
                full |= self._make_room(entry, n, batch)
            if entry in self.running and n:
                batch.append((entry, n))
                left -= n
        while left > 0 and not full and self._n_unfinished(batch) < _MAX_PROMPTS:
            admitted = self._admit(batch)
            if admitted is None:
                break
            n = _chunk(admitted, left, alone=not batch)
            if n:
                batch.append((admitted, n))
                left -= n
        served = {id(entry) for entry, _ in batch}
        for entry in self.running:
            entry.passed_over = 0 if id(entry) in served else entry.passed_over + 1
        return batch

    def _n_unfinished(self, batch: list[tuple[Entry, int]]) -> int:
        """Running prompts that this pass leaves incomplete."""
        planned = {id(entry): n for entry, n in batch}
        return sum(entry.n_left - planned.get(id(entry), 0) > 0 for entry in self.running if entry.n_left > 1)

    def _admit(self, batch: list[tuple[Entry, int]]) -> Entry | None:
        """Takes up the first text that waits, if there is room for all of its prompt."""
        if not self.waiting:
            return None
        entry = min(self.waiting, key=lambda e: e.order)
        while len(self.running) >= self.max_running:
            if not self._preempt_for(entry, batch):
                return None
        self.pool.begin(entry)
        while self._n_promised(batch) + entry.n_new_pages(entry.n_left) > self.pool.n_available():
            if not self._preempt_for(entry, batch):
                self.pool.release(entry)
                return None
        self.waiting.remove(entry)
        self.running.append(entry)
        return entry

    def _n_promised(self, batch: list[tuple[Entry, int]]) -> int:
        """Pages that this pass and the rest of the running prompts will take."""
        planned = {id(entry): n for entry, n in batch}
        return sum(entry.n_new_pages(max(planned.get(id(entry), 0), entry.n_left)) for entry in self.running)

    def _preempt_for(self, entry: Entry, batch: list[tuple[Entry, int]]) -> bool:
        """Stops a running text of lower priority that this pass does not have."""
        planned = {id(other) for other, _ in batch}
        others = [other for other in self.running if other.priority > entry.priority and id(other) not in planned]
        if not others:
            return False
        self._preempt(max(others, key=lambda e: e.order))
        return True

    def _make_room(self, entry: Entry, n_tokens: int, batch: list[tuple[Entry, int]]) -> bool:
        """Stops running texts from the last on, perhaps the entry itself, until its tokens fit."""
        stopped = False
        while self._n_planned(batch) + entry.n_new_pages(n_tokens) > self.pool.n_available():
            last = max(self.running, key=lambda e: e.order)
            batch[:] = [(other, n) for other, n in batch if other is not last]
            self._preempt(last)
            stopped = True
            if last is entry:
                break
        return stopped

    @staticmethod
    def _n_planned(batch: list[tuple[Entry, int]]) -> int:
        return sum(other.n_new_pages(n) for other, n in batch)

    def _preempt(self, entry: Entry) -> None:
        self.running.remove(entry)
        self.pool.release(entry)
        entry.n_drafted = 0
        self.waiting.append(entry)


def _chunk(entry: Entry, left: int, *, alone: bool) -> int:
    """The next tokens of a prompt: all, or some that end with a page, so that others can share it."""
    if entry.n_left <= left:
        return entry.n_left
    begin = entry.n_computed
    end = (begin + left) // PAGE * PAGE
    if end > begin:
        return end - begin
    return min(left, entry.n_left) if alone or left >= PAGE // 4 else 0
