"""The memory that a model takes while it runs."""

from __future__ import annotations

from dataclasses import dataclass

from pymixtral.model.config import ModelConfig
from pymixtral.model.kv_cache import KV_TYPES, check_kv_type, n_pages_for
from pymixtral.ops import PAGE

# Python, NumPy and the tokenizer: 35 MB of private memory and some 20 of libraries, measured on Linux.
_PROCESS_BYTES = 60_000_000
_BATCH = 512  # tokens of a prompt that are computed at once


@dataclass(frozen=True)
class Footprint:
    """Bytes. weights: the mapped tensors. kv: keys and values of the whole context. working: an estimate of the process and its
    buffers."""

    weights: int
    kv: int
    working: int

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.working


def kv_bytes_per_token(config: ModelConfig, kv_type: str = "f16") -> int:
    """Keys and values of one position in all layers. kv_type: "f16", "f32" or "q8_0". Raises InvalidArgumentError for others, and for
    q8_0 if the model's heads do not fit."""
    check_kv_type(kv_type, config.head_dim)
    return 2 * config.n_layers * config.n_kv_heads * config.head_dim * KV_TYPES[kv_type] // 32


def footprint(config: ModelConfig, weight_bytes: int, n_ctx: int, kv_type: str = "f16") -> Footprint:
    """For a context of n_ctx tokens, cached in whole pages."""
    kv = kv_bytes_per_token(config, kv_type) * n_pages_for(n_ctx) * PAGE
    return Footprint(weight_bytes, kv, _PROCESS_BYTES + _BATCH * _bytes_per_prompt_token(config))


def _bytes_per_prompt_token(config: ModelConfig) -> int:
    """The residual stream, its norm, queries, keys, values, attention's result and the experts' inner activations in f32, and the
    latter once more in int8. A prompt of full width takes some 5% less."""
    c = config
    inner = c.n_experts_used * c.ffn
    floats = 2 * c.hidden + 2 * c.n_heads * c.head_dim + 2 * c.n_kv_heads * c.head_dim + inner
    return 4 * floats + inner
