"""The parameters of sampling, each with its range and its default.

The keyword arguments of `Mixtral.generate` and the options of the command line are made from the
fields of SamplingParameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypedDict

from pymixtral.arguments import integer, number, shown
from pymixtral.errors import InvalidArgumentError

MAX_TEMPERATURE = 1e9
"""Far above any use: the choice is practically uniform long before."""

MAX_BIAS = 1e9
"""Far above any logit, and so far below float32's largest number that the sum stays finite."""


Check = Callable[[str, Any], Any]
"""Given the name of a parameter and a value: the value, checked. Raises InvalidArgumentError."""


def _field(default: Any, help: str, check: Check) -> Any:
    """A parameter with its line in the command line's help, and what checks its values."""
    return field(default=default, metadata={"help": help, "check": check})


def _number(lowest: float, highest: float) -> Check:
    return lambda name, value: number(name, value, lowest, highest)


def _count(name: str, value: object) -> int:
    return integer(name, value, 0)


def _positive(name: str, value: object) -> int:
    return integer(name, value, 1)


def _seed(name: str, value: object) -> int | None:
    return None if value is None else _count(name, value)


def _bias(name: str, value: object) -> dict[int, float]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidArgumentError(f"expected {name} to be a mapping of token ids to numbers, found {shown(value)}")
    return {
        _count(f"a token id in {name}", id): number(f"{name} of token {id}", bias, -math.inf, MAX_BIAS)
        for id, bias in value.items()
    }


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray)) and len(value) > 0


def _ids(name: str, value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    if not _is_list(value):
        raise InvalidArgumentError(f"expected {name} to be a list of token ids, at least one, found {shown(value)}")
    return _counts(name, value)


def _counts(name: str, ids: Sequence[Any]) -> tuple[int, ...]:
    """Token ids; plain ones, of which there may be hundreds of thousands, without a call for each."""
    ids = tuple(ids)
    if set(map(type, ids)) == {int} and min(ids) >= 0:
        return ids
    return tuple(_count(f"a token id in {name}", id) for id in ids)


def _sequences(name: str, value: Any) -> tuple[tuple[int, ...], ...]:
    if value is None or (isinstance(value, (list, tuple)) and not value):
        return ()
    if not _is_list(value) or not all(_is_list(sequence) for sequence in value):
        raise InvalidArgumentError(
            f"expected {name} to be a list of lists of token ids, none of them empty, found {shown(value)}"
        )
    return tuple(_counts(name, sequence) for sequence in value)


@dataclass(frozen=True, kw_only=True)
class SamplingParameters:
    """The rules by which the next token is chosen from the logits.

    The steps come in this order. Each is skipped at the value in brackets.

    1. `logit_bias` is added to the logits (None). `min_tokens` (0), `bad_words` (None) and
       `allowed_token_ids` (None) ban tokens.
    2. `repetition_penalty` (1).
    3. `presence_penalty` and `frequency_penalty` (0).
    4. `dry_multiplier` (0).
    5. At temperature 0 the most likely token is taken, whatever the parameters below say.
    6. `top_n_sigma` (0), 7. `top_k` (0), 8. `typical_p` (1), 9. `top_p` (1), 10. `min_p` (0) and
       11. `xtc_probability` (0) each keep some of the tokens that are left. Their probabilities are
       those at temperature 1, so a high temperature never lets in what they keep out.
    12. `mirostat_tau` (0) keeps tokens in place of steps 6 to 11, which are then left out.
    13. `temperature`: one token is drawn, with probabilities proportional to
        exp(logit / temperature).

    Args:
        temperature: 0 to 1e9. 0 always takes the most likely token.
        top_k: this many of the most likely tokens stay; 0 or more, 0: all.
        top_p: the fewest most likely tokens stay whose probabilities sum to at least this; 0 to 1.
            Holtzman et al. 2020, arXiv:1904.09751.
        min_p: tokens stay that are at least this times as likely as the most likely one; 0 to 1.
            Nguyen et al. 2024, arXiv:2407.01082.
        typical_p: the tokens stay whose surprise, -log(probability), is nearest to its mean, the
            fewest that sum to at least this probability; 0 to 1. Meister et al. 2022,
            arXiv:2202.00666.
        repetition_penalty: for tokens that occur in the last `penalty_window` tokens of the text,
            prompt included, positive logits are divided by this and negative ones multiplied; 0.01
            to 100. Keskar et al. 2019, arXiv:1909.05858.
        presence_penalty: is subtracted from the logits of the same tokens; -100 to 100.
        frequency_penalty: is subtracted once for each occurrence of them there; -100 to 100.
        penalty_window: how many of the last tokens these penalties look at; 0: the whole text.
        dry_multiplier: from the logit of a token that would continue a repetition of at least
            `dry_allowed_length` tokens, dry_multiplier * dry_base^(length - dry_allowed_length) is
            subtracted; 0 to 100. p-e-w 2024,
            github.com/oobabooga/text-generation-webui/pull/5677.
        dry_base: see dry_multiplier; 1 to 100.
        dry_allowed_length: see dry_multiplier; 1 or more.
        dry_window: how many of the last tokens DRY looks at; 0: the whole text.
        dry_breakers: sequences of token ids that no repetition crosses, such as those of a newline.
            A token that is one by itself is not penalized.
        top_n_sigma: tokens stay whose logit is at most this many standard deviations of all logits
            below the largest; 0 to 100, 0: all. Tang et al. 2024, arXiv:2411.07641.
        xtc_probability: with this probability, at each token, all but the least likely of the
            tokens go that have a probability of `xtc_threshold` or more; 0 to 1. p-e-w 2024,
            github.com/oobabooga/text-generation-webui/pull/6335.
        xtc_threshold: see xtc_probability; 0 to 1.
        mirostat_tau: the surprise in bits, -log2(probability), that drawn tokens shall have on the
            average: what surprises more than a bound is left out, and the bound follows what was
            drawn; 0 to 100, 0: off. This is version 2 of Basu et al. 2021, arXiv:2007.14966.
        mirostat_eta: how fast the bound follows; 0 to 1.
        logit_bias: token id to a number of at most 1e9 that is added to its logit; -inf bans the
            token.
        min_tokens: end tokens are banned until so many tokens were generated.
        bad_words: sequences of token ids that are never generated: the last id of one is banned
            where the text ends with the others.
        allowed_token_ids: only these are drawn; None: all.
        seed: 0 or more, of any size. The same seed, text and logits give the same tokens on every
            machine. None: a seed from the operating system.

    Raises:
        InvalidArgumentError: for a value out of its range or of another type.
    """

    temperature: float = _field(
        0.8, "How random the choice is; 0 always takes the most likely token.", _number(0, MAX_TEMPERATURE)
    )
    top_k: int = _field(40, "Choose among the N most likely tokens; 0: among all.", _count)
    top_p: float = _field(0.95, "Choose among the most likely tokens with this total probability.", _number(0, 1))
    min_p: float = _field(0.0, "Leave out tokens less likely than X times the most likely one.", _number(0, 1))
    typical_p: float = _field(1.0, "Choose among the most typical tokens with this total probability.", _number(0, 1))
    repetition_penalty: float = _field(
        1.0, "If above 1, make tokens less likely that the text has already.", _number(0.01, 100)
    )
    presence_penalty: float = _field(
        0.0, "Subtract X from the logits of tokens that the text has already.", _number(-100, 100)
    )
    frequency_penalty: float = _field(
        0.0, "Subtract X once for each time that the text has the token.", _number(-100, 100)
    )
    penalty_window: int = _field(64, "The penalties look at the last N tokens of the text; 0: at all of them.", _count)
    dry_multiplier: float = _field(0.0, "If above 0, penalize what continues a repetition (DRY).", _number(0, 100))
    dry_base: float = _field(1.75, "DRY grows by this factor with each repeated token.", _number(1, 100))
    dry_allowed_length: int = _field(2, "DRY penalizes repetitions from N tokens on.", _positive)
    dry_window: int = _field(0, "DRY looks at the last N tokens of the text; 0: at all of them.", _count)
    dry_breakers: Sequence[Sequence[int]] | None = _field(
        None, "No repetition crosses these tokens, as ids. May be repeated.", _sequences
    )
    top_n_sigma: float = _field(
        0.0, "Leave out logits more than X standard deviations below the largest; 0: none.", _number(0, 100)
    )
    xtc_probability: float = _field(
        0.0, "How often to leave out the top choices but the least likely of them (XTC).", _number(0, 1)
    )
    xtc_threshold: float = _field(0.1, "From which probability on tokens are top choices for XTC.", _number(0, 1))
    mirostat_tau: float = _field(
        0.0, "If above 0, aim at this surprise in bits (mirostat 2); other filters are off.", _number(0, 100)
    )
    mirostat_eta: float = _field(0.1, "How fast mirostat follows the surprise of what it drew.", _number(0, 1))
    logit_bias: Mapping[int, float] | None = _field(
        None, "Add N to the logit of token ID; -inf bans it. May be repeated.", _bias
    )
    min_tokens: int = _field(0, "Ban end tokens until N tokens are written.", _count)
    bad_words: Sequence[Sequence[int]] | None = _field(
        None, "Never write this text, or these tokens in a row. May be repeated.", _sequences
    )
    allowed_token_ids: Sequence[int] | None = _field(None, "Write only these tokens, as ids.", _ids)
    seed: int | None = _field(None, "The same seed writes the same text.  [default: random]", _seed)

    def __post_init__(self) -> None:
        for parameter in fields(self):
            name = parameter.name
            object.__setattr__(self, name, parameter.metadata["check"](name, getattr(self, name)))


class Sampling(TypedDict, total=False):
    """The fields of SamplingParameters as keyword arguments, so that type checkers know them."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    penalty_window: int
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    dry_window: int
    dry_breakers: Sequence[Sequence[int]] | None
    top_n_sigma: float
    xtc_probability: float
    xtc_threshold: float
    mirostat_tau: float
    mirostat_eta: float
    logit_bias: Mapping[int, float] | None
    min_tokens: int
    bad_words: str | Sequence[str | Sequence[int]] | None
    allowed_token_ids: Sequence[int] | None
    seed: int | None
