"""What a model is, from the metadata of its GGUF file."""

from __future__ import annotations

import decimal
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from pymixtral.errors import ModelConfigError, UnsupportedError
from pymixtral.gguf import GGUFFile, Value, quoted
from pymixtral.shards import stem

MAX_EXPERTS = 64
MAX_HEAD_DIM = 1024
MAX_CONTEXT = 1 << 20  # docs/numerics.md: an angle is at most 2^20


@dataclass(frozen=True)
class ModelConfig:
    """The numbers of a Mixtral, or of a dense Mistral or Llama (n_experts == n_experts_used == 1).

    hidden: width of the residual stream. ffn: width of an expert. n_ctx_train: positions the model was trained for.
    window: positions that a token attends to, itself included; 0: all. rope_scale: the factor of linear rope scaling, by which
    positions are divided.
    """

    name: str
    n_vocab: int
    n_ctx_train: int
    hidden: int
    n_layers: int
    ffn: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_experts: int
    n_experts_used: int
    rms_eps: float
    rope_base: float
    window: int
    rope_scale: float = 1.0

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> ModelConfig:
        """Reads the keys `general.architecture` and `llama.*`.

        Raises ModelConfigError for a key that is missing, has the wrong type or makes no sense, and UnsupportedError for an
        architecture or a rope scaling that is not computed.
        """
        keys = _Keys(file)
        architecture = keys.string("general.architecture")
        if architecture != "llama":
            raise UnsupportedError(
                f"{file.path}: metadata key 'general.architecture': expected 'llama' (Mixtral, Mistral), found {quoted(architecture)}, "
                "which is not supported"
            )
        hidden = keys.integer("llama.embedding_length", 1, 1 << 17)
        n_heads = keys.integer("llama.attention.head_count", 1, 1 << 10)
        n_kv_heads = keys.integer("llama.attention.head_count_kv", 1, n_heads, default=n_heads)
        if n_heads % n_kv_heads:
            keys.fail("llama.attention.head_count_kv", f"a divisor of the {n_heads} heads", n_kv_heads)
        n_experts = keys.integer("llama.expert_count", 0, MAX_EXPERTS, default=0)
        if n_experts == 1:
            keys.fail("llama.expert_count", f"0 or 2 to {MAX_EXPERTS}", 1)
        lowest = 1 if n_experts else 0
        n_used = keys.integer("llama.expert_used_count", lowest, n_experts, default=None if n_experts else 0)
        window = keys.integer("llama.attention.sliding_window", 0, (1 << 31) - 1, default=0)
        return cls(
            name=keys.string("general.name", default=stem(file.paths[0])),
            n_vocab=_n_vocab(keys),
            n_ctx_train=keys.integer("llama.context_length", 1, MAX_CONTEXT),
            hidden=hidden,
            n_layers=keys.integer("llama.block_count", 1, 1 << 10),
            ffn=keys.integer("llama.feed_forward_length", 1, 1 << 20),
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=_head_dim(keys, hidden, n_heads),
            n_experts=max(n_experts, 1),
            n_experts_used=max(n_used, 1),
            rms_eps=keys.number("llama.attention.layer_norm_rms_epsilon", 2.0**-100, 1.0),
            rope_base=keys.number("llama.rope.freq_base", 1.0, 1e30, default=10000.0),
            window=0 if n_experts else window,  # published Mixtral configs that carry a window are wrong
            rope_scale=_rope_scale(keys),
        )

    def rope_frequencies(self) -> NDArray[np.float64]:
        """float64 [head_dim // 2]: base^(-2i / head_dim) / rope_scale, in radians per position, as docs/numerics.md defines them."""
        with decimal.localcontext(decimal.Context(prec=50)):
            base, scale = decimal.Decimal(self.rope_base), decimal.Decimal(self.rope_scale)
            exponents = [decimal.Decimal(-2 * i) / self.head_dim for i in range(self.head_dim // 2)]
            return np.array([float(base**exponent / scale) for exponent in exponents], np.float64)


class _Keys:
    """Typed access to a file's metadata; a default makes a key optional."""

    def __init__(self, file: GGUFFile) -> None:
        self.path = file.path
        self.metadata = file.metadata
        self.tensors = file.tensors

    def fail(self, key: str, expected: str, found: object) -> NoReturn:
        raise ModelConfigError(f"{self.path}: metadata key '{key}': expected {expected}, found {quoted(found)}")

    def integer(self, key: str, lowest: int, highest: int, default: int | None = None) -> int:
        value = self._value(key, default, "an integer")
        if type(value) is not int or not lowest <= value <= highest:  # bool is an int to Python
            self.fail(key, f"an integer from {lowest} to {highest}", value)
        return value

    def number(self, key: str, lowest: float, highest: float, default: float | None = None) -> float:
        value = self._value(key, default, "a floating-point number")
        if not isinstance(value, float) or not lowest <= value <= highest:  # NaN is in no range
            self.fail(key, f"a floating-point number from {lowest:g} to {highest:g}", value)
        return value

    def string(self, key: str, default: str | None = None) -> str:
        value = self._value(key, default, "a string")
        if not isinstance(value, str):
            self.fail(key, "a string", value)
        return value

    def _value(self, key: str, default: Value | None, expected: str) -> Value:
        value = self.metadata.get(key, default)
        if value is None:
            raise ModelConfigError(f"{self.path}: metadata key '{key}' is missing, expected {expected}")
        return value


def _n_vocab(keys: _Keys) -> int:
    """llama.vocab_size, else the length of the token list, else the rows of the embedding."""
    highest = 1 << 24
    if "llama.vocab_size" in keys.metadata:
        return keys.integer("llama.vocab_size", 1, highest)
    if "tokenizer.ggml.tokens" in keys.metadata:
        tokens = keys.metadata["tokenizer.ggml.tokens"]
        if not isinstance(tokens, list) or not tokens:
            keys.fail("tokenizer.ggml.tokens", "an array of at least one string", tokens)
        return len(tokens)
    embedding = keys.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2 or embedding.shape[0] > highest:
        raise ModelConfigError(
            f"{keys.path}: the vocabulary's size is unknown: expected metadata key 'llama.vocab_size', a token list, "
            f"or a tensor 'token_embd.weight' of two dimensions with at most {highest} rows"
        )
    return embedding.shape[0]


def _head_dim(keys: _Keys, hidden: int, n_heads: int) -> int:
    if "llama.attention.key_length" in keys.metadata:
        key = "llama.attention.key_length"
        head_dim = keys.integer(key, 8, MAX_HEAD_DIM)
    else:
        key = "llama.attention.head_count"
        if hidden % n_heads:
            keys.fail(key, f"a divisor of the embedding length {hidden}, as 'llama.attention.key_length' is absent", n_heads)
        head_dim = hidden // n_heads
    if head_dim % 8 or not 8 <= head_dim <= MAX_HEAD_DIM:
        keys.fail(key, f"a head dimension that is a multiple of 8, from 8 to {MAX_HEAD_DIM}", head_dim)
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if keys.integer(key, 0, (1 << 32) - 1, default=head_dim) != head_dim:
            keys.fail(key, f"the head dimension {head_dim}", keys.metadata[key])
    return head_dim


def _rope_scale(keys: _Keys) -> float:
    """The factor of linear scaling (the default kind where a factor is given), 1 without; other kinds are refused."""
    factor_key = "llama.rope.scaling.factor"
    if factor_key not in keys.metadata and "llama.rope.scale_linear" in keys.metadata:
        factor_key = "llama.rope.scale_linear"
    kind = keys.string("llama.rope.scaling.type", default="linear")
    if kind not in ("none", "linear"):
        raise UnsupportedError(
            f"{keys.path}: metadata key 'llama.rope.scaling.type': expected 'none' or 'linear', found {quoted(kind)}, "
            "which is not supported"
        )
    if keys.number("llama.rope.scaling.attn_factor", 0.0, float("inf"), default=1.0) != 1.0:
        raise UnsupportedError(f"{keys.path}: metadata key 'llama.rope.scaling.attn_factor': factors other than 1 are not supported")
    factor = keys.number(factor_key, 0.0, 1e6, default=1.0)
    if kind == "none" or factor == 0.0:  # 0 is how some files spell "not set"
        return 1.0
    if factor < 1.0:
        keys.fail(factor_key, "0 or a factor of at least 1", factor)
    return factor
