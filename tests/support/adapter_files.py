"""Random adapters as files, in llama.cpp's form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFWriter

from pymixtral.files.names import TensorName
from pymixtral.model.adapter import adapted_shape
from pymixtral.model.config import ModelConfig
from support.ggufs import finish
from support.low_rank import ATTENTION, low_rank

RANK = 4


def write_adapter(path: Path, config: ModelConfig, seed: int) -> Path:
    """Write an adapter of all matrices of attention.

    Args:
        path: a new file.
        config: of the model.
        seed: of the numbers; with another one other texts come.
    """
    writer = GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", RANK)
    names = [TensorName(stem, layer) for layer in range(config.n_layers) for stem in ATTENTION]
    for i, name in enumerate(names):
        shape = adapted_shape(name, config)
        assert shape
        a, b = low_rank(1000 * seed + 2 * i, RANK, *shape)
        writer.add_tensor(f"{name}.lora_a", a)
        writer.add_tensor(f"{name}.lora_b", np.ascontiguousarray(b.T))
    finish(writer)
    return path
