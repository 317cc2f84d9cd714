"""Prompt lookup: tokens that a text may repeat are proposed, and checked in one pass.

Each proposed token is drawn as if it were not proposed and kept while it is equal, so the text is
the same with any seed and temperature. Saxena 2023, "Prompt Lookup Decoding".
"""

from __future__ import annotations

import numpy as np

from pymixtral.arrays import I32

_LONGEST, _SHORTEST = 4, 2
"""Tokens at the end of the text that must have occurred before, in the order they are tried."""

_NEW = 0.2
"""The weight of a new pass in the running mean of accepted tokens."""

_REST = 32
"""Tokens without a proposal once they do not pay, before they are tried again."""


class PromptLookup:
    """Proposes what followed the last occurrence of the text's last tokens.

    A pass of several tokens costs more than one of one token, in a mixture of experts especially,
    as each token reads experts of its own. So proposals stop while fewer tokens are accepted than
    they cost, and are tried again later.

    Args:
        most: the most tokens to propose, at least 1.
        cost: what a proposed token adds to a pass, as a part of the pass of one token.
    """

    def __init__(self, most: int, cost: float = 0.35) -> None:
        self._most = most
        self._cost = cost
        self._gain = 1.0  # accepted tokens per proposed one; at first it is tried
        self._rest = 0

    def propose(self, ids: I32, most: int) -> I32:
        """Propose the next tokens.

        Args:
            ids: the text, int32 [n].
            most: the most tokens that have room.

        Returns:
            int32 [0 to most].
        """
        if self._rest:
            self._rest -= 1
            return ids[:0]
        for n in range(min(_LONGEST, len(ids) - 1), _SHORTEST - 1, -1):
            begin = _last_occurrence(ids, n)
            if begin >= 0:
                return ids[begin + n : begin + n + min(self._most, most)]
        return ids[:0]

    def learn(self, n_drafted: int, n_accepted: int) -> None:
        """Note how a proposal fared.

        Args:
            n_drafted: tokens proposed, at least 1.
            n_accepted: those that were kept.
        """
        self._gain += _NEW * (n_accepted / n_drafted - self._gain)
        if self._gain < self._cost:
            self._rest, self._gain = _REST, 2 * self._cost


def _last_occurrence(ids: I32, n: int) -> int:
    """Where the last n ids occur before the end, as late as possible; -1: nowhere."""
    found = np.flatnonzero(ids[n - 1 : -1] == ids[-1])  # ends of candidates, minus n - 1
    for i in range(1, n):
        if not len(found):
            return -1
        found = found[ids[found + n - 1 - i] == ids[-1 - i]]
    return int(found[-1]) if len(found) else -1
