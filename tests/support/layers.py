"""A layer of random weights, and inputs for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from gguf import GGMLQuantizationType

from pymixtral import ops
from pymixtral.files.types import Matrix, block_weights
from pymixtral.model.config import ModelConfig
from pymixtral.model.weights import LayerWeights
from pymixtral.reference import oracle
from support.variants import model_matrix, normal

KINDS = GGMLQuantizationType
HEAD_DIM = 32


@dataclass(frozen=True)
class Shape:
    hidden: int = 64
    ffn: int = 96
    n_experts: int = 4
    n_used: int = 2
    kinds: tuple[GGMLQuantizationType, ...] = (KINDS.Q8_0,)
    """Types of the matrices, by turns."""
    window: int = 0


class Example:
    """A layer of random weights, and 140 tokens' inputs for it."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        hidden, ffn = shape.hidden, shape.ffn
        kinds = self._kinds()

        def matrix(rows: int, cols: int) -> Matrix:
            kind, number = next(kinds)
            return model_matrix(kind if cols % block_weights(kind) == 0 else KINDS.F32, rows, cols, 100 + number)

        self.weights = LayerWeights(
            attn_norm=np.float32(1) + normal(1, hidden) * np.float32(0.1),
            ffn_norm=np.float32(1) + normal(2, hidden) * np.float32(0.1),
            q=matrix(4 * HEAD_DIM, hidden),
            k=matrix(2 * HEAD_DIM, hidden),
            v=matrix(2 * HEAD_DIM, hidden),
            output=matrix(hidden, 4 * HEAD_DIM),
            router=Matrix.from_float(normal(3, shape.n_experts, hidden) / np.float32(4))
            if shape.n_experts > 1
            else None,
            experts=[(matrix(ffn, hidden), matrix(ffn, hidden), matrix(hidden, ffn)) for _ in range(shape.n_experts)],
        )
        self.config = ModelConfig(
            name="layer",
            n_vocab=1,
            n_ctx_train=1,
            hidden=hidden,
            n_layers=1,
            ffn=ffn,
            n_heads=4,
            n_kv_heads=2,
            head_dim=HEAD_DIM,
            n_experts=shape.n_experts,
            n_experts_used=shape.n_used,
            rms_eps=1e-5,
            rope_base=1e4,
            window=shape.window,
        )
        self.layer = layer_of(self.weights, self.config)
        self.x, self.normed = normal(4, 140, hidden), normal(5, 140, hidden)
        self.ids, self.route_weights = oracle.route(normal(6, 140, shape.n_experts) * np.float32(2), shape.n_used)
        self.tables = oracle.rope_table(self.config.rope_frequencies(), np.arange(140, dtype=np.int32))

    def _kinds(self) -> Iterator[tuple[GGMLQuantizationType, int]]:
        number = 0
        while True:
            yield self.shape.kinds[number % len(self.shape.kinds)], number
            number += 1


def layer_of(weights: LayerWeights, config: ModelConfig) -> ops.Layer:
    return ops.Layer(
        attn_norm=weights.attn_norm,
        ffn_norm=weights.ffn_norm,
        q=weights.q,
        k=weights.k,
        v=weights.v,
        output=weights.output,
        router=weights.router,
        experts=weights.experts,
        n_experts_used=config.n_experts_used,
        n_heads=config.n_heads,
        n_kv_heads=config.n_kv_heads,
        window=config.window,
        eps=config.rms_eps,
    )


example = cache(Example)
