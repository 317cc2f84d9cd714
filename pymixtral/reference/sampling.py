"""The oracle of sampling: docs/numerics.md, "sampling", in NumPy, one step after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np

from pymixtral.arrays import F32, F64, I32, U32, IdArray
from pymixtral.errors import InvalidArgumentError, NonFiniteError
from pymixtral.reference.oracle import exp
from pymixtral.sampling.parameters import SamplingParameters

_LARGEST = np.finfo(np.float32).max  # what a product beyond float32 becomes, so that logits stay finite


class Sampler:
    """Draws as pymixtral.sampling.sampler.Sampler does, with every step written out.

    Args:
        parameters: the steps and the seed.
        eos_ids: the tokens that end the text.
        ignore_eos: whether the end tokens are banned.
        n_prompt: ids of the prompt.
        seed_index: which of several samples of one prompt this is.
        exp: e**x as docs/numerics.md defines it.
    """

    def __init__(
        self,
        parameters: SamplingParameters,
        *,
        eos_ids: Iterable[int] = (),
        ignore_eos: bool = False,
        n_prompt: int = 0,
        seed_index: int = 0,
        exp: Callable[[F32], F32] = exp,
    ) -> None:
        self.parameters = parameters
        self.exp = exp
        self.end_ids = list(eos_ids)
        self.min_text = math.inf if ignore_eos else n_prompt
        spawn_key = (seed_index,) if seed_index else ()
        self.bits = np.random.PCG64(np.random.SeedSequence(parameters.seed, spawn_key=spawn_key))

    def sample(self, logits: F32, text: I32, mask: U32 | None = None) -> int:
        """Draw a token.

        Args:
            logits: float32 [n_vocab].
            text: the ids so far, int32 [n].
            mask: tokens that may be drawn; None: all.

        Returns:
            The token's id.

        Raises:
            NonFiniteError: if the largest logit is NaN or infinite.
            InvalidArgumentError: if every token is banned.
        """
        best = int(np.argmax(logits))  # the first of equal ones; a NaN if there is one
        if not math.isfinite(logits[best]):
            raise NonFiniteError(f"expected finite logits, found {logits[best]} for token {best}")
        with np.errstate(over="ignore"):  # beyond float32 is -inf, whose probability is 0
            logits = self.edit(logits.copy(), text, mask)
            best = int(np.argmax(logits))
            if logits[best] == -np.inf:
                raise InvalidArgumentError("expected at least one token that may be drawn, found all banned")
            divisor = np.float32(self.parameters.temperature)  # 0 also for one too small for float32
            if divisor == 0 or self.parameters.top_k == 1:
                return best
            ids = self.filter(np.argsort(-logits, kind="stable"), logits)
            sums = np.cumsum(self.weights(logits[ids], divisor))
        return int(ids[np.searchsorted(sums, self.uniform() * sums[-1], side="right")])

    def uniform(self) -> float:
        """Take a number from the generator.

        Returns:
            53 bits, 0 to below 1.
        """
        return float((self.bits.random_raw() >> 11) * 2.0**-53)

    def edit(self, logits: F32, text: I32, mask: U32 | None) -> F32:
        """Change the logits.

        Args:
            logits: float32 [n_vocab], changed in place.
            text: the ids so far, int32 [n].
            mask: tokens that may be drawn; None: all.

        Returns:
            The logits.
        """
        p = self.parameters
        for id, bias in (p.logit_bias or {}).items():
            logits[id] += np.float32(bias)
        if len(text) < self.min_text:
            logits[self.end_ids] = -np.inf
        if mask is not None:
            allowed = np.unpackbits(mask.astype("<u4").view(np.uint8), bitorder="little", count=len(logits))
            logits[allowed == 0] = -np.inf
        if p.repetition_penalty != 1 or p.presence_penalty != 0 or p.frequency_penalty != 0:
            ids, counts = np.unique(text[-p.penalty_window :], return_counts=True)
            found, penalty = logits[ids], np.float32(p.repetition_penalty)
            if penalty != 1:
                found = np.minimum(np.where(found > 0, found / penalty, found * penalty), _LARGEST)
            logits[ids] = found - (p.presence_penalty + p.frequency_penalty * counts.astype(np.float64)).astype(
                np.float32
            )
        return logits

    def weights(self, logits: F32, divisor: float | np.float32 = 1) -> F64:
        """Compute probabilities, but for a common factor.

        Args:
            logits: float32 [n], in descending order.
            divisor: the temperature.

        Returns:
            float64 [n], 1 for the first.
        """
        return self.exp((logits - logits[0]) / divisor).astype(np.float64)

    def filter(self, ids: IdArray, logits: F32) -> IdArray:
        """Choose the tokens that stay.

        Args:
            ids: all ids, in descending order of logit.
            logits: float32 [n_vocab].

        Returns:
            The ids that stay, at least one, in the same order.
        """
        p = self.parameters
        if p.top_k:
            ids = ids[: p.top_k]
        if p.typical_p < 1:
            below, weights = logits[ids] - logits[ids[0]], self.weights(logits[ids])
            n = np.count_nonzero(weights)  # the rest come last and may be at -inf, where 0 * -inf is NaN
            mean = np.cumsum(weights[:n] * below[:n])[-1] / np.cumsum(weights)[-1]
            order = np.argsort(np.abs(below.astype(np.float64) - mean), kind="stable")
            ids = ids[np.sort(order[: _n_reaching(p.typical_p, np.cumsum(weights[order]))])]
        if p.top_p < 1:
            ids = ids[: _n_reaching(p.top_p, np.cumsum(self.weights(logits[ids])))]
        return ids[self.weights(logits[ids]) >= p.min_p]


def _n_reaching(p: float, sums: F64) -> int:
    """How many of the first weights make up at least p of their total, from their running sums."""
    return int(np.searchsorted(sums, p * sums[-1], side="left")) + 1
