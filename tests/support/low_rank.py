"""Random low-rank adapters."""

from __future__ import annotations

import numpy as np

from pymixtral import Mixtral
from pymixtral.arrays import F32
from pymixtral.files.names import FFN_STEMS, TensorName
from pymixtral.model.adapter import Adapter, LowRank, adapted_shape
from pymixtral.model.config import ModelConfig
from support.variants import generator, normal

ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
ALL = (*ATTENTION, "ffn_gate_inp", *FFN_STEMS)


def low_rank(seed: int, rank: int, rows: int, cols: int) -> LowRank:
    """A pair whose product is about a third as large as that of a model's matrix."""
    b = normal(seed + 1, rank, rows) / np.float32(3 * rank**0.5)
    return LowRank(normal(seed, rank, cols) / np.float32(cols**0.5), b)


def adapter_for(config: ModelConfig, seed: int, rank: int = 4, stems: tuple[str, ...] = ALL) -> Adapter:
    """An adapter of every matrix of these stems, with ranks around `rank`."""
    names = [
        TensorName(stem, layer, expert=e)
        for layer in range(config.n_layers)
        for stem in stems
        for e in (None, *range(config.n_experts))
    ]
    pairs = {}
    for i, name in enumerate(names):
        shape = adapted_shape(name, config)
        if shape is not None:
            pairs[name] = low_rank(1000 * seed + 2 * i, max(1, rank - i % 3), *shape)
    return Adapter(pairs, f"adapter {seed}")


def scales_for(seed: int, n_tokens: int, n_adapters: int) -> F32:
    """What adapters count: a third of it 0, a third 1; the first row has all of them, the second none."""
    g = generator(seed)
    scales: F32 = g.choice(np.array([0, 1, 2], np.float32), (n_tokens, n_adapters))
    scales[scales == 2] = g.normal(size=int((scales == 2).sum())).astype(np.float32)
    scales[0] = 0.75
    scales[1:2] = 0
    return scales


def bound(model: Mixtral) -> int:
    """How many adapters the model keeps."""
    return model.core.engine.call(lambda inner: len(inner._adapters))
