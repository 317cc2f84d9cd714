"""Writes adapters of PEFT into tests/data/adapters, and beside this file what PEFT's merge_and_unload makes of them.

Run by hand, from the root of the repository, in an environment with torch, transformers, peft and
safetensors:

    python tests/goldens/make_adapter_goldens.py

It writes the cases that are of the installed versions. The files here were made with torch 2.13.0 (CPU),
NumPy 2.4.6 and Python 3.11.7, and, by case,
    v4-* and dense-*   transformers 4.57.6, PEFT 0.21.2
    v5-*               transformers 5.24.0, PEFT 0.21.2
    v5-0.18-*          transformers 5.24.0, PEFT 0.18.1

adapters/NAME.npz holds for each matrix that an adapter changes, under its name in GGUF, float32 [rows, 2]:
the change times PROBE, with the rows in the order of Hugging Face. All weights of the base model are 0,
so that the merged weights are the change.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from support.adapters import ADAPTERS, CONFIG, DENSE, ENDS, GOLDENS, probe  # noqa: E402

Deltas = dict[str, NDArray[np.float32]]

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
FUSED = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]

CASES: dict[str, dict[str, Any]] = {
    "v4-attention": {"r": 2, "lora_alpha": 6, "target_modules": ATTENTION},
    "v4-all": {"r": 2, "lora_alpha": 5, "target_modules": [*ATTENTION, "w1", "w2", "w3", "gate"]},
    "v4-rslora": {"r": 3, "lora_alpha": 8, "use_rslora": True, "target_modules": ["q_proj", "v_proj", "w2"]},
    "v4-patterns": {
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj", "k_proj", "w1", "w2"],
        "rank_pattern": {"w2": 3, "layers.1.self_attn.q_proj": 1},
        "alpha_pattern": {r".*\.experts\.[01]\.w1": 5, "model.layers.0.self_attn.q_proj": 7, r"^self_attn\.k_proj": 9},
    },
    "v4-partial": {
        "r": 2,
        "lora_alpha": 3,
        "target_modules": r".*layers\.1\.(self_attn\.v_proj|block_sparse_moe\.experts\.[02]\.(w1|w2))",
    },
    "v4-layers": {"r": 1, "lora_alpha": 3, "target_modules": ["o_proj", "w3"], "layers_to_transform": [1]},
    "dense-all": {"r": 2, "lora_alpha": 3, "target_modules": "all-linear"},
    "v5-all": {
        "r": 2,
        "lora_alpha": 5,
        "target_modules": ATTENTION,
        "target_parameters": [*FUSED, "mlp.gate.weight"],
    },
    "v5-gate_up": {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj"], "target_parameters": FUSED[:1]},
    "v5-down": {
        "r": 3,
        "lora_alpha": 8,
        "use_rslora": True,
        "target_modules": ["v_proj"],
        "target_parameters": FUSED[1:],
    },
    "v5-patterns": {
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj"],
        "target_parameters": FUSED,
        "rank_pattern": {r".*\.gate_up_proj": 3},
        "alpha_pattern": {"layers.1.mlp.experts.down_proj": 7},
    },
    "v5-from-v4": {"load": "v4-all"},
    "v5-0.18-all": {
        "r": 2,
        "lora_alpha": 5,
        "target_modules": ["k_proj"],
        "target_parameters": [*FUSED, "mlp.gate.weight"],
    },
}
"""Arguments of LoraConfig by case; "load": an adapter that is loaded and saved again."""


def zeros(name: str) -> Any:
    """The model of a case, all of whose weights are 0."""
    config = dict(DENSE if name.startswith("dense-") else CONFIG)
    kind = "Llama" if name.startswith("dense-") else "Mixtral"
    model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**config))
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    return model


def merge(name: str, directory: Path, out: Path) -> None:
    """Writes what PEFT makes of an adapter for the model of a case, whole, as .npz."""
    merged = PeftModel.from_pretrained(zeros(name), str(directory)).merge_and_unload()
    np.savez(out, **named(merged.state_dict()))  # type: ignore[arg-type]


def fits(name: str) -> bool:
    """Whether the installed versions are a case's."""
    five = transformers.__version__.startswith("5.")
    old = peft.__version__.startswith("0.18.")
    return five == name.startswith("v5-") and old == name.startswith("v5-0.18-")


def make(name: str, directory: Path) -> Deltas:
    """Makes an adapter.

    Args:
        name: a key of CASES.
        directory: where to save it.

    Returns:
        What PEFT adds to each matrix, by its name in GGUF, rows in the order of Hugging Face.
    """
    torch.manual_seed(list(CASES).index(name) + 1)
    model = zeros(name)
    arguments = CASES[name]
    if "load" in arguments:
        adapted = PeftModel.from_pretrained(model, str(ADAPTERS / arguments["load"]))
    else:
        adapted = get_peft_model(model, LoraConfig(**arguments, init_lora_weights=False))
        with torch.no_grad():
            for key, weight in adapted.named_parameters():
                if "lora_" in key:
                    weight.copy_(torch.randn_like(weight) * 0.1)
    adapted.save_pretrained(str(directory))
    return dict(named(adapted.merge_and_unload().state_dict()))


def named(weights: dict[str, torch.Tensor]) -> Deltas:
    """The matrices that are not 0, by their names in GGUF."""
    found: Deltas = {}

    def add(key: str, value: torch.Tensor) -> None:
        if value.any():
            found[key] = value.numpy()

    for key, value in weights.items():
        match = re.fullmatch(r"model\.layers\.(\d+)\.(.+?)(?:\.weight)?", key)
        if not match:
            continue
        layer, module = match.groups()
        expert = re.fullmatch(r"block_sparse_moe\.experts\.(\d+)\.(w\d)", module)
        if module == "mlp.experts.gate_up_proj":
            for e, matrix in enumerate(value):
                gate, up = matrix.chunk(2)
                add(f"blk.{layer}.ffn_gate.{e}.weight", gate)
                add(f"blk.{layer}.ffn_up.{e}.weight", up)
        elif module == "mlp.experts.down_proj":
            for e, matrix in enumerate(value):
                add(f"blk.{layer}.ffn_down.{e}.weight", matrix)
        elif expert:
            stem = {"w1": "ffn_gate", "w2": "ffn_down", "w3": "ffn_up"}[expert[2]]
            add(f"blk.{layer}.{stem}.{expert[1]}.weight", value)
        elif module in ENDS:
            add(f"blk.{layer}.{ENDS[module]}.weight", value)
    return found


def main(fitting: Callable[[str], bool] = fits) -> None:
    for name in filter(fitting, CASES):
        directory = ADAPTERS / name
        shutil.rmtree(directory, ignore_errors=True)
        deltas = make(name, directory)
        (directory / "README.md").unlink(missing_ok=True)
        path = directory / "adapter_config.json"
        settings = json.loads(path.read_text())
        path.write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n")
        GOLDENS.mkdir(exist_ok=True)
        probed = {key: (delta.astype(np.float64) @ probe(delta.shape[1])) for key, delta in deltas.items()}
        np.savez_compressed(GOLDENS / f"{name}.npz", **{key: value.astype(np.float32) for key, value in probed.items()})
        print(name, len(deltas), "matrices")


if __name__ == "__main__":
    if sys.argv[1:]:  # of tests/adapters/test_peers.py
        merge(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main()
