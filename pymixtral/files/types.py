"""Types of weights, and a matrix of weights as a model file stores it.

WEIGHT_TYPES is the one table of what pymixtral does with each of GGUF's types; lists of types
elsewhere are made from it. docs/numerics.md says what the numbers in a block mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from pymixtral.arrays import F16, F32, U8

_Type = GGMLQuantizationType


def block_weights(kind: GGMLQuantizationType) -> int:
    """How many weights a block of one of GGUF's types has; 1 for a type without blocks."""
    return int(GGML_QUANT_SIZES[kind][0])


def block_bytes(kind: GGMLQuantizationType) -> int:
    """How many bytes a block of one of GGUF's types takes."""
    return int(GGML_QUANT_SIZES[kind][1])


def bits_per_weight(kind: GGMLQuantizationType) -> float:
    """How many bits a weight of one of GGUF's types takes, scales included."""
    return 8 * block_bytes(kind) / block_weights(kind)


def row_bytes(kind: GGMLQuantizationType, n_weights: int) -> int:
    """How many bytes weights take.

    Args:
        kind: any of GGUF's types.
        n_weights: a multiple of the weights of a block.

    Returns:
        The bytes of their blocks.
    """
    return n_weights // block_weights(kind) * block_bytes(kind)


def show_type(kind: GGMLQuantizationType) -> str:
    """A type as people write it: q4_k."""
    return kind.name.lower()


@dataclass(frozen=True)
class WeightType:
    """What pymixtral does with one of GGUF's types.

    Attributes:
        encoder: whether pymixtral.quantize can write it.
        f16_at: the bytes of a block at which an f16 number begins: its scale, and in some types a
            minimum.
    """

    encoder: bool
    f16_at: tuple[int, ...] = ()


WEIGHT_TYPES = {
    _Type.F32: WeightType(encoder=True),
    _Type.BF16: WeightType(encoder=True),
    _Type.F16: WeightType(encoder=True, f16_at=(0,)),
    _Type.Q8_0: WeightType(encoder=True, f16_at=(0,)),
    _Type.Q6_K: WeightType(encoder=True, f16_at=(208,)),
    _Type.Q5_1: WeightType(encoder=True, f16_at=(0, 2)),
    _Type.Q5_0: WeightType(encoder=True, f16_at=(0,)),
    _Type.Q5_K: WeightType(encoder=True, f16_at=(0, 2)),
    _Type.Q4_1: WeightType(encoder=True, f16_at=(0, 2)),
    _Type.IQ4_NL: WeightType(encoder=True, f16_at=(0,)),
    _Type.Q4_0: WeightType(encoder=True, f16_at=(0,)),
    _Type.Q4_K: WeightType(encoder=True, f16_at=(0, 2)),
    _Type.IQ4_XS: WeightType(encoder=True, f16_at=(0,)),
    _Type.IQ3_S: WeightType(encoder=True, f16_at=(0,)),
    _Type.Q3_K: WeightType(encoder=True, f16_at=(108,)),
    _Type.IQ3_XXS: WeightType(encoder=True, f16_at=(0,)),
    _Type.Q2_K: WeightType(encoder=True, f16_at=(80, 82)),
    _Type.IQ2_S: WeightType(encoder=True, f16_at=(0,)),
    _Type.IQ2_XS: WeightType(encoder=True, f16_at=(0,)),
    _Type.IQ2_XXS: WeightType(encoder=True, f16_at=(0,)),
    _Type.IQ1_S: WeightType(encoder=False, f16_at=(0,)),
    _Type.IQ1_M: WeightType(encoder=False),  # its f16 scale is in four pieces
    _Type.TQ1_0: WeightType(encoder=False, f16_at=(52,)),
    _Type.TQ2_0: WeightType(encoder=False, f16_at=(64,)),
    _Type.MXFP4: WeightType(encoder=False),  # its scale is the exponent of a power of two
}
"""The types that a model may have. Those with an encoder come first, from the largest to the
smallest; of bf16 and f16, which are as large, bf16 first, since published weights are bf16."""

MATRIX_TYPES = tuple(WEIGHT_TYPES)
"""All types that a matrix may have."""

ENCODED_TYPES = tuple(kind for kind, of in WEIGHT_TYPES.items() if of.encoder)
"""Those that pymixtral.quantize can write."""

FLOAT_TYPES = tuple(kind for kind in WEIGHT_TYPES if block_weights(kind) == 1)
"""Those whose weights are floating-point numbers, one by one, not in blocks."""


@dataclass(frozen=True, eq=False)
class Matrix:
    """Weights in GGUF blocks: borrowed bytes, usually a view of a memory-mapped file.

    Attributes:
        type: GGUF's type of the weights.
        data: uint8 [rows, row_bytes], C-contiguous, where row_bytes holds exactly `cols` weights.
    """

    type: GGMLQuantizationType
    data: U8

    @property
    def rows(self) -> int:
        """The number of rows."""
        return int(self.data.shape[0])

    @property
    def row_bytes(self) -> int:
        """The bytes of a row."""
        return int(self.data.shape[1])

    @property
    def cols(self) -> int:
        """The number of weights in a row."""
        return self.row_bytes // block_bytes(self.type) * block_weights(self.type)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.rows, self.cols

    @classmethod
    def from_float(cls, array: F32 | F16) -> Matrix:
        """A matrix of type f32 or f16.

        Args:
            array: float32 or float16 [rows, cols]; borrowed, or copied if it is not contiguous.

        Returns:
            The matrix.
        """
        kind = {np.dtype(np.float32): _Type.F32, np.dtype(np.float16): _Type.F16}[array.dtype]
        return cls(kind, np.ascontiguousarray(array).view(np.uint8))
