"""Metadata that the caller gives in place of the file's, read and checked as the file's is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pymixtral.arguments import number, shown
from pymixtral.errors import InvalidArgumentError
from pymixtral.files.gguf import GGUFFile
from pymixtral.files.header import quoted
from pymixtral.model.config import ModelConfig
from pymixtral.model.keys import FEATURES, INTEGERS, NUMBERS, STRINGS

Override = int | float | bool | str

ExpertsUsed = int | Sequence[int]
"""Experts that a token uses: one number, or one for each layer."""

ACTIVATIONS = ("int8", "int16")
"""How activations are rounded before products with quantized weights; int16 is two planes of int8."""

_TOKENIZER: dict[str, type] = {
    **dict.fromkeys((f"tokenizer.ggml.{token}_token_id" for token in ("bos", "eos", "eot", "eom", "unknown")), int),
    **dict.fromkeys(("tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_space_prefix"), bool),
    **dict.fromkeys(("tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.chat_template"), str),
}

KEYS: dict[str, type] = {
    **dict.fromkeys(INTEGERS, int),
    **dict.fromkeys(NUMBERS, float),
    **dict.fromkeys(STRINGS, str),
    **{key: type(neutral[0]) for key, neutral in FEATURES.items()},
    **_TOKENIZER,
}
"""The keys that can be given and their types: all that pymixtral reads, but for arrays and for the
keys of the file's own form."""

_EXPERTS = "llama.expert_count"
_EXPERTS_USED = "llama.expert_used_count"


def override(
    file: GGUFFile, experts_used: ExpertsUsed | None, overrides: Mapping[str, Override] | None
) -> dict[str, Override]:
    """Changes file.metadata.

    Whether a value makes sense is for ModelConfig and Tokenizer to say, as it is of a value in the
    file.

    Args:
        file: the open file.
        experts_used: short for an override of 'llama.expert_used_count', of a number for each layer
            by the largest; None: as the file has it.
        overrides: metadata keys and the values that take the place of the file's, or None.

    Returns:
        The keys that the model's numbers depend on and whose value is not the file's own.

    Raises:
        InvalidArgumentError: overrides is no mapping, a key is not in KEYS, a value is not of its
            type, or experts_used contradicts the overrides or is more than there are experts.
    """
    if overrides is not None and not isinstance(overrides, Mapping):
        raise InvalidArgumentError(
            f"expected overrides to be a mapping of metadata keys to values, found {type(overrides).__name__}"
        )
    changes = dict(overrides or {})
    if experts_used is not None:
        most = _most(experts_used)  # first: an array cannot be compared
        changes.setdefault(_EXPERTS_USED, most)
    for key, value in changes.items():
        if key not in KEYS:
            raise InvalidArgumentError(f"expected overrides of metadata keys that pymixtral reads, found {quoted(key)}")
        if type(value) is not KEYS[key]:  # bool is an int to Python
            raise InvalidArgumentError(
                f"override of metadata key '{key}': expected {KEYS[key].__name__}, "
                f"found {type(value).__name__} {quoted(value)}"
            )
    if experts_used is not None and changes[_EXPERTS_USED] != most:
        raise InvalidArgumentError(
            f"expected experts_used or an override of '{_EXPERTS_USED}', found both, and different"
        )
    if experts_used is not None:
        n_experts = changes.get(_EXPERTS, file.metadata.get(_EXPERTS, 0))
        if type(n_experts) is int and n_experts < most:  # what is no integer is refused with the file
            raise InvalidArgumentError(
                f"expected experts_used of at most the model's {n_experts} experts, found {most}"
                if n_experts
                else f"expected no experts_used for a dense model, which has no experts, found {most}"
            )
    different = {
        key: value
        for key, value in changes.items()
        if key not in _TOKENIZER and (type(file.metadata.get(key)) is not type(value) or file.metadata[key] != value)
    }
    file.metadata.update(changes)
    return different


def with_experts(config: ModelConfig, experts_used: ExpertsUsed | None, expert_min_p: float = 0.0) -> ModelConfig:
    """The numbers of a model of which a token uses fewer experts than the metadata can say.

    Args:
        config: the model's numbers, of a file that override() has changed.
        experts_used: as of override().
        expert_min_p: experts that are less than this part as likely as a token's first one are not
            used.

    Returns:
        The model's numbers.

    Raises:
        InvalidArgumentError: there are more or fewer numbers than layers, expert_min_p is no number
            from 0 to 1, or the model is dense and has no experts to leave out.
    """
    least = number("expert_min_p", expert_min_p, 0.0, 1.0)
    if least and config.n_experts == 1:
        raise InvalidArgumentError(
            f"expected expert_min_p of 0 for a dense model, which has no experts, found {shown(expert_min_p)}"
        )
    each = () if experts_used is None or isinstance(experts_used, int) else tuple(experts_used)
    if each and len(each) != config.n_layers:
        raise InvalidArgumentError(
            f"expected experts_used to be one number, or one for each of the {config.n_layers} layers, "
            f"found {len(each)}"
        )
    return replace(config, fewer_experts=each if len(set(each)) > 1 else (), expert_min_p=least)


def with_activations(config: ModelConfig, activations: str) -> ModelConfig:
    """The numbers of a model whose activations are rounded so finely.

    Args:
        config: the model's numbers.
        activations: "int8" or "int16".

    Returns:
        The model's numbers.

    Raises:
        InvalidArgumentError: for anything else.
    """
    if activations not in ACTIVATIONS:
        raise InvalidArgumentError(f"expected activations to be 'int8' or 'int16', found {shown(activations)}")
    return replace(config, planes=1 + ACTIVATIONS.index(activations))


def _most(experts_used: ExpertsUsed) -> int:
    each = [experts_used] if type(experts_used) is int else experts_used
    if not isinstance(each, (list, tuple)) or not each or any(type(n) is not int or n < 1 for n in each):
        raise InvalidArgumentError(
            f"expected experts_used to be an integer of at least 1, or a list of such, found {quoted(experts_used)}"
        )
    most: int = max(each)
    return most
