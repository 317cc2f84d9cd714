"""The numbers of a model, and how they are read from a config.json as untrusted input."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pymixtral.errors import CheckpointError, UnsupportedError

from .strict_json import read_object, shown

_MAX_COUNT = 2**31 - 1
MAX_LAYERS = 1024
MAX_EXPERTS = 64  # what csrc/pmx.h routes among
_REQUIRED = object()


@dataclass(frozen=True)
class CheckpointConfig:
    """A Mixtral (n_experts >= 1) or a dense Mistral (n_experts = n_experts_used = 0); window 0 means full attention."""

    hidden: int
    ffn: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_experts: int
    n_experts_used: int
    n_vocab: int
    n_ctx_train: int
    rms_eps: float
    rope_base: float
    window: int
    tied: bool

    @classmethod
    def read(cls, path: Path) -> CheckpointConfig:
        """Reads config.json. Raises CheckpointError for a value that makes no sense, UnsupportedError for a model of another kind."""
        values = Values(read_object(path), str(path))
        moe = _is_mixtral(values)
        _refuse_unknown_features(values)
        n_heads = values.count("num_attention_heads")
        n_kv_heads = values.count("num_key_value_heads")
        if n_heads % n_kv_heads:
            raise CheckpointError(f"{path}: num_attention_heads {n_heads} is no multiple of num_key_value_heads {n_kv_heads}")
        n_experts = values.count("num_local_experts", MAX_EXPERTS) if moe else 0
        return cls(
            hidden=values.count("hidden_size"),
            ffn=values.count("intermediate_size"),
            n_layers=values.count("num_hidden_layers", MAX_LAYERS),
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=values.head_dim("hidden_size", "num_attention_heads"),
            n_experts=n_experts,
            n_experts_used=values.count("num_experts_per_tok", n_experts) if moe else 0,
            n_vocab=values.count("vocab_size"),
            n_ctx_train=values.count("max_position_embeddings"),
            rms_eps=values.positive("rms_norm_eps"),
            rope_base=_rope(values).positive("rope_theta"),
            # Published Mixtral configs that carry a window are wrong: Mixtral attends to everything.
            window=0 if moe or values.get("sliding_window", _REQUIRED) is None else values.count("sliding_window"),
            tied=values.flag("tie_word_embeddings"),
        )


def _is_mixtral(values: Values) -> bool:
    names = values.get("architectures", _REQUIRED)
    if names == ["MixtralForCausalLM"]:
        return True
    if names == ["MistralForCausalLM"]:
        return False
    raise UnsupportedError(f"{values.where}: architectures is {shown(names)}; expected MixtralForCausalLM or MistralForCausalLM")


def _refuse_unknown_features(values: Values) -> None:
    if (scaling := values.get("rope_scaling")) is not None:
        raise UnsupportedError(f"{values.where}: rope_scaling is {shown(scaling)}; only models without RoPE scaling (null) are quantized")
    if (kind := _rope(values).get("rope_type", "default")) != "default":
        raise UnsupportedError(f"{values.where}: rope_type is {shown(kind)}; only models without RoPE scaling ('default') are quantized")
    if (activation := values.get("hidden_act", "silu")) != "silu":
        raise UnsupportedError(f"{values.where}: hidden_act is {shown(activation)}; only 'silu' is supported")


def _rope(values: Values) -> Values:
    """Where rope_theta lives: the top level, or rope_parameters in files of transformers 5."""
    return values.inner("rope_parameters") or values


@dataclass(frozen=True)
class Values:
    """Checked access to the values of a JSON object. Raises CheckpointError, which names `where` and the key."""

    values: Mapping[str, Any]
    where: str

    def get(self, key: str, default: object = None) -> Any:
        if default is _REQUIRED and key not in self.values:
            raise CheckpointError(f"{self.where}: {key} is missing")
        return self.values.get(key, default)

    def count(self, key: str, limit: int = _MAX_COUNT) -> int:
        value = self.get(key, _REQUIRED)
        if type(value) is not int or not 1 <= value <= limit:
            raise CheckpointError(f"{self.where}: {key} is {shown(value)}; expected a whole number from 1 to {limit}")
        return value

    def positive(self, key: str) -> float:
        value = self.get(key, _REQUIRED)
        # The GGUF key is a float32, so the value must survive there too.
        if type(value) not in (int, float) or not 1e-30 < value < 1e30 or not math.isfinite(value):
            raise CheckpointError(f"{self.where}: {key} is {shown(value)}; expected a positive number")
        return float(value)

    def flag(self, key: str) -> bool:
        value = self.get(key, False)
        if type(value) is not bool:
            raise CheckpointError(f"{self.where}: {key} is {shown(value)}; expected true or false")
        return value

    def inner(self, key: str) -> Values | None:
        """The object under a key; None where there is none."""
        value = self.get(key)
        if value is not None and not isinstance(value, dict):
            raise CheckpointError(f"{self.where}: {key} is {shown(value)}; expected an object")
        return None if value is None else Values(value, f"{self.where}: {key}")

    def head_dim(self, hidden_key: str, heads_key: str) -> int:
        """head_dim, or what hidden size and number of heads make it."""
        hidden, n_heads = self.count(hidden_key), self.count(heads_key)
        if self.get("head_dim") is not None:
            head_dim = self.count("head_dim")
        elif hidden % n_heads == 0:
            head_dim = hidden // n_heads
        else:
            raise CheckpointError(f"{self.where}: {hidden_key} {hidden} is no multiple of {heads_key} {n_heads} and there is no head_dim")
        if head_dim % 2:
            raise CheckpointError(f"{self.where}: head_dim {head_dim}; expected an even number (RoPE turns pairs)")
        return head_dim
