"""The sampling steps that change logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pymixtral.arrays import F32, IdArray

_LARGEST = np.finfo(np.float32).max  # what a product beyond float32 becomes, so that logits stay finite


class Edit(Protocol):
    """A step that changes logits."""

    def apply(self, text: IdArray, logits: F32) -> None:
        """Change the logits in place.

        Args:
            text: the ids so far, integers [n].
            logits: float32 [n_vocab].
        """


class LogitBias:
    """Adds a number to the logits of some tokens.

    Args:
        bias: token id to the number; -inf bans the token.
    """

    def __init__(self, bias: Mapping[int, float]) -> None:
        self._ids = np.array(list(bias), np.intp)
        with np.errstate(over="ignore"):  # beyond float32 is -inf, which bans the token
            self._values = np.array(list(bias.values()), np.float64).astype(np.float32)

    def apply(self, text: IdArray, logits: F32) -> None:  # noqa: ARG002
        """Change the logits in place; see Edit.

        Args:
            text: the ids so far, which do not matter here.
            logits: float32 [n_vocab], of a vocabulary that has the biased ids.
        """
        logits[self._ids] += self._values


@dataclass(frozen=True)
class RepetitionPenalty:
    """Makes tokens that occur at the end of the text less likely.

    Their positive logits are divided by a number, the others multiplied by it: the rule of CTRL
    (Keskar et al. 2019, arXiv:1909.05858) with a window.

    Attributes:
        penalty: the number; above 1 makes the tokens less likely.
        window: how many of the last tokens count; 0: the whole text.
    """

    penalty: float
    window: int

    def apply(self, text: IdArray, logits: F32) -> None:
        """Change the logits in place; see Edit.

        Args:
            text: the ids so far, integers [n].
            logits: float32 [n_vocab].
        """
        ids, _ = _occurrences(text, self.window)
        penalty = np.float32(self.penalty)
        found = logits[ids]
        logits[ids] = np.minimum(np.where(found > 0, found / penalty, found * penalty), _LARGEST)


@dataclass(frozen=True)
class OccurrencePenalty:
    """Lowers the logits of tokens that occur at the end of the text.

    Attributes:
        presence: is subtracted once from each such token.
        frequency: is subtracted once for each occurrence.
        window: how many of the last tokens count; 0: the whole text.
    """

    presence: float
    frequency: float
    window: int

    def apply(self, text: IdArray, logits: F32) -> None:
        """Change the logits in place; see Edit.

        Args:
            text: the ids so far, integers [n].
            logits: float32 [n_vocab].
        """
        ids, counts = _occurrences(text, self.window)
        logits[ids] -= (self.presence + self.frequency * counts.astype(np.float64)).astype(np.float32)


def _occurrences(text: IdArray, window: int) -> tuple[IdArray, IdArray]:
    """The different ids among the last ones, and how often each occurs.

    The counts are always asked for: without them np.unique takes another path, ten times slower.
    """
    return np.unique(text[-window:], return_counts=True)
