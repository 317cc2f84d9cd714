"""Metadata that the caller gives in place of the file's, read and checked as the file's is."""

from __future__ import annotations

from collections.abc import Mapping

from pymixtral.errors import InvalidArgumentError
from pymixtral.files.gguf import GGUFFile
from pymixtral.files.header import quoted
from pymixtral.model.keys import FEATURES, INTEGERS, NUMBERS, STRINGS

Override = int | float | bool | str

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

_EXPERTS_USED = "llama.expert_used_count"


def override(file: GGUFFile, experts_used: int | None, overrides: Mapping[str, Override] | None) -> dict[str, Override]:
    """Changes file.metadata.

    Whether a value makes sense is for ModelConfig and Tokenizer to say, as it is of a value in the
    file.

    Args:
        file: the open file.
        experts_used: short for an override of 'llama.expert_used_count'; None: as the file has it.
        overrides: metadata keys and the values that take the place of the file's, or None.

    Returns:
        The keys that the model's numbers depend on and whose value is not the file's own.

    Raises:
        InvalidArgumentError: overrides is no mapping, a key is not in KEYS, a value is not of its
            type, or experts_used contradicts the overrides.
    """
    if overrides is not None and not isinstance(overrides, Mapping):
        raise InvalidArgumentError(
            f"expected overrides to be a mapping of metadata keys to values, found {type(overrides).__name__}"
        )
    changes = dict(overrides or {})
    if experts_used is not None:
        if type(experts_used) is not int or experts_used < 1:  # first: an array cannot be compared
            found = quoted(experts_used)
            raise InvalidArgumentError(f"expected experts_used to be an integer of at least 1, found {found}")
        changes.setdefault(_EXPERTS_USED, experts_used)
    for key, value in changes.items():
        if key not in KEYS:
            raise InvalidArgumentError(f"expected overrides of metadata keys that pymixtral reads, found {quoted(key)}")
        if type(value) is not KEYS[key]:  # bool is an int to Python
            raise InvalidArgumentError(
                f"override of metadata key '{key}': expected {KEYS[key].__name__}, "
                f"found {type(value).__name__} {quoted(value)}"
            )
    if experts_used is not None and changes[_EXPERTS_USED] != experts_used:
        raise InvalidArgumentError(
            f"expected experts_used or an override of '{_EXPERTS_USED}', found both, and different"
        )
    different = {
        key: value
        for key, value in changes.items()
        if key not in _TOKENIZER and (type(file.metadata.get(key)) is not type(value) or file.metadata[key] != value)
    }
    file.metadata.update(changes)
    return different
