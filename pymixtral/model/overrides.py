"""Metadata given by the caller in place of the file's, which is then read and checked as if the file had it."""

from __future__ import annotations

from collections.abc import Mapping

from pymixtral.errors import InvalidArgumentError
from pymixtral.files.gguf import GGUFFile
from pymixtral.files.header import quoted
from pymixtral.model.config import FEATURES

Override = int | float | bool | str

_INTEGERS = (
    *(f"llama.{key}" for key in ("vocab_size", "context_length", "embedding_length", "block_count", "feed_forward_length")),
    *(f"llama.attention.{key}" for key in ("head_count", "head_count_kv", "key_length", "value_length", "sliding_window")),
    *("llama.expert_count", "llama.expert_used_count", "llama.rope.dimension_count", "llama.rope.scaling.original_context_length"),
    *(f"tokenizer.ggml.{key}_token_id" for key in ("bos", "eos", "eot", "unknown")),
)
_FLOATS = (
    *("llama.attention.layer_norm_rms_epsilon", "llama.rope.freq_base", "llama.rope.scale_linear"),
    *(f"llama.rope.scaling.{key}" for key in ("factor", "attn_factor", "yarn_ext_factor", "yarn_attn_factor")),
    *(f"llama.rope.scaling.yarn_{key}" for key in ("beta_fast", "beta_slow", "log_multiplier")),
)
_FLAGS = ("tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_space_prefix")
_STRINGS = ("general.architecture", "general.name", "llama.rope.scaling.type", "tokenizer.ggml.model", "tokenizer.chat_template")

KEYS: dict[str, type] = {
    **dict.fromkeys(_INTEGERS, int),
    **dict.fromkeys(_FLOATS, float),
    **dict.fromkeys(_FLAGS, bool),
    **dict.fromkeys(_STRINGS, str),
    **{key: type(neutral[0]) for key, neutral in FEATURES.items()},
}
"""The keys that can be given, all that pymixtral reads but arrays and those of the file's own form, and their types."""

_EXPERTS_USED = "llama.expert_used_count"


def override(file: GGUFFile, experts_used: int | None, overrides: Mapping[str, Override] | None) -> None:
    """Changes file.metadata. experts_used: short for an override of 'llama.expert_used_count'.

    Raises InvalidArgumentError for what is no mapping, a key that is not in KEYS and a value that is not of its type. Whether a value makes
    sense is for ModelConfig and Tokenizer to say, as it is of a value in the file.
    """
    if overrides is not None and not isinstance(overrides, Mapping):
        raise InvalidArgumentError(f"expected overrides to be a mapping of metadata keys to values, found {type(overrides).__name__}")
    changes = dict(overrides or {})
    if experts_used is not None:
        if changes.setdefault(_EXPERTS_USED, experts_used) != experts_used:
            raise InvalidArgumentError(f"expected experts_used or an override of '{_EXPERTS_USED}', found both, and different")
        if type(experts_used) is not int or experts_used < 1:
            raise InvalidArgumentError(f"expected experts_used to be an integer of at least 1, found {quoted(experts_used)}")
    for key, value in changes.items():
        if key not in KEYS:
            raise InvalidArgumentError(f"expected overrides of metadata keys that pymixtral reads, found {quoted(key)}")
        if type(value) is not KEYS[key]:  # bool is an int to Python
            raise InvalidArgumentError(
                f"override of metadata key '{key}': expected {KEYS[key].__name__}, found {type(value).__name__} {quoted(value)}"
            )
    file.metadata.update(changes)
