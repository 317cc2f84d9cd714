"""A pool of pages for the scheduler, counted one by one, and what ends a text in it."""

from __future__ import annotations

from dataclasses import dataclass, field

from pymixtral.engine.scheduler import Entry, Scheduler
from pymixtral.ops import PAGE

Key = tuple[str, int, int]
"""What a page has: the page's number in the text of a family or of a text of its own."""

CONSTANT = 200
"""Positions that the texts of a family have in common: 3 whole pages and a part of a fourth."""


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


def end(scheduler: Scheduler, entry: Entry) -> None:
    assert isinstance(scheduler.pool, Pool)
    scheduler.remove(entry)
    scheduler.pool.leave(entry)
