"""The sampling steps that keep some of the tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pymixtral.arrays import F32, F64, IdArray

Exp = Callable[[F32], F32]
"""e**x as docs/numerics.md defines it, float32 [n] to float32 [n]."""


class Filter(Protocol):
    """A step that keeps some of the tokens."""

    def apply(self, ids: IdArray, logits: F32) -> tuple[IdArray, F32]:
        """Choose the tokens that stay.

        Args:
            ids: token ids, integers [n], in descending order of logit.
            logits: their logits, float32 [n].

        Returns:
            The ids that stay, at least one, and their logits, in the same order.
        """


@dataclass(frozen=True)
class Typical:
    """Keeps the tokens whose surprise, -log(probability), is nearest to the mean surprise.

    With b_i = logit_i - largest logit and Z the sum of exp(b), surprise_i = log Z - b_i, and its
    mean is log Z - mean b. Their distance is |b_i - mean b|, so no logarithm is needed. Meister et
    al. 2022, arXiv:2202.00666.

    Attributes:
        exp: e**x as docs/numerics.md defines it.
        p: the fewest tokens stay whose probabilities sum to at least this; 0 to 1.
    """

    exp: Exp
    p: float

    def apply(self, ids: IdArray, logits: F32) -> tuple[IdArray, F32]:
        """Choose the tokens that stay; see Filter.

        Args:
            ids: token ids, integers [n], in descending order of logit.
            logits: their logits, float32 [n].

        Returns:
            The ids that stay, at least one, and their logits, in the same order.
        """
        below = logits - logits[0]
        weights = self.exp(below).astype(np.float64)
        n = np.count_nonzero(weights)  # the rest come last and may be at -inf, where 0 * -inf is NaN
        mean = np.cumsum(weights[:n] * below[:n])[-1] / np.cumsum(weights)[-1]
        order = np.argsort(np.abs(below.astype(np.float64) - mean), kind="stable")
        kept = np.sort(order[: _n_reaching(self.p, np.cumsum(weights[order]))])
        return ids[kept], logits[kept]


@dataclass(frozen=True)
class TopP:
    """Keeps the fewest most likely tokens that reach a total probability.

    Holtzman et al. 2020, arXiv:1904.09751.

    Attributes:
        exp: e**x as docs/numerics.md defines it.
        p: the total probability, 0 to 1.
    """

    exp: Exp
    p: float

    def apply(self, ids: IdArray, logits: F32) -> tuple[IdArray, F32]:
        """Choose the tokens that stay; see Filter.

        Args:
            ids: token ids, integers [n], in descending order of logit.
            logits: their logits, float32 [n].

        Returns:
            The ids that stay, at least one, and their logits, in the same order.
        """
        n = _n_reaching(self.p, np.cumsum(self.exp(logits - logits[0]), dtype=np.float64))
        return ids[:n], logits[:n]


@dataclass(frozen=True)
class MinP:
    """Keeps the tokens that are likely enough beside the most likely one.

    Nguyen et al. 2024, arXiv:2407.01082.

    Attributes:
        exp: e**x as docs/numerics.md defines it.
        p: tokens stay that are at least this times as likely as the most likely one; 0 to 1.
    """

    exp: Exp
    p: float

    def apply(self, ids: IdArray, logits: F32) -> tuple[IdArray, F32]:
        """Choose the tokens that stay; see Filter.

        Args:
            ids: token ids, integers [n], in descending order of logit.
            logits: their logits, float32 [n].

        Returns:
            The ids that stay, at least one, and their logits, in the same order.
        """
        kept = self.exp(logits - logits[0]).astype(np.float64) >= self.p
        return ids[kept], logits[kept]


def _n_reaching(p: float, sums: F64) -> int:
    """How many of the first weights make up at least p of their total, from their running sums."""
    return int(np.searchsorted(sums, p * sums[-1], side="left")) + 1


def most_likely(logits: F32, top_k: int) -> IdArray:
    """Sort tokens by logit.

    Args:
        logits: float32 [n_vocab].
        top_k: how many of the most likely tokens to keep; 0: all.

    Returns:
        Token ids in descending order of logit; tokens of equal logits by ascending id.
    """
    n = len(logits)
    if not 0 < top_k < n:
        return np.argsort(-logits, kind="stable")
    lowest = np.partition(logits, n - top_k)[n - top_k]
    ids = np.flatnonzero(logits >= lowest)  # more than top_k if several have the lowest logit
    return ids[np.argsort(-logits[ids], kind="stable")][:top_k]
