"""Weight types in NumPy: the readable definition that the C encoders of csrc/encode are compared with, byte for byte.

Here are the types without a search: f32, f16, bf16 (the upper half of f32, rounded to nearest even), q8_0, and as long as columns have
no importance q4_0, q4_1, q5_0 and q5_1, whose scales (and minimums) come straight from the extremes of 32 weights. search.py has the
others. Only finite input is defined. A weight too large for the type becomes infinity here; C refuses it.
"""

from __future__ import annotations

import numpy as np
from gguf import GGMLQuantizationType

from pymixtral.arrays import F32, U8

from . import search

BLOCK = 32


def encode(kind: GGMLQuantizationType, x: F32, importance: F32 | None = None) -> U8:
    """x: float32 [rows, cols], finite; cols a multiple of the type's block. importance: float32 [cols], what the squared error of each
    column counts; None: all the same. Returns uint8 [rows, row_bytes]."""
    rows = x.shape[0]
    if kind == GGMLQuantizationType.F32:
        return np.ascontiguousarray(x, "<f4").view(np.uint8).reshape(rows, -1)
    if kind == GGMLQuantizationType.BF16:
        bits = np.ascontiguousarray(x).view(np.uint32)
        upper: U8 = ((bits + (np.uint32(0x7FFF) + (bits >> 16 & 1))) >> 16).astype("<u2").view(np.uint8).reshape(rows, -1)
        return upper
    with np.errstate(over="ignore"):
        if kind == GGMLQuantizationType.F16:
            return np.ascontiguousarray(x.astype("<f2")).view(np.uint8).reshape(rows, -1)
        if kind == GGMLQuantizationType.Q8_0 or (kind in UNSEARCHED and (importance is None or not importance.any())):
            blocks: U8 = np.concatenate(UNSEARCHED[kind](np.ascontiguousarray(x).reshape(-1, BLOCK)), axis=1).reshape(rows, -1)
            return blocks
        return search.encode(kind, x, importance)


def _q8_0(blocks: F32) -> tuple[U8, ...]:
    """d = amax / 127; q = x * (1/d) to the nearest whole number, halves away from zero."""
    d = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    scaled = blocks * _inverse(d)
    whole = np.trunc(scaled)
    whole += np.where(np.abs(scaled - whole) >= 0.5, np.sign(scaled), np.float32(0))
    return _half(d), whole.astype(np.int8).view(np.uint8)


def _symmetric(blocks: F32, n: int) -> tuple[U8, U8]:
    """d = m / -n with m the (first) element of largest magnitude, sign kept; code = min(2n - 1, trunc(x * (1/d) + n + 0.5))."""
    largest = np.abs(blocks).argmax(axis=1)
    d = blocks[np.arange(len(blocks)), largest][:, None] / np.float32(-n)
    codes = np.minimum(np.trunc(blocks * _inverse(d) + np.float32(n + 0.5)), np.float32(2 * n - 1)).astype(np.uint8)
    return _half(d), codes


def _affine(blocks: F32, n: int) -> tuple[U8, U8, U8]:
    """d = (largest - m) / n with m the (first) smallest element; code = min(n, trunc((x - m) * (1/d) + 0.5))."""
    m = blocks[:, :1]
    for column in range(1, BLOCK):  # not min(): of 0 and -0 the first
        m = np.where(blocks[:, column : column + 1] < m, blocks[:, column : column + 1], m)
    d = (blocks.max(axis=1, keepdims=True) - m) / np.float32(n)
    codes = np.minimum(np.trunc((blocks - m) * _inverse(d) + np.float32(0.5)), np.float32(n)).astype(np.uint8)
    return _half(d), _half(m), codes


def _q4_0(blocks: F32) -> tuple[U8, ...]:
    d, codes = _symmetric(blocks, 8)
    return d, _nibbles(codes)


def _q4_1(blocks: F32) -> tuple[U8, ...]:
    d, m, codes = _affine(blocks, 15)
    return d, m, _nibbles(codes)


def _q5_0(blocks: F32) -> tuple[U8, ...]:
    d, codes = _symmetric(blocks, 16)
    return d, _fifth_bits(codes), _nibbles(codes)


def _q5_1(blocks: F32) -> tuple[U8, ...]:
    d, m, codes = _affine(blocks, 31)
    return d, m, _fifth_bits(codes), _nibbles(codes)


UNSEARCHED = {
    GGMLQuantizationType.Q8_0: _q8_0,
    GGMLQuantizationType.Q4_0: _q4_0,
    GGMLQuantizationType.Q4_1: _q4_1,
    GGMLQuantizationType.Q5_0: _q5_0,
    GGMLQuantizationType.Q5_1: _q5_1,
}


def _half(d: F32) -> U8:
    return d.astype("<f2").view(np.uint8)


def _nibbles(codes: U8) -> U8:
    packed: U8 = codes[:, :16] & np.uint8(15) | codes[:, 16:] << np.uint8(4)
    return packed


def _fifth_bits(codes: U8) -> U8:
    return np.packbits(codes >> 4, axis=1, bitorder="little")


def _inverse(d: F32) -> F32:
    """1/d, or 0 where that is not finite: such a scale is 0 in f16, so that the block is 0 whatever its codes."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse: F32 = np.float32(1) / d
    inverse[~np.isfinite(inverse)] = 0
    return inverse
