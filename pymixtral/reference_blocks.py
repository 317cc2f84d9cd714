"""The oracle's weight types: the blocks of docs/numerics.md, section Types, decoded into integers and scales."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from .errors import UnsupportedError
from .matrix import Matrix

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
U8 = NDArray[np.uint8]

FLOAT_TYPES = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)

TABLE = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int32)
"""iq4_nl's and iq4_xs's values."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """A matrix of [rows, n_blocks] blocks.

    d: float32 [rows, n_blocks]. q: int32 [rows, n_blocks, 32 or 256], offset or table applied.
    m: float32 [rows, n_blocks], the minimum of a block of 32 or dmin of one of 256; None: the type has none.
    sc, mins: int32 [rows, n_blocks, n_sub], the integer scales and minimums of the sub-blocks of a block of 256, else None.
    """

    d: F32
    q: I32
    m: F32 | None = None
    sc: I32 | None = None
    mins: I32 | None = None

    @property
    def size(self) -> int:
        """Elements of a block, and of the block of activations it is multiplied with."""
        return int(self.q.shape[2])


def f16(raw: U8, at: int) -> F32:
    """The f16 number at byte `at` of each block, widened: float32 [rows, n_blocks] of raw [rows, n_blocks, bytes]."""
    widened: F32 = np.ascontiguousarray(raw[..., at : at + 2]).view(np.dtype("<f2"))[..., 0].astype(np.float32)
    return widened


def _nibbles(packed: U8) -> I32:
    """int32 [..., 2n] of bytes [..., n]: the low nibbles, then the high ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1).astype(np.int32)


def _fifth_bits(packed: U8) -> I32:
    """int32 [..., 32] of bytes [..., 4]: bit i, little endian, is worth 16 for element i."""
    return np.unpackbits(packed, axis=-1, bitorder="little").astype(np.int32) << 4


DECODERS: dict[GGMLQuantizationType, Callable[[U8], Blocks]] = {
    GGMLQuantizationType.Q4_0: lambda raw: Blocks(f16(raw, 0), _nibbles(raw[..., 2:]) - 8),
    GGMLQuantizationType.Q4_1: lambda raw: Blocks(f16(raw, 0), _nibbles(raw[..., 4:]), f16(raw, 2)),
    GGMLQuantizationType.Q5_0: lambda raw: Blocks(f16(raw, 0), (_nibbles(raw[..., 6:]) | _fifth_bits(raw[..., 2:6])) - 16),
    GGMLQuantizationType.Q5_1: lambda raw: Blocks(f16(raw, 0), _nibbles(raw[..., 8:]) | _fifth_bits(raw[..., 4:8]), f16(raw, 2)),
    GGMLQuantizationType.Q8_0: lambda raw: Blocks(f16(raw, 0), raw[..., 2:].view(np.int8).astype(np.int32)),
    GGMLQuantizationType.IQ4_NL: lambda raw: Blocks(f16(raw, 0), TABLE[_nibbles(raw[..., 2:])]),
}
"""For each type in blocks, Blocks of the raw bytes uint8 [rows, n_blocks, block bytes]."""


def decode(w: Matrix) -> Blocks:
    """The blocks of a matrix in blocks. Raises UnsupportedError for a type that this project does not run."""
    if w.type not in DECODERS:
        known = ", ".join(kind.name.lower() for kind in (*FLOAT_TYPES, *DECODERS))
        raise UnsupportedError(f"expected a matrix of type {known}, found {w.type.name.lower()}: quantize the model to one of these")
    return DECODERS[w.type](w.data.reshape(w.rows, -1, GGML_QUANT_SIZES[w.type][1]))


def dequantize(w: Matrix) -> F32:
    """float32 [rows, cols], each written operation rounded. Raises UnsupportedError for a type that this project does not run."""
    if w.type == GGMLQuantizationType.BF16:
        return (w.data.view(np.dtype("<u2")).astype(np.uint32) << 16).view(np.float32)
    if w.type in FLOAT_TYPES:
        return w.data.view(np.dtype("<f4" if w.type == GGMLQuantizationType.F32 else "<f2")).astype(np.float32)
    blocks = decode(w)
    d: Any = blocks.d[..., None]
    if blocks.sc is not None:
        d = d * blocks.sc.astype(np.float32)
    n_sub = d.shape[2]
    y: F32 = d[..., None] * blocks.q.reshape(*blocks.d.shape, n_sub, -1).astype(np.float32)
    if blocks.m is not None:
        minimum = blocks.m[..., None]
        y = y + minimum[..., None] if blocks.mins is None else y - (minimum * blocks.mins.astype(np.float32))[..., None]
    return y.reshape(w.shape)
