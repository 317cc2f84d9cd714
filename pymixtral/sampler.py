"""The choice of the next token from logits; docs/numerics.md, "sampling"."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pymixtral.errors import InvalidArgumentError, NonFiniteError

Exp = Callable[[NDArray[np.float32]], NDArray[np.float32]]

MAX_TEMPERATURE = 1e9  # the choice is uniform long before


class Sampler:
    """Draws token ids; the same seed and logits give the same ids on every machine.

    In this order:
    1. temperature 0: the most likely token, whatever the other parameters say;
    2. top_k: the top_k most likely tokens stay (0: all);
    3. top_p: of these, the fewest most likely ones stay whose probabilities, at temperature 1 and among these, sum to at least
       top_p (1: all, 0: one);
    4. temperature: one is drawn with probabilities proportional to exp(logit / temperature).
    Since top_p looks at the model's own probabilities, a high temperature never lets in what top_p keeps out.

    temperature: 0 to 1e9. top_k: 0 or more. top_p: 0 to 1. seed: 0 or more, of any size; None: from the operating system.
    Raises InvalidArgumentError for anything else. exp: float32 [n] to float32 [n], the one that docs/numerics.md defines.
    """

    def __init__(self, exp: Exp, *, temperature: float = 0.8, top_k: int = 40, top_p: float = 0.95, seed: int | None = None) -> None:
        self.temperature = _number("temperature", temperature, 0.0, MAX_TEMPERATURE)
        self.top_k = _integer("top_k", top_k)
        self.top_p = _number("top_p", top_p, 0.0, 1.0)
        self._divisor = np.float32(self.temperature)  # 0 also for what is too small for a float32
        self._exp = exp
        self._bits = np.random.PCG64(None if seed is None else _integer("seed", seed))

    def sample(self, logits: NDArray[np.float32]) -> int:
        """An id of logits, float32 [n_vocab]. Raises NonFiniteError if the largest is NaN or infinite, and takes nothing from the
        seed's sequence at temperature 0."""
        best = int(np.argmax(logits))  # the first of equals; a NaN if there is one
        if not math.isfinite(logits[best]):
            raise NonFiniteError(f"expected finite logits, found {logits[best]} for token {best}: the model's weights may be damaged")
        if self._divisor == 0 or self.top_k == 1:
            return best
        ids = _most_likely(logits, self.top_k)
        with np.errstate(over="ignore"):  # -inf, whose probability is 0
            below = logits[ids] - logits[best]
            if self.top_p < 1:
                below = below[: self._n_kept(below)]
            sums = np.cumsum(self._exp(below / self._divisor), dtype=np.float64)
        uniform = (self._bits.random_raw() >> 11) * 2.0**-53
        return int(ids[np.searchsorted(sums, uniform * sums[-1], side="right")])

    def _n_kept(self, below: NDArray[np.float32]) -> int:
        sums = np.cumsum(self._exp(below), dtype=np.float64)
        return int(np.searchsorted(sums, self.top_p * sums[-1], side="left")) + 1


def _most_likely(logits: NDArray[np.float32], top_k: int) -> NDArray[np.intp]:
    """Ids in descending order of logit, ties by ascending id; the first top_k, or all if top_k is 0."""
    n = len(logits)
    if not 0 < top_k < n:
        return np.argsort(-logits, kind="stable")
    ids = np.flatnonzero(logits >= np.partition(logits, n - top_k)[n - top_k])  # more than top_k where the last one has equals
    return ids[np.argsort(-logits[ids], kind="stable")][:top_k]


def _number(name: str, value: object, lowest: float, highest: float) -> float:
    if (
        isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)) or not lowest <= value <= highest
    ):  # NaN is in no range
        raise InvalidArgumentError(f"expected {name} to be a number from {lowest:g} to {highest:g}, found {value!r}")
    return float(value)


def _integer(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
        raise InvalidArgumentError(f"expected {name} to be an integer of at least 0, found {value!r}")
    return int(value)
