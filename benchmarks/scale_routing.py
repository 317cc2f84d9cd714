"""How a question finds its machine."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scale_workload import Text

from pymixtral.ops import PAGE


@dataclass(frozen=True)
class Routing:
    """How a question finds its machine.

    Attributes:
        policy: "random"; "two": of two at random the one with fewer texts; "least": the one with
            the fewest of all, by what was known a while ago; "prefix": by a hash of the first ids;
            "conversation": by a hash of the conversation.
        pages: ids that "prefix" looks at, in pages.
        full: texts of the chosen machine from which on "prefix" and "conversation" look at two
            others and take the better one if it has two thirds of the texts or fewer.
        stale: seconds between two looks of "least".
        fronts: processes that route, of which a question meets any. Each knows only of the texts that
            it sent itself, but for "least", which asks the machines.
    """

    policy: str = "two"
    pages: int = 4
    full: int = 16
    stale: float = 1.0
    fronts: int = 1


POWER_OF_TWO = Routing()
"""The better one of two at random."""


class Router:
    """Chooses machines, by what it knows of them.

    Args:
        routing: how.
        n: machines that there will be.
        n_up: those that there are; the others are down.
        seed: of the hash.
        rng: draws the rest.

    Attributes:
        load: texts of each machine that each front knows of, int64 [fronts, n].
    """

    def __init__(self, routing: Routing, n: int, n_up: int, seed: int, rng: np.random.Generator) -> None:
        self._routing = routing
        self._rng = rng
        self.load = np.zeros((routing.fronts, n), np.int64)
        self._seen, self._looked = self.load.sum(0), -1.0
        self._salts = np.random.default_rng([seed, 1]).integers(1 << 63, size=n, dtype=np.uint64)
        self._alive = np.arange(n) < n_up
        self._ups = np.flatnonzero(self._alive)

    @property
    def n_up(self) -> int:
        """Machines that answer."""
        return len(self._ups)

    def set_up(self, i: int | slice, *, up: bool) -> None:
        """Note which machines answer; those that do not have no texts.

        Args:
            i: the machines.
            up: whether they do.
        """
        self._alive[i] = up
        self._ups = np.flatnonzero(self._alive)
        if not up:
            self.load[:, i] = 0

    def send(self, text: Text, now: float) -> int:
        """Choose a machine for a question, and count it there; one at least must be up.

        Args:
            text: the question.
            now: the time.

        Returns:
            The number of the machine.
        """
        text.front = int(self._rng.integers(self._routing.fronts)) if self._routing.fronts > 1 else 0
        i = self._choose(text, now, self.load[text.front])
        self.load[text.front, i] += 1
        return i

    def finish(self, text: Text, i: int) -> None:
        """Note that a machine has answered a question."""
        self.load[text.front, i] -= 1

    def _choose(self, text: Text, now: float, load: NDArray[np.int64]) -> int:
        routing, ups = self._routing, self._ups
        if routing.policy == "random":
            return int(ups[self._rng.integers(len(ups))])
        if routing.policy == "two":
            return self._better(load)
        if routing.policy == "least":
            if now - self._looked >= routing.stale:
                self._seen, self._looked = self.load.sum(0), now
            few = self._seen[ups]
            return int(self._rng.choice(ups[few == few.min()]))
        key = text.conversation.number if routing.policy == "conversation" else _hash(text, routing.pages)
        i = int(ups[np.argmax(_mix(self._salts[ups] ^ np.uint64(key)))])
        if load[i] >= routing.full:
            other = self._better(load)
            if 1.5 * load[other] <= load[i]:
                return other
        return i

    def _better(self, load: NDArray[np.int64]) -> int:
        a, b = (int(one) for one in self._ups[self._rng.integers(len(self._ups), size=2)])
        return a if load[a] <= load[b] else b


def _hash(text: Text, pages: int) -> int:
    """A number of the first whole pages of a prompt, at most some."""
    n = max(1, min(pages, text.n_prompt // PAGE)) * PAGE
    return zlib.crc32(text.ids[: min(n, text.n_prompt)].tobytes()) * 0x9E3779B97F4A7C15 & (1 << 64) - 1


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spreads bits, as splitmix64 does."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed
