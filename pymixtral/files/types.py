"""A matrix of weights as a model file stores it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from pymixtral.arrays import F16, F32, U8

DEQUANTIZED_TYPES = (
    GGMLQuantizationType.IQ1_S,
    GGMLQuantizationType.IQ1_M,
    GGMLQuantizationType.IQ2_XXS,
    GGMLQuantizationType.IQ2_XS,
    GGMLQuantizationType.IQ2_S,
    GGMLQuantizationType.IQ3_XXS,
    GGMLQuantizationType.IQ3_S,
    GGMLQuantizationType.TQ1_0,
    GGMLQuantizationType.TQ2_0,
    GGMLQuantizationType.MXFP4,
)
"""Types without kernels of their own: rows are dequantized each time they are used, to what the package gguf makes of them, and
multiplied as f32. That is correct, and several times slower than other types."""


def slow_types(types: Iterable[GGMLQuantizationType]) -> tuple[str, ...]:
    """Names, in lower case, of those in DEQUANTIZED_TYPES, each once."""
    present = set(types)
    return tuple(kind.name.lower() for kind in DEQUANTIZED_TYPES if kind in present)


@dataclass(frozen=True, eq=False)
class Matrix:
    """`rows` x `cols` weights in GGUF blocks of `type`: borrowed bytes, usually a view of a memory-mapped file.

    data: uint8 [rows, row_bytes], C-contiguous, where row_bytes holds exactly `cols` elements.
    """

    type: GGMLQuantizationType
    data: U8

    @property
    def rows(self) -> int:
        return int(self.data.shape[0])

    @property
    def row_bytes(self) -> int:
        return int(self.data.shape[1])

    @property
    def cols(self) -> int:
        block, size = GGML_QUANT_SIZES[self.type]
        return self.row_bytes // size * block

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.cols

    @classmethod
    def from_float(cls, array: F32 | F16) -> Matrix:
        """An f32 or f16 matrix over (a contiguous copy of, if need be) a float array [rows, cols]."""
        kind = {np.dtype(np.float32): GGMLQuantizationType.F32, np.dtype(np.float16): GGMLQuantizationType.F16}[array.dtype]
        return cls(kind, np.ascontiguousarray(array).view(np.uint8))
