"""Small adapters of PEFT, and what they must add to each matrix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from support import paths

if TYPE_CHECKING:
    from pymixtral.model.adapter import Adapter
    from pymixtral.model.config import ModelConfig

ADAPTERS = paths.DATA / "adapters"
GOLDENS = paths.GOLDENS / "adapters"

CONFIG: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
}
"""The model that they are for, as transformers has its numbers."""

DENSE = {key: value for key, value in CONFIG.items() if "expert" not in key}
"""The same without experts."""

ENDS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "mlp.gate": "ffn_gate_inp",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""GGUF's stem of each module of a layer."""


def probe(n: int) -> NDArray[np.float64]:
    """What a matrix of n columns is multiplied by in the goldens: float64 [n, 2], of small whole numbers."""
    return np.random.default_rng(n).integers(-3, 4, (n, 2)).astype(np.float64)


def adapter_base(directory: Path) -> Path:
    """A folder with the configuration of CONFIG, which is enough of a model to convert an adapter."""
    directory.mkdir(parents=True, exist_ok=True)
    config = CONFIG | {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def model_config(of: dict[str, Any]) -> ModelConfig:
    """CONFIG or DENSE as pymixtral has it."""
    from pymixtral.model.config import ModelConfig  # the goldens are made where pymixtral is not installed

    return ModelConfig(
        name="tiny",
        n_vocab=of["vocab_size"],
        n_ctx_train=of["max_position_embeddings"],
        hidden=of["hidden_size"],
        n_layers=of["num_hidden_layers"],
        ffn=of["intermediate_size"],
        n_heads=of["num_attention_heads"],
        n_kv_heads=of["num_key_value_heads"],
        head_dim=of["head_dim"],
        n_experts=of.get("num_local_experts", 1),
        n_experts_used=of.get("num_experts_per_tok", 1),
        rms_eps=1e-5,
        rope_base=1e6,
        window=0,
    )


def case_config(name: str) -> ModelConfig:
    """The model of an adapter in ADAPTERS."""
    return model_config(DENSE if name.startswith("dense-") else CONFIG)


def deltas(adapter: Adapter) -> dict[str, NDArray[np.float64]]:
    """What an adapter adds to each matrix, float64, with the rows of queries and keys as Hugging Face has them."""
    found = {}
    for name, (a, b) in adapter.pairs.items():
        delta = b.T.astype(np.float64) @ a.astype(np.float64)
        if name.stem in ("attn_q", "attn_k"):  # of each head, first the even rows, then the odd ones
            delta = delta.reshape(-1, CONFIG["head_dim"] // 2, 2, delta.shape[1]).swapaxes(1, 2).reshape(delta.shape)
        found[str(name)] = delta
    return found


def difference(adapter: Adapter, case: str) -> float:
    """How far an adapter is from the golden of a case: the largest difference of a number."""
    found = deltas(adapter)
    with np.load(GOLDENS / f"{case}.npz") as golden:
        changed = {name for name, delta in found.items() if delta.any()}
        assert changed == set(golden), changed ^ set(golden)
        return max(
            float(np.abs(delta @ probe(delta.shape[1]) - golden[name]).max())
            for name, delta in found.items()
            if name in changed
        )
