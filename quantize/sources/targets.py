"""Which tensors of a Hugging Face checkpoint make which tensor of a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pymixtral.arrays import I64

from .config import CheckpointConfig


@dataclass(frozen=True)
class Target:
    """A GGUF tensor and the checkpoint tensors, each of `shape`, that it holds one after the other.

    One source gives a tensor of `shape`; a merged expert tensor has shape [n_experts, *shape]. With rope_heads > 0 the rows belong
    to that many heads and are reordered by `rope_order`.
    """

    name: str
    sources: tuple[str, ...]
    part_shape: tuple[int, ...]
    merged: bool = False
    rope_heads: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.sources), *self.part_shape) if self.merged else self.part_shape

    def split(self) -> list[Target]:
        """The tensors of single experts that a merged one consists of, by the names of the split layout; of another tensor itself."""
        if not self.merged:
            return [self]
        stem = self.name.removesuffix("_exps.weight")
        return [replace(self, name=f"{stem}.{e}.weight", sources=(source,), merged=False) for e, source in enumerate(self.sources)]

    @property
    def rows(self) -> int:
        """Rows of one source; a vector is one row."""
        return self.part_shape[0] if len(self.part_shape) == 2 else 1

    @property
    def cols(self) -> int:
        return self.part_shape[-1]


def targets(config: CheckpointConfig) -> list[Target]:
    """The tensors of the GGUF file in the order in which they are written."""
    hidden, head_dim = config.hidden, config.head_dim
    q_rows, kv_rows = config.n_heads * head_dim, config.n_kv_heads * head_dim
    result = [Target("token_embd.weight", ("model.embed_tokens.weight",), (config.n_vocab, hidden))]
    for layer in range(config.n_layers):
        block, source = f"blk.{layer}", f"model.layers.{layer}"
        attention = f"{source}.self_attn"
        result += [
            Target(f"{block}.attn_norm.weight", (f"{source}.input_layernorm.weight",), (hidden,)),
            Target(f"{block}.attn_q.weight", (f"{attention}.q_proj.weight",), (q_rows, hidden), rope_heads=config.n_heads),
            Target(f"{block}.attn_k.weight", (f"{attention}.k_proj.weight",), (kv_rows, hidden), rope_heads=config.n_kv_heads),
            Target(f"{block}.attn_v.weight", (f"{attention}.v_proj.weight",), (kv_rows, hidden)),
            Target(f"{block}.attn_output.weight", (f"{attention}.o_proj.weight",), (hidden, q_rows)),
            Target(f"{block}.ffn_norm.weight", (f"{source}.post_attention_layernorm.weight",), (hidden,)),
        ]
        result += _experts(config, block, f"{source}.block_sparse_moe") if config.n_experts else _dense(config, block, f"{source}.mlp")
    result.append(Target("output_norm.weight", ("model.norm.weight",), (hidden,)))
    if not config.tied:
        result.append(Target("output.weight", ("lm_head.weight",), (config.n_vocab, hidden)))
    return result


def _experts(config: CheckpointConfig, block: str, source: str) -> list[Target]:
    up, down = (config.ffn, config.hidden), (config.hidden, config.ffn)
    result = [Target(f"{block}.ffn_gate_inp.weight", (f"{source}.gate.weight",), (config.n_experts, config.hidden))]
    for name, weight, shape in (("gate", "w1", up), ("up", "w3", up), ("down", "w2", down)):
        sources = tuple(f"{source}.experts.{expert}.{weight}.weight" for expert in range(config.n_experts))
        result.append(Target(f"{block}.ffn_{name}_exps.weight", sources, shape, merged=True))
    return result


def _dense(config: CheckpointConfig, block: str, source: str) -> list[Target]:
    up, down = (config.ffn, config.hidden), (config.hidden, config.ffn)
    return [
        Target(f"{block}.ffn_{name}.weight", (f"{source}.{name}_proj.weight",), shape)
        for name, shape in (("gate", up), ("up", up), ("down", down))
    ]


def rope_order(n_heads: int, head_dim: int) -> I64:
    """Row order [n_heads * head_dim] that turns Hugging Face's query or key rows into GGUF's.

    Hugging Face rotates element i of a head with element i + head_dim/2, llama-architecture GGUF rotates 2i with 2i + 1: in each head
    GGUF row 2i is row i of the checkpoint and row 2i + 1 is row i + head_dim/2.
    """
    rows = np.arange(n_heads * head_dim, dtype=np.int64).reshape(n_heads, 2, head_dim // 2)
    order: I64 = rows.swapaxes(1, 2).reshape(-1)
    return order
