"""The memory that a running model takes."""

from __future__ import annotations

from dataclasses import dataclass

from pymixtral.model.config import ModelConfig
from pymixtral.model.kv_cache import KV_TYPES, check_kv_type, n_pages_for
from pymixtral.ops import PAGE

# Python, NumPy and the tokenizer, measured on Linux: 35 MB of private memory and some 20 MB of
# libraries.
_PROCESS_BYTES = 60_000_000
BATCH = 512
"""Tokens of prompts that are computed at once, where all weights are in memory."""

_LARGEST_BATCH = 8192
"""Tokens of prompts that are computed at once, where they are not: a pass of so many takes minutes."""


@dataclass(frozen=True)
class Footprint:
    """The memory of a running model, in bytes.

    Attributes:
        weights: the mapped tensors.
        kv: keys and values of the whole context.
        working: an estimate of the process and its buffers.
    """

    weights: int
    kv: int
    working: int

    @property
    def total(self) -> int:
        """The sum, in bytes."""
        return self.weights + self.kv + self.working


def kv_bytes_per_token(config: ModelConfig, kv_type: str = "f16") -> int:
    """Compute the size of the keys and values of one position.

    Args:
        config: the model's numbers.
        kv_type: "f16", "f32" or "q8_0".

    Returns:
        Bytes in all layers together.

    Raises:
        InvalidArgumentError: for another type, and for q8_0 if the head dimension is not a multiple
            of 32.
    """
    check_kv_type(kv_type, config.head_dim)
    return 2 * config.n_layers * config.n_kv_heads * config.head_dim * KV_TYPES[kv_type] // 32


def footprint(config: ModelConfig, weight_bytes: int, n_ctx: int, kv_type: str = "f16") -> Footprint:
    """Compute the memory that a model takes while it runs.

    Args:
        config: the model's numbers.
        weight_bytes: bytes of its tensors.
        n_ctx: positions of the context, which is cached in whole pages.
        kv_type: "f16", "f32" or "q8_0".

    Returns:
        The parts, in bytes.

    Raises:
        InvalidArgumentError: as kv_bytes_per_token() does.
    """
    kv = kv_bytes_per_token(config, kv_type) * n_pages_for(n_ctx) * PAGE
    return Footprint(weight_bytes, kv, _PROCESS_BYTES + BATCH * bytes_per_prompt_token(config))


def batch_size(config: ModelConfig, need: Footprint, usable: int) -> int:
    """Choose how many tokens of prompts are computed at once.

    Where the weights are not all in memory, every pass over a prompt reads the file again, so fewer
    passes are better. Their buffers stay allocated, and what they take the weights lose.

    Args:
        config: the model's numbers.
        need: what the model takes.
        usable: bytes of memory for it.

    Returns:
        BATCH where the model fits; else as many as a quarter of the memory that keys and values leave
        has room for, in whole pages, from BATCH to 8192.
    """
    if need.total <= usable:
        return BATCH
    n_tokens = max(usable - need.kv, 0) // 4 // bytes_per_prompt_token(config) // PAGE * PAGE
    return max(BATCH, min(n_tokens, _LARGEST_BATCH))


def bytes_per_prompt_token(config: ModelConfig) -> int:
    """Compute the size of the buffers for each token of a prompt; some 5% more than a full batch takes.

    They are the residual stream, its norm, queries, keys, values, the attention's result and the
    experts' inner activations in f32, and the inner activations once more in int8.

    Args:
        config: the model's numbers.

    Returns:
        Bytes.
    """
    c = config
    inner = c.n_experts_used * c.ffn
    floats = 2 * c.hidden + 2 * c.n_heads * c.head_dim + 2 * c.n_kv_heads * c.head_dim + inner
    return 4 * floats + inner
