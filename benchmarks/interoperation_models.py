"""Small models of the family for interoperation.py, as f32 GGUF files made from a trained Mixtral,
so that most predictions are clear.

A dense model is the first expert of each layer, one of fewer experts the first of them; one of more
has them all and disturbed copies. Weights drawn at random, for the shapes that the trained model
cannot give, make models whose best tokens nearly tie.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pymixtral.arrays import F32
from pymixtral.quantize import quantize

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from support.checkpoints import Shape, make_checkpoint, read_tensors, write_safetensors
from support.ggufs import rewrite

_EXPERT = re.compile(r"(.*\.block_sparse_moe\.experts)\.(\d+)\.(w[123]\.weight)")
_DENSE = {"w1.weight": "gate_proj.weight", "w2.weight": "down_proj.weight", "w3.weight": "up_proj.weight"}
_SCALING = "llama.rope.scaling"


@dataclass(frozen=True)
class Member:
    """n_experts, used: of the trained model's experts (0: dense). shape: random weights instead.
    keys: GGUF metadata to set. tied: without an output matrix. note: what to know about its row.
    """

    n_experts: int = 8
    used: int = 2
    shape: Shape | None = None
    keys: dict[str, Any] = field(default_factory=dict)
    tied: bool = False
    note: str = ""


def scaled(kind: str, factor: float, original: int, **more: float) -> dict[str, Any]:
    return {
        f"{_SCALING}.{k}": v
        for k, v in {"type": kind, "factor": factor, "original_context_length": original, **more}.items()
    }


RANDOM = "random weights: the best tokens nearly tie"
WINDOW = {"llama.attention.sliding_window": 70}
MEMBERS: dict[str, Member] = {
    "2 experts, 1 used": Member(2, 1),
    "2 experts, 2 used": Member(2, 2),
    "4 experts, 2 used": Member(4, 2),
    "16 experts, 4 used": Member(16, 4),
    "8 experts, 1 used": Member(8, 1),
    "8 experts, 8 used": Member(8, 8),
    "dense": Member(0),
    "dense, window longer than the text": Member(0, keys={"llama.attention.sliding_window": 256}),
    "dense, window 70": Member(
        0, keys=WINDOW, note="llama.cpp has no window for this architecture and attends to everything"
    ),
    "dense, tied output": Member(0, tied=True),
    "tied output": Member(tied=True),
    "dense, linear scaling": Member(0, keys=scaled("linear", 2.0, 128)),
    "dense, yarn scaling": Member(0, keys=scaled("yarn", 4.0, 64)),
    "linear scaling": Member(keys=scaled("linear", 2.0, 128)),
    "yarn scaling": Member(keys=scaled("yarn", 4.0, 64)),
    "yarn scaling, attn_factor 0.9": Member(keys=scaled("yarn", 4.0, 64, attn_factor=0.9)),
    "8x22B in small": Member(
        shape=Shape(hidden=96, ffn=256, n_layers=56, n_heads=6, n_kv_heads=1, n_experts=8), note=RANDOM
    ),
    "Mistral Nemo in small": Member(
        shape=Shape(hidden=160, ffn=448, n_heads=8, n_kv_heads=2, head_dim=16, n_experts=0), note=RANDOM
    ),
}


def make(member: Member, checkpoint: Path, directory: Path) -> Path:
    """The f32 GGUF file of a member, in a directory of its own. checkpoint: the trained model, in
    Hugging Face's form.
    """
    hf, whole, path = directory / "hf", directory / "whole.gguf", directory / "f32.gguf"
    if member.shape:
        make_checkpoint(hf, member.shape, seed=5)
    else:
        _derive(member, checkpoint, hf)
    quantize(hf, whole, "f32", progress=False)
    shutil.rmtree(hf)
    rewrite(whole, path, keys=member.keys, without=("output.weight",) if member.tied else ())
    whole.unlink()
    return path


def _derive(member: Member, checkpoint: Path, hf: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    tensors = read_tensors(checkpoint)
    available = config["num_local_experts"]
    if member.n_experts:
        config |= {"num_local_experts": member.n_experts, "num_experts_per_tok": member.used}
    else:
        config |= {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": None}
        del config["num_local_experts"], config["num_experts_per_tok"]
    hf.mkdir()
    (hf / "config.json").write_text(json.dumps(config))
    shutil.copy(checkpoint / "tokenizer.model", hf)
    rng = np.random.Generator(np.random.PCG64(7))

    def disturbed(values: F32) -> F32:
        return values + (0.1 * values.std() * rng.standard_normal(values.shape)).astype(np.float32)

    derived: dict[str, F32] = {}
    for name, values in tensors.items():
        match = _EXPERT.fullmatch(name)
        if match and member.n_experts:
            for expert in range(int(match[2]), member.n_experts, available):
                derived[f"{match[1]}.{expert}.{match[3]}"] = values if expert < available else disturbed(values)
        elif match and match[2] == "0":
            derived[f"{match[1].removesuffix('.block_sparse_moe.experts')}.mlp.{_DENSE[match[3]]}"] = values
        elif name.endswith("block_sparse_moe.gate.weight"):
            if member.n_experts:
                copies = [values] + [disturbed(values) for _ in range(available, member.n_experts, available)]
                derived[name] = np.concatenate(copies)[: member.n_experts]
        elif not match:
            derived[name] = values
    write_safetensors(hf / "model.safetensors", derived)
