"""What the parts of serving.py are given: the model, its sizes, prompts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pymixtral import Mixtral
from pymixtral.files.gguf import GGUFFile
from pymixtral.model.config import ModelConfig
from pymixtral.model.weights import load_weights

ROUNDS = 3
"""Turns of each program."""

DOCUMENT = 4000
"""Tokens of the long prompt."""

N_CTX = 8192


@dataclass
class Bench:
    """What all parts are given.

    Attributes:
        model: the file.
        n_threads: threads of each program.
        llama: the folder with llama.cpp's programs; None: there are none.
        rng: draws prompts.
        n_vocab: ids are below this.
        short: for trying the script: few tokens, one round.
    """

    model: Path
    n_threads: int
    llama: Path | None
    rng: np.random.Generator
    n_vocab: int
    short: bool

    @property
    def rounds(self) -> int:
        return 1 if self.short else ROUNDS

    @property
    def document(self) -> int:
        return 400 if self.short else DOCUMENT

    def open(self, **options: Any) -> Mixtral:
        return Mixtral(self.model, n_ctx=self.n_ctx, n_threads=self.n_threads, **options)

    @property
    def n_ctx(self) -> int:
        return 512 if self.short else N_CTX

    def ids(self, n: int) -> list[int]:
        return [1, *self.rng.integers(3, self.n_vocab, n - 1).tolist()] if n > 1 else [1]


@dataclass(frozen=True)
class Sizes:
    """What a pass reads and computes.

    Attributes:
        shared: bytes of matrices that every pass reads.
        expert: bytes of one expert in all layers, the mean.
        macs: multiply-accumulates of a token.
        kv: bytes of keys and values of a position.
    """

    shared: float
    expert: float
    macs: float
    kv: float

    @classmethod
    def of(cls, path: Path) -> Sizes:
        with GGUFFile(path) as file:
            config = ModelConfig.from_gguf(file)
            weights = load_weights(file, config)
            experts = sum(
                matrix.data.nbytes for layer in weights.layers for expert in layer.experts for matrix in expert
            )
            last = sum(matrix.rows * matrix.cols for expert in weights.layers[-1].experts for matrix in expert)
            used = config.n_experts_used
            return cls(
                shared=weights.active_bytes(0),
                expert=experts / config.n_experts,
                macs=weights.prompt_weights(used)
                + last * used / config.n_experts
                + weights.head.rows * weights.head.cols,
                kv=config.n_layers * config.n_kv_heads * config.head_dim * 2 * 2,
            )
