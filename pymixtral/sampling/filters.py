"""Samplers that keep some of the tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pymixtral.arrays import F32, F64, IdArray

Exp = Callable[[F32], F32]
"""The contract's exp (docs/numerics.md), float32 [n] to float32 [n]."""


class Filter(Protocol):
    def apply(self, ids: IdArray, logits: F32) -> tuple[IdArray, F32]:
        """ids and their logits, descending; those of them that stay, at least one, in the same order."""


@dataclass(frozen=True)
class Typical:
    """Keeps the tokens whose surprise is nearest to the mean surprise, as few as sum to at least probability p.

    With b_i = logit_i - largest and Z the sum of exp(b): surprise_i = log Z - b_i, and its mean is log Z - mean b. Their distance is
    |b_i - mean b|: no logarithm is needed.
    """

    exp: Exp
    p: float

    def apply(self, ids: IdArray, logits: F32) -> tuple[IdArray, F32]:
        below = logits - logits[0]
        weights = self.exp(below).astype(np.float64)
        n = np.count_nonzero(weights)  # the others are the last, perhaps at -inf
        mean = np.cumsum(weights[:n] * below[:n])[-1] / np.cumsum(weights)[-1]
        order = np.argsort(np.abs(below.astype(np.float64) - mean), kind="stable")
        kept = np.sort(order[: _n_reaching(self.p, np.cumsum(weights[order]))])
        return ids[kept], logits[kept]


@dataclass(frozen=True)
class TopP:
    """Keeps the most likely tokens, as few as sum to at least probability p."""

    exp: Exp
    p: float

    def apply(self, ids: IdArray, logits: F32) -> tuple[IdArray, F32]:
        n = _n_reaching(self.p, np.cumsum(self.exp(logits - logits[0]), dtype=np.float64))
        return ids[:n], logits[:n]


@dataclass(frozen=True)
class MinP:
    """Keeps the tokens at least p times as likely as the most likely one; arXiv:2407.01082."""

    exp: Exp
    p: float

    def apply(self, ids: IdArray, logits: F32) -> tuple[IdArray, F32]:
        kept = self.exp(logits - logits[0]).astype(np.float64) >= self.p
        return ids[kept], logits[kept]


def _n_reaching(p: float, sums: F64) -> int:
    """How many of the first of some weights, whose running sums are given, make up at least p of all: one or more."""
    return int(np.searchsorted(sums, p * sums[-1], side="left")) + 1


def most_likely(logits: F32, top_k: int) -> IdArray:
    """IdArray in descending order of logit, ties by ascending id; the first top_k, or all if top_k is 0."""
    n = len(logits)
    if not 0 < top_k < n:
        return np.argsort(-logits, kind="stable")
    ids = np.flatnonzero(logits >= np.partition(logits, n - top_k)[n - top_k])  # more than top_k where the last one has equals
    return ids[np.argsort(-logits[ids], kind="stable")][:top_k]
