"""What a model is, from the metadata of its GGUF file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from gguf import GGMLQuantizationType

from pymixtral.arguments import integer, shown
from pymixtral.arrays import F64
from pymixtral.errors import InvalidArgumentError, ModelConfigError, UnsupportedError
from pymixtral.files.gguf import GGUFFile
from pymixtral.files.header import quoted
from pymixtral.files.kinds import gguf_instead
from pymixtral.files.names import TensorName
from pymixtral.files.shards import stem
from pymixtral.model.keys import FEATURES, INTEGERS, NUMBERS, Keys
from pymixtral.model.rope import UNSCALED, RopeScaling

PLANNED_CONTEXT = 4096
"""Positions that figures of models are for, unless others are asked for: the same on every machine. A
model that is opened chooses by the memory that it finds; see pymixtral.memory."""


@dataclass(frozen=True)
class ModelConfig:
    """The numbers of a Mixtral, or of a dense Mistral or Llama.

    Attributes:
        name: the model's name, for people.
        n_vocab: tokens of the vocabulary.
        n_ctx_train: positions that the model was trained for.
        hidden: width of the residual stream.
        n_layers: decoder layers.
        ffn: width of an expert, or of a dense layer's feed-forward part.
        n_heads: heads of queries.
        n_kv_heads: heads of keys and values, a divisor of n_heads.
        head_dim: width of a head, a multiple of 8.
        n_experts: experts of a layer; 1 in a dense model.
        n_experts_used: experts that a token uses, the most of all layers; 1 in a dense model.
        rms_eps: what the norms add to the mean square.
        rope_base: the base of the frequencies of rotary position embedding.
        window: positions that a token attends to, itself included; 0: all.
        rope_scaling: how the frequencies are scaled to longer contexts.
        fewer_experts: experts that a token uses in each layer, where layers differ; else empty.
        expert_min_p: experts that are less than this part as likely as a token's first one are not
            used; 0: all are.
        planes: int8 numbers that stand for an activation: 1, or 2 for some 16 bits.
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
    fewer_experts: tuple[int, ...] = ()
    expert_min_p: float = 0.0
    planes: int = 1

    @property
    def experts_used(self) -> tuple[int, ...]:
        """Experts that a token uses in each layer."""
        return self.fewer_experts or (self.n_experts_used,) * self.n_layers

    @property
    def choices(self) -> dict[str, object]:
        """What was chosen when the model was opened and no metadata can say: arguments of Mixtral and
        their values, but for those that change nothing.
        """
        chosen: dict[str, object] = {}
        if self.fewer_experts:
            chosen["experts_used"] = list(self.fewer_experts)
        if self.expert_min_p:
            chosen["expert_min_p"] = self.expert_min_p
        if self.planes == 2:
            chosen["activations"] = "int16"
        return chosen

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> ModelConfig:
        """Reads the keys `general.architecture`, `general.name` and `llama.*`, and `rope_freqs.weight`.

        Args:
            file: the open file.

        Returns:
            The model's numbers, consistent with one another.

        Raises:
            ModelConfigError: a key is missing, or a value has the wrong type or makes no sense.
            UnsupportedError: the architecture, the rope scaling or another feature is not computed.
        """
        keys = Keys(file)
        if found := gguf_instead(file.metadata):
            raise UnsupportedError(f"{file.path}: expected a model, found {found}")
        architecture = keys.string("general.architecture")
        if architecture != "llama":
            raise UnsupportedError(
                f"{file.path}: metadata key 'general.architecture': expected 'llama' (Mixtral, Mistral), "
                f"found {quoted(architecture)}, which is not supported"
            )
        _refuse_features(keys)
        hidden = keys.integer("llama.embedding_length")
        n_heads = keys.integer("llama.attention.head_count")
        n_kv_heads = keys.integer("llama.attention.head_count_kv", highest=n_heads, default=n_heads)
        if n_heads % n_kv_heads:
            keys.fail("llama.attention.head_count_kv", f"a divisor of the {n_heads} heads", n_kv_heads)
        n_experts, n_experts_used = _experts(keys)
        window = keys.integer("llama.attention.sliding_window", default=0)
        n_ctx_train = keys.integer("llama.context_length")
        head_dim = _head_dim(keys, hidden, n_heads)
        rope_base = keys.number("llama.rope.freq_base", default=10000.0)
        return cls(
            name=keys.string("general.name", default=stem(file.paths[0])),
            n_vocab=_n_vocab(keys),
            n_ctx_train=n_ctx_train,
            hidden=hidden,
            n_layers=keys.integer("llama.block_count"),
            ffn=keys.integer("llama.feed_forward_length"),
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            n_experts=n_experts,
            n_experts_used=n_experts_used,
            rms_eps=keys.number("llama.attention.layer_norm_rms_epsilon"),
            rope_base=rope_base,
            window=window if n_experts == 1 else 0,  # published Mixtral configs that carry a window are wrong
            rope_scaling=replace(_rope_scaling(keys, rope_base, n_ctx_train), factors=_rope_factors(keys, head_dim)),
        )

    def to_gguf(self) -> dict[str, str | int | float]:
        """The metadata `llama.*` that from_gguf reads this from.

        Returns:
            Key to value, in the order in which they are written.
        """
        keys: dict[str, str | int | float] = {
            "llama.vocab_size": self.n_vocab,
            "llama.context_length": self.n_ctx_train,
            "llama.embedding_length": self.hidden,
            "llama.block_count": self.n_layers,
            "llama.feed_forward_length": self.ffn,
            "llama.attention.head_count": self.n_heads,
            "llama.attention.head_count_kv": self.n_kv_heads,
            "llama.attention.key_length": self.head_dim,
            "llama.attention.value_length": self.head_dim,
            "llama.attention.layer_norm_rms_epsilon": self.rms_eps,
            "llama.rope.dimension_count": self.head_dim,
            "llama.rope.freq_base": self.rope_base,
            **self.rope_scaling.to_gguf(),
        }
        if self.n_experts > 1:
            keys |= {"llama.expert_count": self.n_experts, "llama.expert_used_count": self.n_experts_used}
        if self.window:
            keys["llama.attention.sliding_window"] = self.window
        return keys

    def tensors(self) -> Iterator[tuple[TensorName, tuple[int, ...]]]:
        """The tensors that the model consists of, with experts merged, in the order of a file.

        Yields:
            Name and shape, slowest dimension first.
        """
        q, kv = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        moe = self.n_experts > 1
        experts = (self.n_experts,) if moe else ()
        yield TensorName("token_embd"), (self.n_vocab, self.hidden)
        if self.rope_scaling.factors:
            yield TensorName("rope_freqs"), (self.head_dim // 2,)
        for layer in range(self.n_layers):
            yield TensorName("attn_norm", layer), (self.hidden,)
            yield TensorName("attn_q", layer), (q, self.hidden)
            yield TensorName("attn_k", layer), (kv, self.hidden)
            yield TensorName("attn_v", layer), (kv, self.hidden)
            yield TensorName("attn_output", layer), (self.hidden, q)
            yield TensorName("ffn_norm", layer), (self.hidden,)
            if moe:
                yield TensorName("ffn_gate_inp", layer), (self.n_experts, self.hidden)
            yield TensorName("ffn_gate", layer, merged=moe), (*experts, self.ffn, self.hidden)
            yield TensorName("ffn_up", layer, merged=moe), (*experts, self.ffn, self.hidden)
            yield TensorName("ffn_down", layer, merged=moe), (*experts, self.hidden, self.ffn)
        yield TensorName("output_norm"), (self.hidden,)
        yield TensorName("output"), (self.n_vocab, self.hidden)

    def rope_frequencies(self) -> F64:
        """The frequencies of rotary position embedding, scaled, as docs/numerics.md defines them.

        Returns:
            float64 [head_dim // 2], in radians per position.
        """
        return self.rope_scaling.frequencies(self.rope_base, self.head_dim)

    def rope_factor(self) -> float:
        """What the cosines and sines of rotary position embedding are multiplied by."""
        return self.rope_scaling.table_factor()


def _refuse_features(keys: Keys) -> None:
    for key, neutral in FEATURES.items():
        value = keys.metadata.get(key)
        if value is not None and (isinstance(value, (list, np.ndarray)) or value not in neutral):
            raise UnsupportedError(
                f"{keys.path}: metadata key '{key}': expected none or {' or '.join(map(repr, neutral))}, "
                f"found {quoted(value)}, which is not supported"
            )


def _experts(keys: Keys) -> tuple[int, int]:
    """Experts of a layer, and those that a token uses: 1 and 1 in a dense model.

    Files of dense models say 0, or nothing.
    """
    n_experts = keys.integer("llama.expert_count", default=0)
    if n_experts == 1:
        keys.fail("llama.expert_count", f"0 or 2 to {INTEGERS['llama.expert_count'][1]}", 1)
    if n_experts == 0:
        keys.integer("llama.expert_used_count", highest=0, default=0)
        return 1, 1
    return n_experts, keys.integer("llama.expert_used_count", lowest=1, highest=n_experts)


def _n_vocab(keys: Keys) -> int:
    """llama.vocab_size, else the length of the token list, else the rows of the embedding."""
    if "llama.vocab_size" in keys.metadata:
        return keys.integer("llama.vocab_size")
    if "tokenizer.ggml.tokens" in keys.metadata:
        tokens = keys.metadata["tokenizer.ggml.tokens"]
        if not isinstance(tokens, list) or not tokens:
            keys.fail("tokenizer.ggml.tokens", "an array of at least one string", tokens)
        return len(tokens)
    embedding, highest = keys.tensors.get("token_embd.weight"), INTEGERS["llama.vocab_size"][1]
    if embedding is None or len(embedding.shape) != 2 or embedding.shape[0] > highest:
        raise ModelConfigError(
            f"{keys.path}: the vocabulary's size is unknown: expected metadata key 'llama.vocab_size', a token list, "
            f"or a tensor 'token_embd.weight' of two dimensions with at most {highest} rows"
        )
    return embedding.shape[0]


def _head_dim(keys: Keys, hidden: int, n_heads: int) -> int:
    """llama.attention.key_length, else the width of the residual stream over the heads."""
    key = "llama.attention.key_length"
    lowest, highest = INTEGERS[key]
    if key in keys.metadata:
        head_dim = keys.integer(key)
    else:
        key = "llama.attention.head_count"
        if hidden % n_heads:
            expected = f"a divisor of the embedding length {hidden}, as 'llama.attention.key_length' is absent"
            keys.fail(key, expected, n_heads)
        head_dim = hidden // n_heads
    if head_dim % 8 or not lowest <= head_dim <= highest:
        keys.fail(key, f"a head dimension that is a multiple of 8, from {lowest} to {highest}", head_dim)
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if keys.integer(key, default=head_dim) != head_dim:
            keys.fail(key, f"the head dimension {head_dim}", keys.metadata[key])
    return head_dim


def _rope_scaling(keys: Keys, base: float, n_ctx_train: int) -> RopeScaling:
    """The scaling that a file asks for.

    A factor without a kind is linear; some files spell "not set" as a factor of 0.
    """
    prefix = "llama.rope.scaling"
    factor_key = f"{prefix}.factor"
    if factor_key not in keys.metadata and "llama.rope.scale_linear" in keys.metadata:
        factor_key = "llama.rope.scale_linear"
    kind = keys.string(f"{prefix}.type", default="linear")
    if kind not in ("none", "linear", "yarn"):
        raise UnsupportedError(
            f"{keys.path}: metadata key '{prefix}.type': expected 'none', 'linear' or 'yarn', found {quoted(kind)}, "
            "which is not supported"
        )
    attn_factor = keys.number(f"{prefix}.attn_factor", default=1.0)
    factor = keys.number(factor_key, default=1.0) or 1.0
    if factor < 1.0:
        keys.fail(factor_key, "0 or a factor of at least 1", factor)
    if kind == "none" or factor == 1.0:
        return RopeScaling(attn_factor=attn_factor)
    if kind == "linear":
        return RopeScaling(kind, factor, attn_factor)
    if base <= 1.0:
        keys.fail("llama.rope.freq_base", "more than 1, as yarn scaling divides by its logarithm", base)
    for key in (f"{prefix}.yarn_ext_factor", f"{prefix}.yarn_attn_factor"):
        if keys.number(key, default=1.0) not in (1.0, -1.0):  # -1: not set
            raise UnsupportedError(
                f"{keys.path}: metadata key '{key}': expected none or 1.0 or -1.0, found {quoted(keys.metadata[key])}, "
                "which is not supported"
            )
    return RopeScaling(
        kind,
        factor,
        attn_factor,
        n_ctx_original=keys.integer(f"{prefix}.original_context_length", default=n_ctx_train),
        beta_fast=keys.number(f"{prefix}.yarn_beta_fast", default=32.0),
        beta_slow=keys.number(f"{prefix}.yarn_beta_slow", default=1.0),
        log_multiplier=keys.number(f"{prefix}.yarn_log_multiplier", default=0.0),
    )


def _rope_factors(keys: Keys, head_dim: int) -> tuple[float, ...]:
    """The factors that a file carries as a tensor, which is f32 always; else none."""
    name = str(TensorName("rope_freqs"))
    tensor = keys.tensors.get(name)
    if tensor is None:
        return ()
    where = f"{keys.path}: tensor '{name}'"
    if tensor.shape != (head_dim // 2,) or tensor.type != GGMLQuantizationType.F32:
        raise ModelConfigError(
            f"{where}: expected {head_dim // 2} factors of type F32, half the head dimension, found shape "
            f"{list(tensor.shape)} and type {tensor.type.name}"
        )
    factors = np.frombuffer(tensor.data.tobytes(), "<f4")
    lowest, highest = 1.0, NUMBERS["llama.rope.scaling.factor"][1]
    if wrong := [factor for factor in factors.tolist() if not lowest <= factor <= highest]:  # NaN is in no range
        raise ModelConfigError(f"{where}: expected factors from {lowest:g} to {highest:g}, found {wrong[0]:g}")
    return tuple(factors.tolist())


def context_length(config: ModelConfig, n_ctx: int | None) -> int:
    """The positions of a context that is asked for, or that figures are for.

    Args:
        config: the model.
        n_ctx: positions; None: the model's own number, but at most PLANNED_CONTEXT.

    Returns:
        The number of positions.

    Raises:
        InvalidArgumentError: n_ctx is no integer from 1 to the model's own number.
    """
    if n_ctx is None:
        return min(config.n_ctx_train, PLANNED_CONTEXT)
    n_ctx = integer("n_ctx", n_ctx, 1)
    if n_ctx > config.n_ctx_train:
        raise InvalidArgumentError(
            f"expected n_ctx of at most {config.n_ctx_train}, which the model was trained for, found {shown(n_ctx)}"
        )
    return n_ctx
