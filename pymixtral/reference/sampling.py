"""The oracle of sampling: docs/numerics.md, "sampling", in NumPy, one step after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from pymixtral.arrays import F32, F64, I32, U32, IdArray
from pymixtral.errors import InvalidArgumentError, NonFiniteError
from pymixtral.reference.arithmetic import exp
from pymixtral.sampling.parameters import SamplingParameters

_LARGEST = np.finfo(np.float32).max  # what a product beyond float32 becomes, so that logits stay finite
_ROOT_HALF = float.fromhex("0x1.6a09e667f3bcdp-1")


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
        self.min_text = math.inf if ignore_eos else n_prompt + parameters.min_tokens
        self.surprise = 2 * parameters.mirostat_tau
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
            p = self.parameters
            divisor = np.float32(p.temperature)  # 0 also for one too small for float32
            if divisor == 0 or (p.top_k == 1 and p.mirostat_tau == 0):
                return best
            ids: IdArray = np.argsort(-logits, kind="stable")
            ids = self.mirostat(ids, logits, divisor) if p.mirostat_tau > 0 else self.filter(ids, logits)
            sums = np.cumsum(self.weights(logits[ids], divisor))
        drawn = int(np.searchsorted(sums, self.uniform() * sums[-1], side="right"))
        if p.mirostat_tau > 0:
            weight = float(self.weights(logits[ids], divisor)[drawn])
            surprise = log2(float(sums[-1])) - log2(weight)
            self.surprise -= p.mirostat_eta * (surprise - p.mirostat_tau)
        return int(ids[drawn])

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
        for word in p.bad_words or ():
            if text[len(text) - len(word) + 1 :].tolist() == list(word[:-1]) and len(text) >= len(word) - 1:
                logits[word[-1]] = -np.inf
        if p.allowed_token_ids is not None:
            allowed = np.zeros(len(logits), bool)
            allowed[list(p.allowed_token_ids)] = True
            logits[~allowed] = -np.inf
        if mask is not None:
            bits = np.unpackbits(mask.astype("<u4").view(np.uint8), bitorder="little", count=len(logits))
            logits[bits == 0] = -np.inf
        if p.repetition_penalty != 1 or p.presence_penalty != 0 or p.frequency_penalty != 0:
            ids, counts = np.unique(text[-p.penalty_window :], return_counts=True)
            found, penalty = logits[ids], np.float32(p.repetition_penalty)
            if penalty != 1:
                found = np.minimum(np.where(found > 0, found / penalty, found * penalty), _LARGEST)
            logits[ids] = found - (p.presence_penalty + p.frequency_penalty * counts.astype(np.float64)).astype(
                np.float32
            )
        if p.dry_multiplier > 0:
            self.dry(logits, text[-p.dry_window :].tolist())
        return logits

    def dry(self, logits: F32, text: list[int]) -> None:
        """Penalize what would continue a repetition of the text's end.

        Args:
            logits: float32 [n_vocab], changed in place.
            text: the ids that count.
        """
        p = self.parameters
        breakers = [list(breaker) for breaker in p.dry_breakers or ()]
        n = len(text)
        most = next((i for i in range(n) if any(text[: n - i][-len(b) :] == b for b in breakers)), n)
        lengths: dict[int, int] = {}
        for i in range(1, n):  # text[i] follows what may be the text's end once more
            match = 0
            while match < min(i, most) and text[i - 1 - match] == text[n - 1 - match]:
                match += 1
            lengths[text[i]] = max(match, lengths.get(text[i], 0))
        for id, length in lengths.items():
            if length >= p.dry_allowed_length and [id] not in breakers:
                penalty = p.dry_multiplier * power(p.dry_base, length - p.dry_allowed_length)
                logits[id] -= np.float32(min(penalty, 1e9))

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
        if p.top_n_sigma > 0:
            finite = np.isfinite(logits)
            mean = _sum8(np.where(finite, logits, 0).astype(np.float64)) / np.count_nonzero(finite)
            distances = np.where(finite, logits.astype(np.float64) - mean, 0)
            sigma = math.sqrt(_sum8(distances * distances) / np.count_nonzero(finite))
            ids = ids[logits[ids].astype(np.float64) >= float(logits[ids[0]]) - p.top_n_sigma * sigma]
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
        ids = ids[self.weights(logits[ids]) >= p.min_p]
        if p.xtc_probability > 0 and self.uniform() < p.xtc_probability:
            weights = self.weights(logits[ids])
            n_top = _n_before((weights < p.xtc_threshold * np.cumsum(weights)[-1]) | (weights == 0))
            ids = ids[max(n_top - 1, 0) :]
        return ids

    def mirostat(self, ids: IdArray, logits: F32, divisor: np.float32) -> IdArray:
        """Choose the tokens that stay, by their surprise.

        Args:
            ids: all ids, in descending order of logit.
            logits: float32 [n_vocab].
            divisor: the temperature.

        Returns:
            The ids that stay, at least one, in the same order.
        """
        weights = self.weights(logits[ids], divisor)
        total = log2(float(np.cumsum(weights)[-1]))
        beyond = np.array([total - log2(float(weight)) > self.surprise for weight in weights])
        beyond[0] = False
        return ids[: _n_before(beyond)]


def _n_reaching(p: float, sums: F64) -> int:
    """How many of the first weights make up at least p of their total, from their running sums."""
    return int(np.searchsorted(sums, p * sums[-1], side="left")) + 1


def _n_before(stop: NDArray[np.bool_]) -> int:
    """How many come before the first that is true."""
    return int(stop.argmax()) if stop.any() else len(stop)


def _sum8(x: F64) -> float:
    """The sum in eight parts of docs/numerics.md, in float64."""
    padded = np.zeros((len(x) + 7) // 8 * 8)
    padded[: len(x)] = x
    s = np.cumsum(padded.reshape(-1, 8), axis=0)[-1].tolist()
    return float(((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7])))


def power(base: float, exponent: int) -> float:
    """Compute base**exponent by squaring, each product rounded.

    Args:
        base: 1 or more.
        exponent: 0 or more.

    Returns:
        The power; infinity beyond float64.
    """
    result = 1.0
    while exponent:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result


def log2(x: float) -> float:
    """Compute the binary logarithm as docs/numerics.md defines it.

    Args:
        x: 0 or more, not subnormal.

    Returns:
        The logarithm; -infinity of 0.
    """
    if x == 0:
        return -math.inf
    m, exponent = math.frexp(x)  # 0.5 to below 1
    if m <= _ROOT_HALF:
        m, exponent = m * 2, exponent - 1
    s = (m - 1) / (m + 1)
    z = s * s
    p = 1 / 21
    for k in range(19, 0, -2):
        p = p * z + 1 / k
    return exponent + (s * p) * float.fromhex("0x1.71547652b82fep+1")
