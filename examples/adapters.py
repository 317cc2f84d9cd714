"""Adapters: one model tells a tale in several ways at the same time, each as it would alone.

Real adapters come from training. These two are of chance, so that the program needs no file.
"""

import sys

import numpy as np

from pymixtral import Adapter, Mixtral
from pymixtral.files.names import TensorName
from pymixtral.model.adapter import LowRank

path = sys.argv[1:2]  # a GGUF file; without one, the demo model
prompt = "Once upon a time there was a king who had three daughters"


def of_chance(model: Mixtral, seed: int) -> Adapter:
    """An adapter of rank 4 for what attention gives, in every layer."""
    draw = np.random.default_rng(seed)
    rows, cols = model.config.hidden, model.config.n_heads * model.config.head_dim
    pairs = {
        TensorName("attn_output", layer): LowRank(
            a=draw.normal(0, cols**-0.5, (4, cols)).astype(np.float32),
            b=draw.normal(0, 0.15, (4, rows)).astype(np.float32),
        )
        for layer in range(model.config.n_layers)
    }
    return Adapter(pairs, f"chance {seed}")


with Mixtral(*path, n_ctx=256) as model:
    for seed, name in enumerate(("red", "blue")):
        model.load_adapter(name, of_chance(model, seed))
    for name, adapter in model.adapters.items():
        print(f"{name}: {len(adapter.pairs)} matrices of rank {adapter.rank}, {adapter.nbytes / 1e3:.0f} kB")
    choices: list[str | dict[str, float]] = [{}, "red", "blue", {"red": 0.5, "blue": 0.5}]
    streams = [model.stream(prompt, adapter=choice, max_tokens=12, seed=1) for choice in choices]  # computed together
    for choice, stream in zip(choices, streams, strict=True):
        text = "".join(stream)
        model.forget()
        alone = model.generate(prompt, adapter=choice, max_tokens=12, seed=1).text
        print(f"{choice or 'none'}: {text!r}, alone the same: {text == alone}")
    model.unload_adapter("red")
    print("left:", *model.adapters)
