"""The choice of the next token from logits. docs/numerics.md defines it under "Sampling"."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from pymixtral.arrays import F32, IdArray
from pymixtral.errors import InvalidArgumentError, NonFiniteError
from pymixtral.sampling.edits import Edit, LogitBias, OccurrencePenalty, RepetitionPenalty
from pymixtral.sampling.filters import Exp, Filter, MinP, TopP, Typical, most_likely
from pymixtral.sampling.parameters import SamplingParameters

_NO_TEXT = np.empty(0, np.int32)


class Sampler:
    """Draws token ids by the steps of SamplingParameters, with a random generator of its own.

    Args:
        parameters: the steps and the seed.
        exp: e**x as docs/numerics.md defines it, float32 [n] to float32 [n].
        n_vocab: size of the vocabulary; the ids of parameters.logit_bias are below it.
        banned: more ids to ban.

    Raises:
        InvalidArgumentError: for an id of logit_bias outside the vocabulary.
    """

    def __init__(self, parameters: SamplingParameters, exp: Exp, *, n_vocab: int, banned: Iterable[int] = ()) -> None:
        p = parameters
        bias = {**(p.logit_bias or {}), **dict.fromkeys(banned, -math.inf)}
        outside = [id for id in bias if id >= n_vocab]
        if outside:
            raise InvalidArgumentError(f"expected token ids from 0 to {n_vocab - 1} in logit_bias, found {outside[0]}")
        edits: list[tuple[bool, Edit]] = [
            (bool(bias), LogitBias(bias)),
            (p.repetition_penalty != 1, RepetitionPenalty(p.repetition_penalty, p.penalty_window)),
            (
                p.presence_penalty != 0 or p.frequency_penalty != 0,
                OccurrencePenalty(p.presence_penalty, p.frequency_penalty, p.penalty_window),
            ),
        ]
        filters: list[tuple[bool, Filter]] = [
            (p.typical_p < 1, Typical(exp, p.typical_p)),
            (p.top_p < 1, TopP(exp, p.top_p)),
            (p.min_p > 0, MinP(exp, p.min_p)),
        ]
        self._edits = [edit for wanted, edit in edits if wanted]
        self._filters = [filter for wanted, filter in filters if wanted]
        self._divisor = np.float32(p.temperature)  # 0 also for a temperature too small for float32
        self._top_k = p.top_k
        self._exp = exp
        self._bits = np.random.PCG64(p.seed)

    def sample(self, logits: F32, text: IdArray = _NO_TEXT) -> int:
        """Draw a token. At temperature 0 this takes no number from the random generator.

        Args:
            logits: float32 [n_vocab], which are not changed.
            text: the ids so far, integers [n] from 0 to n_vocab - 1, which the penalties look at.

        Returns:
            The token's id.

        Raises:
            NonFiniteError: if the largest logit is NaN or infinite.
            InvalidArgumentError: if logit_bias bans every token, or biases an id outside the
                vocabulary.
        """
        best = int(np.argmax(logits))  # the first of equal ones; a NaN if there is one
        if not math.isfinite(logits[best]):
            raise NonFiniteError(
                f"expected finite logits, found {logits[best]} for token {best}: the model's weights may be damaged"
            )
        with np.errstate(over="ignore"):  # a logit beyond float32 becomes -inf, whose probability is 0
            if self._edits:
                logits = logits.copy()
                for edit in self._edits:
                    edit.apply(text, logits)
                best = int(np.argmax(logits))
                if logits[best] == -np.inf:
                    raise InvalidArgumentError(
                        "expected logit_bias to leave at least one token of the vocabulary, found all banned"
                    )
            if self._divisor == 0 or self._top_k == 1:
                return best
            ids = most_likely(logits, self._top_k)
            logits = logits[ids]
            for filter in self._filters:
                ids, logits = filter.apply(ids, logits)
            sums = np.cumsum(self._exp((logits - logits[0]) / self._divisor), dtype=np.float64)
        uniform = (self._bits.random_raw() >> 11) * 2.0**-53  # 53 bits, as many as a float64 holds
        return int(ids[np.searchsorted(sums, uniform * sums[-1], side="right")])
