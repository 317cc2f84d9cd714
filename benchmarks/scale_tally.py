"""What happened on simulated machines, counted."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import log

import numpy as np

from pymixtral.arrays import F64


class Histogram:
    """Positive numbers, each known to half a percent."""

    def __init__(self) -> None:
        self._counts = np.zeros(3000, np.int64)

    def add(self, values: F64, times: int = 1) -> None:
        """Add numbers.

        Args:
            values: from 1e-6 to some 1e6.
            times: how often each.
        """
        bins = np.clip(np.log(np.maximum(values, 1e-6) / 1e-6) / 0.01, 0, 2999).astype(np.int64)
        np.add.at(self._counts, bins, times)

    def add_one(self, value: float) -> None:
        """Add a number, once; see add()."""
        self._counts[min(max(int(log(max(value, 1e-6) / 1e-6) / 0.01), 0), 2999)] += 1

    def __len__(self) -> int:
        return int(self._counts.sum())

    def quantile(self, q: float) -> float:
        """Find the number below which a part of all lies; NaN without any."""
        if not len(self):
            return float("nan")
        i = int(np.searchsorted(np.cumsum(self._counts), q * len(self)))
        return float(1e-6 * np.exp((i + 0.5) * 0.01))


@dataclass
class Tally:
    """What happened in a part of the time.

    Attributes:
        asked: questions.
        finished: answers.
        retried: questions whose machine failed.
        again: those of them that had a token already.
        generated: tokens of answers.
        prompt: tokens of prompts that were computed.
        cached: tokens of prompts that the cache had.
        passes: passes.
        texts: texts in all passes.
        preempted: times that a text gave its pages back.
        first: seconds to the first token.
        between: seconds between tokens.
    """

    asked: int = 0
    finished: int = 0
    retried: int = 0
    again: int = 0
    generated: int = 0
    prompt: int = 0
    cached: int = 0
    passes: int = 0
    texts: int = 0
    preempted: int = 0
    first: Histogram = field(default_factory=Histogram)
    between: Histogram = field(default_factory=Histogram)

    @property
    def hits(self) -> float:
        """The part of prompts' tokens that the cache had."""
        return self.cached / max(self.cached + self.prompt, 1)

    @property
    def batch(self) -> float:
        """Texts in a pass."""
        return self.texts / max(self.passes, 1)
