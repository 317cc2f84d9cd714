"""What a model is, from the metadata of its GGUF file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from pymixtral.arguments import integer
from pymixtral.arrays import F64
from pymixtral.errors import InvalidArgumentError, ModelConfigError, UnsupportedError
from pymixtral.files.gguf import GGUFFile
from pymixtral.files.header import Value, quoted
from pymixtral.files.shards import stem
from pymixtral.model.rope import UNSCALED, RopeScaling

# What a file may ask for, here and in quantize.
MAX_VOCAB = 1 << 24
MAX_HIDDEN = 1 << 17
MAX_LAYERS = 1 << 10
MAX_FFN = 1 << 20
MAX_HEADS = 1 << 10
MAX_EXPERTS = 64
MAX_HEAD_DIM = 1024
MAX_WINDOW = (1 << 31) - 1
RMS_EPS = (2.0**-100, 1.0)
ROPE_BASE = (1.0, 1e30)
MAX_CONTEXT = 1 << 20  # docs/numerics.md: an angle is at most 2^20
DEFAULT_CONTEXT = 4096  # a cache of Mixtral 8x7B takes 128 KiB a position in f16: half a GiB


@dataclass(frozen=True)
class ModelConfig:
    """The numbers of a Mixtral, or of a dense Mistral or Llama (n_experts == n_experts_used == 1).

    hidden: width of the residual stream. ffn: width of an expert. n_ctx_train: positions the model was trained for.
    window: positions that a token attends to, itself included; 0: all.
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
    rope_scaling: RopeScaling = UNSCALED

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> ModelConfig:
        """Reads the keys `general.architecture` and `llama.*`.

        Raises ModelConfigError for a key that is missing, has the wrong type or makes no sense, and UnsupportedError for an
        architecture, a rope scaling or another feature that is not computed.
        """
        keys = _Keys(file)
        architecture = keys.string("general.architecture")
        if architecture != "llama":
            raise UnsupportedError(
                f"{file.path}: metadata key 'general.architecture': expected 'llama' (Mixtral, Mistral), found {quoted(architecture)}, "
                "which is not supported"
            )
        _refuse_features(keys)
        hidden = keys.integer("llama.embedding_length", 1, MAX_HIDDEN)
        n_heads = keys.integer("llama.attention.head_count", 1, MAX_HEADS)
        n_kv_heads = keys.integer("llama.attention.head_count_kv", 1, n_heads, default=n_heads)
        if n_heads % n_kv_heads:
            keys.fail("llama.attention.head_count_kv", f"a divisor of the {n_heads} heads", n_kv_heads)
        n_experts = keys.integer("llama.expert_count", 0, MAX_EXPERTS, default=0)
        if n_experts == 1:
            keys.fail("llama.expert_count", f"0 or 2 to {MAX_EXPERTS}", 1)
        lowest = 1 if n_experts else 0
        n_used = keys.integer("llama.expert_used_count", lowest, n_experts, default=None if n_experts else 0)
        window = keys.integer("llama.attention.sliding_window", 0, MAX_WINDOW, default=0)
        n_ctx_train = keys.integer("llama.context_length", 1, MAX_CONTEXT)
        rope_base = keys.number("llama.rope.freq_base", *ROPE_BASE, default=10000.0)
        return cls(
            name=keys.string("general.name", default=stem(file.paths[0])),
            n_vocab=_n_vocab(keys),
            n_ctx_train=n_ctx_train,
            hidden=hidden,
            n_layers=keys.integer("llama.block_count", 1, MAX_LAYERS),
            ffn=keys.integer("llama.feed_forward_length", 1, MAX_FFN),
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=_head_dim(keys, hidden, n_heads),
            n_experts=max(n_experts, 1),
            n_experts_used=max(n_used, 1),
            rms_eps=keys.number("llama.attention.layer_norm_rms_epsilon", *RMS_EPS),
            rope_base=rope_base,
            window=0 if n_experts else window,  # published Mixtral configs that carry a window are wrong
            rope_scaling=_rope_scaling(keys, rope_base, n_ctx_train),
        )

    def rope_frequencies(self) -> F64:
        """float64 [head_dim // 2], in radians per position, scaled, as docs/numerics.md defines them."""
        return self.rope_scaling.frequencies(self.rope_base, self.head_dim)

    def rope_factor(self) -> float:
        """What the cosines and sines of rope are multiplied by."""
        return self.rope_scaling.table_factor()


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
    if "llama.vocab_size" in keys.metadata:
        return keys.integer("llama.vocab_size", 1, MAX_VOCAB)
    if "tokenizer.ggml.tokens" in keys.metadata:
        tokens = keys.metadata["tokenizer.ggml.tokens"]
        if not isinstance(tokens, list) or not tokens:
            keys.fail("tokenizer.ggml.tokens", "an array of at least one string", tokens)
        return len(tokens)
    embedding = keys.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2 or embedding.shape[0] > MAX_VOCAB:
        raise ModelConfigError(
            f"{keys.path}: the vocabulary's size is unknown: expected metadata key 'llama.vocab_size', a token list, "
            f"or a tensor 'token_embd.weight' of two dimensions with at most {MAX_VOCAB} rows"
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


# Keys of relatives of this architecture that would change the computation, and the values that change nothing.
FEATURES: dict[str, tuple[Value, ...]] = {
    "llama.attention.causal": (True,),
    "llama.attention.clamp_kqv": (0.0,),
    "llama.attention.max_alibi_bias": (0.0,),
    "llama.attention.scale": (0.0,),
    "llama.attn_logit_softcapping": (0.0,),
    "llama.final_logit_softcapping": (0.0,),
    "llama.embedding_scale": (0.0, 1.0),
    "llama.residual_scale": (0.0, 1.0),
    "llama.logit_scale": (0.0, 1.0),
    "llama.use_parallel_residual": (False,),
    "llama.leading_dense_block_count": (0,),
    "llama.expert_shared_count": (0,),
    "llama.expert_gating_func": (0, 1),  # unset, softmax
    "llama.expert_weights_norm": (True,),
    "llama.expert_weights_scale": (0.0, 1.0),
}


def _refuse_features(keys: _Keys) -> None:
    for key, neutral in FEATURES.items():
        value = keys.metadata.get(key)
        if value is not None and (isinstance(value, (list, np.ndarray)) or value not in neutral):
            raise UnsupportedError(
                f"{keys.path}: metadata key '{key}': expected none or {' or '.join(map(repr, neutral))}, found {quoted(value)}, "
                "which is not supported"
            )


def _rope_scaling(keys: _Keys, base: float, n_ctx_train: int) -> RopeScaling:
    """Linear where a factor is given without a kind; a factor of 0 is how some files spell "not set"."""
    prefix = "llama.rope.scaling"
    factor_key = f"{prefix}.factor"
    if factor_key not in keys.metadata and "llama.rope.scale_linear" in keys.metadata:
        factor_key = "llama.rope.scale_linear"
    kind = keys.string(f"{prefix}.type", default="linear")
    if kind not in ("none", "linear", "yarn"):
        raise UnsupportedError(
            f"{keys.path}: metadata key '{prefix}.type': expected 'none', 'linear' or 'yarn', found {quoted(kind)}, which is not supported"
        )
    attn_factor = keys.number(f"{prefix}.attn_factor", 1e-3, 1e3, default=1.0)
    factor = keys.number(factor_key, 0.0, 1e6, default=1.0) or 1.0
    if factor < 1.0:
        keys.fail(factor_key, "0 or a factor of at least 1", factor)
    if kind == "none" or factor == 1.0:
        return RopeScaling(attn_factor=attn_factor)
    if kind == "linear":
        return RopeScaling(kind, factor, attn_factor)
    if base <= 1.0:
        keys.fail("llama.rope.freq_base", "more than 1, as yarn scaling divides by its logarithm", base)
    for key, neutral in (("yarn_ext_factor", (1.0, -1.0)), ("yarn_attn_factor", (1.0, -1.0))):  # -1: not set
        if keys.number(f"{prefix}.{key}", -1.0, 1e3, default=1.0) not in neutral:
            raise UnsupportedError(f"{keys.path}: metadata key '{prefix}.{key}': factors other than 1 are not supported")
    return RopeScaling(
        kind,
        factor,
        attn_factor,
        n_ctx_original=keys.integer(f"{prefix}.original_context_length", 1, MAX_CONTEXT, default=n_ctx_train),
        beta_fast=keys.number(f"{prefix}.yarn_beta_fast", 1e-3, 1e6, default=32.0),
        beta_slow=keys.number(f"{prefix}.yarn_beta_slow", 1e-3, 1e6, default=1.0),
        log_multiplier=keys.number(f"{prefix}.yarn_log_multiplier", 0.0, 1e3, default=0.0),
    )


def context_length(config: ModelConfig, n_ctx: int | None) -> int:
    """n_ctx, or by default the model's own context but at most DEFAULT_CONTEXT. Raises InvalidArgumentError for one that is no integer
    from 1 to the model's own."""
    if n_ctx is None:
        return min(config.n_ctx_train, DEFAULT_CONTEXT)
    n_ctx = integer("n_ctx", n_ctx, 1)
    if n_ctx > config.n_ctx_train:
        raise InvalidArgumentError(f"expected n_ctx of at most {config.n_ctx_train}, which the model was trained for, found {n_ctx}")
    return n_ctx
