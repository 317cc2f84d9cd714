"""Models of several shapes for the forward pass, with a text and the oracle's rows for each."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pymixtral.arrays import F32, I32
from pymixtral.files.gguf import GGUFFile
from pymixtral.model.config import ModelConfig
from pymixtral.model.forward import Model
from pymixtral.model.kv_cache import KVCache, Sequence
from pymixtral.model.weights import ModelWeights, load_weights
from pymixtral.quantize import quantize
from pymixtral.reference import oracle
from support.checkpoints import TINY_MIXTRAL, Shape, make_checkpoint
from support.variants import ISAS, generator

ODD = Shape(
    hidden=96, ffn=160, n_layers=3, n_heads=6, n_kv_heads=3, head_dim=24, n_experts=5, n_experts_used=3, n_vocab=333
)
DENSE = Shape(hidden=64, ffn=96, n_heads=8, n_kv_heads=1, head_dim=8, n_experts=0, n_vocab=64, window=20, rope_base=1e4)
MANY = Shape(n_experts=16, n_experts_used=4, n_vocab=64)
UNEVEN = Shape(hidden=72, ffn=100, n_heads=3, n_kv_heads=3, head_dim=40, n_experts=2, n_experts_used=1, n_vocab=50)

MODELS: dict[str, tuple[Shape | None, str, int]] = {
    "tiny-q4_0": (None, "q4_0", 70),
    "tiny-q8_0": (None, "q8_0", 70),
    "tiny-f16": (None, "f16", 24),
    "tiny-f32": (None, "f32", 20),
    "odd-f32": (ODD, "f32", 70),
    "odd-q8_0": (ODD, "q8_0", 130),
    "dense-q4_0": (DENSE, "q4_0", 130),
    "many-q8_0": (MANY, "q8_0", 130),
    "uneven-f16": (UNEVEN, "f16", 70),
    "uneven-q4_0": (UNEVEN, "q4_0", 70),
}
"""Shape (None: tests/data/tiny-mixtral), type of the weights, number of tokens."""


class Example:
    """A model read from a file, a text for it, and the oracle's rows."""

    def __init__(self, directory: Path, shape: Shape | None, kind: str, n: int) -> None:
        checkpoint = directory / "checkpoint" if shape else TINY_MIXTRAL
        if shape:
            make_checkpoint(checkpoint, shape, seed=7)
        quantize(checkpoint, directory / "model.gguf", kind, progress=False)
        with GGUFFile(directory / "model.gguf") as file:
            self.config = ModelConfig.from_gguf(file)
            self.weights = load_weights(file, self.config)
        self.tokens: I32 = generator(8).integers(0, self.config.n_vocab, n).astype(np.int32)
        self.hidden = cache(self._hidden)

    def _hidden(self, dtype: Any = np.float32, start: int | None = None) -> F32:
        """The oracle's rows for the text, or for what rotated(start) makes of it."""
        return oracle.forward(self.weights, self.config, self.tokens if start is None else self.rotated(start), dtype)

    def rotated(self, start: int) -> I32:
        """Another text of the same length: the second half begins with other tokens."""
        half = len(self.tokens) // 2
        return np.concatenate([self.tokens[:half], np.roll(self.tokens[half:], start)])

    def model(self, isa: str = ISAS[-1], n_threads: int = 2, weights: ModelWeights | None = None) -> Model:
        return Model(weights or self.weights, self.config, n_threads=n_threads, isa=isa)


Load = Callable[[str], Example]


def loader(folders: pytest.TempPathFactory) -> Load:
    """Load models by their names in MODELS, each once."""
    return cache(lambda name: Example(folders.mktemp(name), *MODELS[name]))


def run(model: Model, kv: KVCache, sequence: Sequence, tokens: I32, size: int | None = None) -> F32:
    """Hidden rows of tokens that continue a sequence, in pieces."""
    size = size or len(tokens)
    rows = [
        model.forward(part, [(sequence, len(part))], kv) for part in np.split(tokens, range(size, len(tokens), size))
    ]
    return np.concatenate(rows)


def state(kv: KVCache, *sequences: Sequence) -> tuple[Any, ...]:
    return kv.n_free_pages, [(s.length, s.pages.tolist()) for s in sequences]
