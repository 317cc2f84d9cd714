"""The numbers of a model, and how they are read from a config.json as untrusted input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pymixtral.errors import CheckpointError, UnsupportedError
from pymixtral.model.config import (
    MAX_CONTEXT,
    MAX_EXPERTS,
    MAX_FFN,
    MAX_HEAD_DIM,
    MAX_HEADS,
    MAX_HIDDEN,
    MAX_LAYERS,
    MAX_VOCAB,
    MAX_WINDOW,
    RMS_EPS,
    ROPE_BASE,
)

from .strict_json import read_object, shown

_REQUIRED = object()


@dataclass(frozen=True)
class CheckpointConfig:
    """A Mixtral (n_experts >= 2) or a dense Mistral (n_experts = n_experts_used = 0); window 0 means full attention."""

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
        n_heads = values.count("num_attention_heads", MAX_HEADS)
        n_kv_heads = values.count("num_key_value_heads", MAX_HEADS)
        if n_heads % n_kv_heads:
            raise CheckpointError(f"{path}: num_attention_heads {n_heads} is no multiple of num_key_value_heads {n_kv_heads}")
        n_experts = values.count("num_local_experts", MAX_EXPERTS, lowest=2) if moe else 0
        return cls(
            hidden=values.count("hidden_size", MAX_HIDDEN),
            ffn=values.count("intermediate_size", MAX_FFN),
            n_layers=values.count("num_hidden_layers", MAX_LAYERS),
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=values.head_dim("hidden_size", "num_attention_heads"),
            n_experts=n_experts,
            n_experts_used=values.count("num_experts_per_tok", n_experts) if moe else 0,
            n_vocab=values.count("vocab_size", MAX_VOCAB),
            n_ctx_train=values.count("max_position_embeddings", MAX_CONTEXT),
            rms_eps=values.number("rms_norm_eps", *RMS_EPS),
            rope_base=_rope(values).number("rope_theta", *ROPE_BASE),
            # Published Mixtral configs that carry a window are wrong: Mixtral attends to everything.
            window=0 if moe or values.get("sliding_window", _REQUIRED) is None else values.count("sliding_window", MAX_WINDOW),
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

    def count(self, key: str, highest: int, lowest: int = 1) -> int:
        value = self.get(key, _REQUIRED)
        if type(value) is not int or not lowest <= value <= highest:
            raise CheckpointError(f"{self.where}: {key} is {shown(value)}; expected a whole number from {lowest} to {highest}")
        return value

    def number(self, key: str, lowest: float, highest: float) -> float:
        value = self.get(key, _REQUIRED)
        # The GGUF key is a float32, so the value must be in the range when it is one.
        if type(value) not in (int, float) or not lowest <= value <= highest or not lowest <= float(np.float32(value)) <= highest:
            raise CheckpointError(f"{self.where}: {key} is {shown(value)}; expected a number from {lowest:g} to {highest:g}")
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
        hidden, n_heads = self.count(hidden_key, MAX_HIDDEN), self.count(heads_key, MAX_HEADS)
        if self.get("head_dim") is not None:
            head_dim = self.count("head_dim", MAX_HEAD_DIM)
        elif hidden % n_heads == 0:
            head_dim = hidden // n_heads
        else:
            raise CheckpointError(f"{self.where}: {hidden_key} {hidden} is no multiple of {heads_key} {n_heads} and there is no head_dim")
        if head_dim % 8 or head_dim > MAX_HEAD_DIM:
            raise CheckpointError(f"{self.where}: head_dim {head_dim}; expected a multiple of 8, from 8 to {MAX_HEAD_DIM}")
        return head_dim
