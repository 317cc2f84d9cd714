"""Which tensors of a Hugging Face checkpoint make which tensor of a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pymixtral.arrays import I64
from pymixtral.files.names import TensorName, expert_name
from pymixtral.model.config import ModelConfig


@dataclass(frozen=True)
class Target:
    """A GGUF tensor and the checkpoint tensors that it holds one after the other.

    Attributes:
        name: the GGUF tensor's.
        sources: names of the checkpoint's tensors, one, or those of all experts.
        part_shape: of each source.
        merged: whether the tensor holds all experts, so that its shape is [n_experts, *part_shape].
        rope_heads: the number of heads that the rows belong to, if rope_order() reorders them; else
            0.
    """

    name: str
    sources: tuple[str, ...]
    part_shape: tuple[int, ...]
    merged: bool = False
    rope_heads: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape in the GGUF file, the slowest dimension first."""
        return (len(self.sources), *self.part_shape) if self.merged else self.part_shape

    def split(self) -> list[Target]:
        """The tensors of single experts that a merged one consists of; another tensor itself."""
        if not self.merged:
            return [self]
        return [
            replace(self, name=expert_name(self.name, e), sources=(source,), merged=False)
            for e, source in enumerate(self.sources)
        ]

    @property
    def rows(self) -> int:
        """Rows of one source; a vector is one row."""
        return self.part_shape[0] if len(self.part_shape) == 2 else 1

    @property
    def cols(self) -> int:
        """The number of weights in a row."""
        return self.part_shape[-1]


_SOURCES = {
    "token_embd": "model.embed_tokens",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "output_norm": "model.norm",
    "rope_freqs": "rope_freqs",  # no tensor of the checkpoint: its configuration gives the factors
    "output": "lm_head",
}
"""Hugging Face's name of each stem, in a layer after the layer's name."""

_EXPERT_SOURCES = {"ffn_gate": "w1", "ffn_up": "w3", "ffn_down": "w2"}
"""The same of an expert's matrices, after the expert's name."""


def targets(config: ModelConfig, tied: bool) -> list[Target]:
    """What becomes of a Hugging Face checkpoint.

    Args:
        config: the model's numbers.
        tied: whether the embedding is the output matrix too, so that the file has no output.weight.

    Returns:
        The tensors of the GGUF file, in the order in which they are written.
    """
    return [_target(config, name, shape) for name, shape in config.tensors() if not (tied and name.stem == "output")]


def _target(config: ModelConfig, name: TensorName, shape: tuple[int, ...]) -> Target:
    prefix = "" if name.layer is None else f"model.layers.{name.layer}."
    if name.merged:
        experts, weight = f"{prefix}block_sparse_moe.experts", _EXPERT_SOURCES[name.stem]
        sources = tuple(f"{experts}.{e}.{weight}.weight" for e in range(config.n_experts))
        return Target(str(name), sources, shape[1:], merged=True)
    rope_heads = {"attn_q": config.n_heads, "attn_k": config.n_kv_heads}.get(name.stem, 0)
    return Target(str(name), (f"{prefix}{_SOURCES[name.stem]}.weight",), shape, rope_heads=rope_heads)


def rope_order(n_heads: int, head_dim: int) -> I64:
    """The order of rows that turns Hugging Face's queries or keys into GGUF's.

    Hugging Face rotates element i of a head with element i + head_dim/2, GGUF of the architecture
    "llama" 2i with 2i + 1. In each head GGUF's row 2i is row i of the checkpoint, and row 2i + 1 is
    row i + head_dim/2.

    Args:
        n_heads: heads of queries, or of keys.
        head_dim: rows of a head.

    Returns:
        int64 [n_heads * head_dim], the checkpoint's row for each row of the file.
    """
    rows = np.arange(n_heads * head_dim, dtype=np.int64).reshape(n_heads, 2, head_dim // 2)
    order: I64 = rows.swapaxes(1, 2).reshape(-1)
    return order
