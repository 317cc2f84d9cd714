"""Logits of a model into which PEFT merged its adapters: its part of tests/adapters/test_peers.py.

    python tests/goldens/merged_logits.py CHECKPOINT DENSE OUT

It makes an adapter of each case that is of the installed versions, for the Mixtral or the dense model
given, into OUT/CASE. OUT/CASE.npz has the logits of the model with the adapter merged, "merged", and of
the model alone, "alone", of OUT/tokens.npy; all is float32. It needs torch, transformers and peft.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import make_adapter_goldens as goldens
import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model

SIZE = 0.1
"""Standard deviation of the adapters' numbers."""

EXPERTS = ["w1", "w2", "w3"]

CASES: dict[str, dict[str, Any]] = {
    **{name: arguments for name, arguments in goldens.CASES.items() if "load" not in arguments},
    "v4-attention-16": {"r": 16, "lora_alpha": 32, "target_modules": goldens.ATTENTION},
    "v4-experts": {"r": 16, "lora_alpha": 16, "target_modules": EXPERTS},
    "v4-router": {"r": 4, "lora_alpha": 16, "target_modules": ["gate"]},
    "v4-rslora-all": {
        "r": 16,
        "lora_alpha": 4,
        "use_rslora": True,
        "target_modules": [*goldens.ATTENTION, *EXPERTS, "gate"],
    },
    "v5-attention": {"r": 16, "lora_alpha": 32, "target_modules": goldens.ATTENTION},
    "v5-experts": {"r": 16, "lora_alpha": 16, "target_modules": ["q_proj"], "target_parameters": goldens.FUSED},
    "v5-router": {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj"], "target_parameters": ["mlp.gate.weight"]},
    "v5-rslora-all": {
        "r": 16,
        "lora_alpha": 4,
        "use_rslora": True,
        "target_modules": goldens.ATTENTION,
        "target_parameters": [*goldens.FUSED, "mlp.gate.weight"],
    },
}


@torch.no_grad()
def logits(model: Any, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
    """[n_tokens, n_vocab]."""
    found: NDArray[np.float32] = model(torch.from_numpy(tokens)[None].long()).logits[0].numpy()
    return found


def main(checkpoint: Path, dense: Path, out: Path) -> None:
    transformers.logging.set_verbosity_error()
    tokens = np.load(out / "tokens.npy")
    for seed, name in enumerate(filter(goldens.fits, CASES), 1):
        torch.manual_seed(seed)
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            dense if name.startswith("dense-") else checkpoint, dtype=torch.float32, attn_implementation="eager"
        )
        alone = logits(model, tokens)
        adapted = get_peft_model(model, LoraConfig(**CASES[name], init_lora_weights=False))
        with torch.no_grad():
            for key, weight in adapted.named_parameters():
                if "lora_" in key:
                    weight.copy_(torch.randn_like(weight) * SIZE)
        adapted.save_pretrained(str(out / name))
        np.savez(out / f"{name}.npz", alone=alone, merged=logits(adapted.merge_and_unload(), tokens))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
