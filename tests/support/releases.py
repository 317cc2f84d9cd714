"""Checkpoints of any small shape in the other forms in which a model is published."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from pymixtral.arrays import F32
from pymixtral.quantize import quantize
from pymixtral.quantize.sources.targets import rope_order
from support.checkpoints import Shape, config_json, write_safetensors, write_tokenizer
from support.ggufs import contents

Tensors = dict[str, F32]
SMALL = Shape(n_vocab=64, n_layers=2)
DENSE = Shape(n_vocab=64, n_layers=2, n_experts=0, window=512, rope_base=1e4)


def fused(tensors: Tensors, shape: Shape) -> Tensors:
    """As transformers 5 holds the experts: gate rows before up rows, one tensor for all experts."""
    result = {
        re.sub(r"block_sparse_moe\.gate", "mlp.gate", name): x for name, x in tensors.items() if ".experts." not in name
    }
    for n in range(shape.n_layers):
        old, new = f"model.layers.{n}.block_sparse_moe.experts", f"model.layers.{n}.mlp.experts"
        w1, w2, w3 = (np.stack([tensors[f"{old}.{e}.w{i}.weight"] for e in range(shape.n_experts)]) for i in (1, 2, 3))
        result |= {f"{new}.gate_up_proj": np.concatenate([w1, w3], axis=1), f"{new}.down_proj": w2}
    return result


_MISTRAL = {
    "model.embed_tokens.weight": "tok_embeddings.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "output.weight",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "block_sparse_moe": "feed_forward",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
}


def consolidated(tensors: Tensors, shape: Shape) -> Tensors:
    """Mistral's names, and rows of queries and keys in the order in which pairs are rotated."""
    result = {}
    for name, x in tensors.items():
        for n_heads, kind in ((shape.n_heads, "q_proj"), (shape.n_kv_heads, "k_proj")):
            if kind in name:
                x = x[rope_order(n_heads, shape.head_dim)]
        for theirs, ours in _MISTRAL.items():
            name = name.replace(theirs, ours)
        result[name.removeprefix("model.")] = x
    return result


def stacked(tensors: Tensors, shape: Shape) -> Tensors:
    """As Mixtral's first release has them: all experts of a layer in three tensors, w2 transposed."""
    own = consolidated(tensors, shape)
    result = {name.replace("feed_forward", "block_sparse_moe"): x for name, x in own.items() if ".experts." not in name}
    for n in range(shape.n_layers):
        for w in ("w1", "w2", "w3"):
            experts = [own[f"layers.{n}.feed_forward.experts.{e}.{w}.weight"] for e in range(shape.n_experts)]
            result[f"layers.{n}.block_sparse_moe.{w}"] = np.concatenate([x.T if w == "w2" else x for x in experts])
    return result


def of_mlx(tensors: Tensors, shape: Shape) -> Tensors:
    """As MLX has them: each matrix of all experts in one tensor."""
    result = {name: x for name, x in tensors.items() if ".experts." not in name}
    for n in range(shape.n_layers):
        block = f"model.layers.{n}.block_sparse_moe"
        for w, name in (("w1", "gate"), ("w2", "down"), ("w3", "up")):
            experts = [tensors[f"{block}.experts.{e}.{w}.weight"] for e in range(shape.n_experts)]
            result[f"{block}.switch_mlp.{name}_proj.weight"] = np.stack(experts)
    return result


def params(shape: Shape) -> dict[str, Any]:
    """What params.json says of it."""
    values: dict[str, Any] = {
        "dim": shape.hidden,
        "n_layers": shape.n_layers,
        "head_dim": shape.head_dim,
        "hidden_dim": shape.ffn,
        "n_heads": shape.n_heads,
        "n_kv_heads": shape.n_kv_heads,
        "norm_eps": shape.rms_eps,
        "vocab_size": shape.n_vocab,
        "rope_theta": shape.rope_base,
    }
    if shape.window:
        values["sliding_window"] = shape.window
    if shape.n_experts:
        values["moe"] = {"num_experts": shape.n_experts, "num_experts_per_tok": shape.n_experts_used}
    return values


def write_fused(directory: Path, tensors: Tensors, shape: Shape, dtype: str = "float32") -> Path:
    """A checkpoint of transformers 5, in a new directory."""
    directory.mkdir()
    write_tokenizer(directory, shape.n_vocab)
    (directory / "config.json").write_text(json.dumps(config_json(shape)))
    write_safetensors(directory / "model.safetensors", fused(tensors, shape), dtype=dtype)
    return directory


def write_consolidated(
    directory: Path, tensors: Tensors, shape: Shape, dtype: str = "float32", shards: int = 1
) -> Path:
    """A checkpoint in Mistral's own form, in a new directory."""
    directory.mkdir()
    write_tokenizer(directory, shape.n_vocab)
    (directory / "params.json").write_text(json.dumps(params(shape)))
    own = list(consolidated(tensors, shape).items())
    for i in range(shards):
        name = "consolidated.safetensors" if shards == 1 else f"consolidated.{i:02}-of-{shards:02}.safetensors"
        write_safetensors(
            directory / name, dict(own[len(own) * i // shards : len(own) * (i + 1) // shards]), dtype=dtype
        )
    return directory


def quantized(source: Path, dest: Path, kind: str = "q4_0", **options: Any) -> dict[str, Any]:
    """What the GGUF file has that is made of a checkpoint."""
    quantize(source, dest, kind, progress=False, **options)
    return contents(dest)
