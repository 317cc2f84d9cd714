"""The numbers of published models, from their configurations."""

from __future__ import annotations

from dataclasses import replace

from pymixtral.model.config import ModelConfig

_MIXTRAL_8X7B = ModelConfig(
    name="Mixtral 8x7B",
    n_vocab=32000,
    n_ctx_train=32768,
    hidden=4096,
    n_layers=32,
    ffn=14336,
    n_heads=32,
    n_kv_heads=8,
    head_dim=128,
    n_experts=8,
    n_experts_used=2,
    rms_eps=1e-5,
    rope_base=1e6,
    window=0,
)

MODELS = {
    "8x7b": _MIXTRAL_8X7B,
    "8x22b": replace(
        _MIXTRAL_8X7B,
        name="Mixtral 8x22B",
        n_vocab=32768,
        n_ctx_train=65536,
        hidden=6144,
        n_layers=56,
        ffn=16384,
        n_heads=48,
    ),
    "7b": replace(_MIXTRAL_8X7B, name="Mistral 7B", n_experts=1, n_experts_used=1),
}
"""By the names that `pymixtral plan --params` takes."""
