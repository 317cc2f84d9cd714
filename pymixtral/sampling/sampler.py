"""The choice of the next token from logits; docs/numerics.md, "sampling"."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray

from pymixtral.errors import InvalidArgumentError, NonFiniteError

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Ids = NDArray[np.integer[Any]]
Exp = Callable[[F32], F32]

MAX_TEMPERATURE = 1e9  # the choice is uniform long before
MAX_BIAS = 1e9

_LARGEST = np.finfo(np.float32).max
_NO_TEXT = np.empty(0, np.int32)


class Sampling(TypedDict, total=False):
    """The parameters of a Sampler, all of which have defaults."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    penalty_window: int
    logit_bias: Mapping[int, float] | None
    seed: int | None


class Sampler:
    """Draws token ids; the same seed, text and logits give the same ids on every machine.

    In this order; whatever has the value in brackets does nothing:
    1. logit_bias {token id: number} is added to the logits; -inf bans a token (None);
    2. repetition_penalty: positive logits of the tokens that occur in the text's last penalty_window tokens, prompt included, are
       divided by it, negative ones multiplied (1);
    3. presence_penalty + frequency_penalty * (number of occurrences there) is subtracted from the logits of the same tokens (0);
    4. temperature 0: the most likely token, whatever the parameters below say;
    5. top_k: the top_k most likely tokens stay (0);
    6. typical_p: of these, those whose surprise -log(probability) is nearest to its mean stay, the fewest whose probabilities sum to
       at least typical_p (1); locally typical sampling, arXiv:2202.00666;
    7. top_p: of these, the fewest most likely ones stay whose probabilities sum to at least top_p (1);
    8. min_p: of these, those stay that are at least min_p times as likely as the most likely one (0);
    9. temperature: one is drawn with probabilities proportional to exp(logit / temperature).
    The probabilities of 6 to 8 are those at temperature 1 among the tokens that are left, so a high temperature never lets in what
    they keep out.

    temperature: 0 to 1e9. top_k: 0 or more. top_p, min_p, typical_p: 0 to 1. repetition_penalty: 0.01 to 100. presence_penalty,
    frequency_penalty: -100 to 100. penalty_window: 0 or more; 0: the whole text. logit_bias: ids of the vocabulary, numbers up to 1e9.
    seed: 0 or more, of any size; None: from the operating system. Raises InvalidArgumentError for anything else.

    exp: float32 [n] to float32 [n], the one that docs/numerics.md defines. n_vocab: what the ids of logit_bias must be below.
    banned: further ids to ban.
    """

    def __init__(
        self,
        exp: Exp,
        *,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.0,
        typical_p: float = 1.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        penalty_window: int = 64,
        logit_bias: Mapping[int, float] | None = None,
        seed: int | None = None,
        n_vocab: int = 2**31,
        banned: Iterable[int] = (),
    ) -> None:
        temperature = _number("temperature", temperature, 0.0, MAX_TEMPERATURE)
        self._divisor = np.float32(temperature)  # 0 also for what is too small for a float32
        self._top_k = _integer("top_k", top_k)
        window = _integer("penalty_window", penalty_window)
        bias = _checked_bias(logit_bias, n_vocab) | dict.fromkeys(banned, -math.inf)
        repetition = _number("repetition_penalty", repetition_penalty, 0.01, 100.0)
        presence = _number("presence_penalty", presence_penalty, -100.0, 100.0)
        frequency = _number("frequency_penalty", frequency_penalty, -100.0, 100.0)
        typical_p = _number("typical_p", typical_p, 0.0, 1.0)
        top_p = _number("top_p", top_p, 0.0, 1.0)
        min_p = _number("min_p", min_p, 0.0, 1.0)
        edits: list[tuple[bool, _Edit]] = [
            (bool(bias), LogitBias(bias)),
            (repetition != 1, RepetitionPenalty(repetition, window)),
            (presence != 0 or frequency != 0, OccurrencePenalty(presence, frequency, window)),
        ]
        filters: list[tuple[bool, _Filter]] = [
            (typical_p < 1, Typical(exp, typical_p)),
            (top_p < 1, TopP(exp, top_p)),
            (min_p > 0, MinP(exp, min_p)),
        ]
        self._edits = [edit for wanted, edit in edits if wanted]
        self._filters = [filter for wanted, filter in filters if wanted]
        self._exp = exp
        self._bits = np.random.PCG64(None if seed is None else _integer("seed", seed))

    def sample(self, logits: F32, text: Ids = _NO_TEXT) -> int:
        """An id of logits, float32 [n_vocab], which are not changed. text: the ids so far, integers [n] from 0 to n_vocab - 1, which
        the penalties look at.

        Raises NonFiniteError if the largest logit is NaN or infinite, InvalidArgumentError if logit_bias bans every token or an id
        outside the vocabulary. Takes nothing from the seed's sequence at temperature 0.
        """
        best = int(np.argmax(logits))  # the first of equals; a NaN if there is one
        if not math.isfinite(logits[best]):
            raise NonFiniteError(f"expected finite logits, found {logits[best]} for token {best}: the model's weights may be damaged")
        with np.errstate(over="ignore"):  # -inf, whose probability is 0
            if self._edits:
                logits = logits.copy()
                for edit in self._edits:
                    edit.apply(text, logits)
                best = int(np.argmax(logits))
                if logits[best] == -np.inf:
                    raise InvalidArgumentError("expected logit_bias to leave at least one token of the vocabulary, found all banned")
            if self._divisor == 0 or self._top_k == 1:
                return best
            ids = _most_likely(logits, self._top_k)
            logits = logits[ids]
            for filter in self._filters:
                ids, logits = filter.apply(ids, logits)
            sums = np.cumsum(self._exp((logits - logits[0]) / self._divisor), dtype=np.float64)
        uniform = (self._bits.random_raw() >> 11) * 2.0**-53
        return int(ids[np.searchsorted(sums, uniform * sums[-1], side="right")])


# --- What changes logits ------------------------------------------------------------------------------------------


class _Edit(Protocol):
    def apply(self, text: Ids, logits: F32) -> None:
        """text: the ids so far; logits: float32 [n_vocab], changed in place."""


class LogitBias:
    """Adds a number to the logits of some tokens."""

    def __init__(self, bias: Mapping[int, float]) -> None:
        self._ids = np.array(list(bias), np.intp)
        with np.errstate(over="ignore"):  # -inf
            self._values = np.array(list(bias.values()), np.float64).astype(np.float32)

    def apply(self, text: Ids, logits: F32) -> None:  # noqa: ARG002
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

    def apply(self, text: Ids, logits: F32) -> None:
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

    def apply(self, text: Ids, logits: F32) -> None:
        ids, counts = _occurrences(text, self.window)
        logits[ids] -= (self.presence + self.frequency * counts.astype(np.float64)).astype(np.float32)


def _occurrences(text: Ids, window: int) -> tuple[Ids, Ids]:
    """The different ids among the last ones, and how often each is there. Always with the counts: without them NumPy takes a way
    that is ten times slower."""
    return np.unique(text[-window:], return_counts=True)


# --- What keeps tokens --------------------------------------------------------------------------------------------


class _Filter(Protocol):
    def apply(self, ids: Ids, logits: F32) -> tuple[Ids, F32]:
        """ids and their logits, descending; those of them that stay, at least one, in the same order."""


@dataclass(frozen=True)
class Typical:
    """Keeps the tokens whose surprise is nearest to the mean surprise, as few as sum to at least probability p.

    With b_i = logit_i - largest and Z the sum of exp(b): surprise_i = log Z - b_i, and its mean is log Z - mean b. Their distance is
    |b_i - mean b|: no logarithm is needed.
    """

    exp: Exp
    p: float

    def apply(self, ids: Ids, logits: F32) -> tuple[Ids, F32]:
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

    def apply(self, ids: Ids, logits: F32) -> tuple[Ids, F32]:
        n = _n_reaching(self.p, np.cumsum(self.exp(logits - logits[0]), dtype=np.float64))
        return ids[:n], logits[:n]


@dataclass(frozen=True)
class MinP:
    """Keeps the tokens at least p times as likely as the most likely one; arXiv:2407.01082."""

    exp: Exp
    p: float

    def apply(self, ids: Ids, logits: F32) -> tuple[Ids, F32]:
        kept = self.exp(logits - logits[0]).astype(np.float64) >= self.p
        return ids[kept], logits[kept]


def _n_reaching(p: float, sums: F64) -> int:
    """How many of the first of some weights, whose running sums are given, make up at least p of all: one or more."""
    return int(np.searchsorted(sums, p * sums[-1], side="left")) + 1


def _most_likely(logits: F32, top_k: int) -> Ids:
    """Ids in descending order of logit, ties by ascending id; the first top_k, or all if top_k is 0."""
    n = len(logits)
    if not 0 < top_k < n:
        return np.argsort(-logits, kind="stable")
    ids = np.flatnonzero(logits >= np.partition(logits, n - top_k)[n - top_k])  # more than top_k where the last one has equals
    return ids[np.argsort(-logits[ids], kind="stable")][:top_k]


# --- Arguments ----------------------------------------------------------------------------------------------------


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


def _checked_bias(bias: object, n_vocab: int) -> dict[int, float]:
    if bias is None:
        return {}
    if not isinstance(bias, Mapping):
        raise InvalidArgumentError(f"expected logit_bias to be a mapping of token ids to numbers, found {bias!r}")
    checked = {}
    for id, value in bias.items():
        if _integer("a token id in logit_bias", id) >= n_vocab:
            raise InvalidArgumentError(f"expected token ids from 0 to {n_vocab - 1} in logit_bias, found {id}")
        checked[int(id)] = _number(f"logit_bias of token {id}", value, -math.inf, MAX_BIAS)
    return checked
