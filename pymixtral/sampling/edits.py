"""Samplers that change logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pymixtral.arrays import F32, IdArray
from pymixtral.errors import InvalidArgumentError

_LARGEST = np.finfo(np.float32).max


class Edit(Protocol):
    def apply(self, text: IdArray, logits: F32) -> None:
        """text: the ids so far; logits: float32 [n_vocab], changed in place."""


class LogitBias:
    """Adds a number to the logits of some tokens."""

    def __init__(self, bias: Mapping[int, float]) -> None:
        self._ids = np.array(list(bias), np.intp)
        with np.errstate(over="ignore"):  # -inf
            self._values = np.array(list(bias.values()), np.float64).astype(np.float32)

    def apply(self, text: IdArray, logits: F32) -> None:  # noqa: ARG002
        outside = self._ids[self._ids >= len(logits)]
        if outside.size:
            raise InvalidArgumentError(f"expected token ids from 0 to {len(logits) - 1} in logit_bias, found {outside[0]}")
        logits[self._ids] += self._values


@dataclass(frozen=True)
class RepetitionPenalty:
    """Divides positive logits of the tokens in the last `window` ones of the text by `penalty`, multiplies others with it; the
    rule of CTRL (arXiv:1909.05858) as it came to be used. window 0: the whole text."""

    penalty: float
    window: int

    def apply(self, text: IdArray, logits: F32) -> None:
        ids, _ = _occurrences(text, self.window)
        penalty = np.float32(self.penalty)
        found = logits[ids]
        logits[ids] = np.minimum(np.where(found > 0, found / penalty, found * penalty), _LARGEST)


@dataclass(frozen=True)
class OccurrencePenalty:
    """Subtracts `presence`, and `frequency` for each occurrence, from the logits of the tokens in the last `window` ones of the
    text. window 0: the whole text."""

    presence: float
    frequency: float
    window: int

    def apply(self, text: IdArray, logits: F32) -> None:
        ids, counts = _occurrences(text, self.window)
        logits[ids] -= (self.presence + self.frequency * counts.astype(np.float64)).astype(np.float32)


def _occurrences(text: IdArray, window: int) -> tuple[IdArray, IdArray]:
    """The different ids among the last ones, and how often each is there. Always with the counts: without them NumPy takes a way
    that is ten times slower."""
    return np.unique(text[-window:], return_counts=True)
