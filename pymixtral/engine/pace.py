"""The pace: how many tokens of prompts a pass takes while texts are being generated.

Each pass delays every text that generates, so its length is limited by time and not by tokens: 512
tokens take 8 seconds on one machine and 0.1 on another. Results do not depend on how prompts are
cut, so the limit may follow what was measured.
"""

from __future__ import annotations

from pymixtral.ops import PAGE

_DEFAULT = 8.0
"""Without a limit in seconds: a pass with prompt tokens takes this many times one without."""

_FEWEST = PAGE // 4
"""Fewer tokens read nearly all experts for little work."""

_NEW = 0.3
"""The weight of a new measurement in a running mean."""


class Pace:
    """A model of a pass's time: that of the texts that generate, and some for each prompt token.

    Args:
        limit: the longest pass while texts are being generated, in seconds; None: some times the
            pass without a prompt.
        most: the most tokens of prompts in a pass, at any pace, at least 1.
    """

    def __init__(self, limit: float | None, most: int) -> None:
        self._limit = limit
        self._most = most
        self._decoding: dict[int, float] = {}
        self._per_token: float | None = None
        self._measured = PAGE // 2  # the most prompt tokens of a pass so far

    def budget(self, n_decoding: int) -> int:
        """Choose how many tokens of prompts the next pass may have.

        Args:
            n_decoding: texts that generate.

        Returns:
            1 to `most`; `most` if no text generates. It is 1 once, if a pass without prompts has
            not been measured and would perhaps never come. It is at most twice what was measured.
        """
        if not n_decoding:
            return self._most
        alone = self._alone(n_decoding)
        if alone is None:
            return 1
        if self._per_token is None:
            return min(PAGE, self._most)
        limit = _DEFAULT * alone if self._limit is None else self._limit
        wanted = min((limit - alone) / self._per_token, 2 * self._measured, self._most)
        return min(max(int(wanted), _FEWEST), self._most)

    def observe(self, n_decoding: int, n_prompt: int, seconds: float) -> None:
        """Learn from a pass.

        Args:
            n_decoding: texts that generated in it.
            n_prompt: tokens of prompts in it.
            seconds: its time.
        """
        if n_decoding and n_prompt <= 1:  # one more token costs what one more text does
            n = n_decoding + n_prompt
            self._decoding[n] = _mean(self._decoding.get(n), seconds)
        alone = self._alone(n_decoding) if n_decoding else 0.0
        if alone is not None and n_prompt >= _FEWEST:
            self._per_token = _mean(self._per_token, max(seconds - alone, 1e-9) / n_prompt)
            self._measured = max(self._measured, n_prompt)

    def _alone(self, n_decoding: int) -> float | None:
        """The time of a pass without prompts, with as many texts or the nearest number known."""
        if not self._decoding:
            return None
        nearest = min(self._decoding, key=lambda n: abs(n - n_decoding))
        return self._decoding[nearest]


def _mean(old: float | None, new: float) -> float:
    return new if old is None else old + _NEW * (new - old)
