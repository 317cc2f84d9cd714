"""Weight types in NumPy, readable: what csrc/encode is compared with, byte for byte.

Here are the types without a search: f32, f16, bf16 (the upper half of f32, rounded to nearest
even), q8_0, and as long as columns have no importance q4_0, q4_1, q5_0 and q5_1, whose scales (and
minimums) come straight from the extremes of 32 weights. search.py has the others.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from gguf import GGMLQuantizationType

from pymixtral.arrays import F32, U8

from . import search
from .packing import Blocks, pack

_BLOCK = 32


def encode(kind: GGMLQuantizationType, x: F32, importance: F32 | None = None) -> U8:
    """Encodes weights. Only finite input is defined.

    Args:
        kind: a type that pymixtral.quantize can write.
        x: float32 [rows, cols], cols a multiple of the type's block. A weight too large for the
            type becomes infinity here; C refuses it.
        importance: float32 [cols], what the squared error of each column counts; None: all the
            same.

    Returns:
        uint8 [rows, row_bytes].
    """
    rows = x.shape[0]
    if kind == GGMLQuantizationType.F32:
        return np.ascontiguousarray(x, "<f4").view(np.uint8).reshape(rows, -1)
    if kind == GGMLQuantizationType.BF16:
        bits = np.ascontiguousarray(x).view(np.uint32)
        rounded = bits + (np.uint32(0x7FFF) + (bits >> 16 & 1))
        upper: U8 = (rounded >> 16).astype("<u2").view(np.uint8).reshape(rows, -1)
        return upper
    unsearched = kind in UNSEARCHED and (importance is None or not importance.any())
    with np.errstate(over="ignore"):
        if kind == GGMLQuantizationType.F16:
            return np.ascontiguousarray(x.astype("<f2")).view(np.uint8).reshape(rows, -1)
        if kind == GGMLQuantizationType.Q8_0 or unsearched:
            blocks = UNSEARCHED[kind](np.ascontiguousarray(x).reshape(-1, _BLOCK))
            return pack(kind, blocks).reshape(rows, -1)
        return search.encode(kind, x, importance)


def _q8_0(blocks: F32) -> Blocks:
    """d = amax / 127; q = x * (1/d) to the nearest whole number, halves away from zero."""
    d = np.abs(blocks).max(axis=1) / np.float32(127)
    scaled = blocks * _inverse(d)
    whole = np.trunc(scaled)
    whole += np.where(np.abs(scaled - whole) >= 0.5, np.sign(scaled), np.float32(0))
    return Blocks(d, whole.astype(np.int8).view(np.uint8))


def _symmetric(blocks: F32, n: int) -> Blocks:
    """d = m / -n with m the (first) element of largest magnitude, sign kept.

    code = min(2n - 1, trunc(x * (1/d) + n + 0.5)).
    """
    largest = np.abs(blocks).argmax(axis=1)
    d = blocks[np.arange(len(blocks)), largest] / np.float32(-n)
    codes = np.minimum(np.trunc(blocks * _inverse(d) + np.float32(n + 0.5)), np.float32(2 * n - 1))
    return Blocks(d, codes.astype(np.uint8))


def _affine(blocks: F32, n: int) -> Blocks:
    """d = (largest - m) / n with m the (first) smallest element.

    code = min(n, trunc((x - m) * (1/d) + 0.5)).
    """
    m = blocks[:, 0]
    for column in range(1, _BLOCK):  # not min(): of 0 and -0 the first
        m = np.where(blocks[:, column] < m, blocks[:, column], m)
    d = np.abs(blocks.max(axis=1) - m) / np.float32(n)  # max() may be -0, and so the range of zeros
    codes = np.minimum(np.trunc((blocks - m[:, None]) * _inverse(d) + np.float32(0.5)), np.float32(n))
    return Blocks(d, codes.astype(np.uint8), -m)


UNSEARCHED: dict[GGMLQuantizationType, Callable[[F32], Blocks]] = {
    GGMLQuantizationType.Q8_0: _q8_0,
    GGMLQuantizationType.Q4_0: partial(_symmetric, n=8),
    GGMLQuantizationType.Q4_1: partial(_affine, n=15),
    GGMLQuantizationType.Q5_0: partial(_symmetric, n=16),
    GGMLQuantizationType.Q5_1: partial(_affine, n=31),
}
"""Types in blocks whose scales need no search, by what makes blocks of float32 [blocks, 32]."""


def _inverse(d: F32) -> F32:
    """1/d as a column, 0 where it is not finite.

    Such a scale is 0 in f16, so that the block is 0 whatever its codes.
    """
    with np.errstate(divide="ignore", over="ignore"):
        inverse: F32 = np.float32(1) / d[:, None]
    inverse[~np.isfinite(inverse)] = 0
    return inverse
