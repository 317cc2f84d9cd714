"""Weight formats in NumPy: the readable definition that the C encoders of csrc/encode are compared with, byte for byte.

A block of 32 weights shares one f16 scale d. q8_0 is d and 32 signed bytes, q4_0 is d and 16 bytes of two 4-bit codes (docs/numerics.md).
bf16 is the upper half of f32, rounded to nearest even. Only finite input is defined. A weight too large for the type becomes infinity
here; C refuses it.
"""

from __future__ import annotations

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

BLOCK = 32


def encode(kind: GGMLQuantizationType, x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """x: float32 [rows, cols], finite; returns uint8 [rows, row_bytes]. cols a multiple of 32 for q8_0 and q4_0."""
    rows = x.shape[0]
    if kind == GGMLQuantizationType.F32:
        return np.ascontiguousarray(x, "<f4").view(np.uint8).reshape(rows, -1)
    if kind == GGMLQuantizationType.BF16:
        bits = np.ascontiguousarray(x).view(np.uint32)
        return ((bits + (np.uint32(0x7FFF) + (bits >> 16 & 1))) >> 16).astype("<u2").view(np.uint8).reshape(rows, -1)
    with np.errstate(over="ignore"):
        if kind == GGMLQuantizationType.F16:
            return np.ascontiguousarray(x.astype("<f2")).view(np.uint8).reshape(rows, -1)
        blocks = np.ascontiguousarray(x).reshape(-1, BLOCK)
        d, codes = {GGMLQuantizationType.Q8_0: _encode_q8_0, GGMLQuantizationType.Q4_0: _encode_q4_0}[kind](blocks)
        return np.concatenate([d.astype("<f2").view(np.uint8), codes], axis=1).reshape(rows, -1)


def decode(kind: GGMLQuantizationType, data: NDArray[np.uint8]) -> NDArray[np.float32]:
    """data: uint8 [rows, row_bytes], contiguous; returns float32 [rows, cols]."""
    rows = data.shape[0]
    if kind == GGMLQuantizationType.F32:
        return data.view("<f4").astype(np.float32)
    if kind == GGMLQuantizationType.F16:
        return data.view("<f2").astype(np.float32)
    if kind == GGMLQuantizationType.BF16:
        return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
    blocks = data.reshape(-1, 34 if kind == GGMLQuantizationType.Q8_0 else 18)
    codes = blocks[:, 2:]
    if kind == GGMLQuantizationType.Q8_0:
        values = codes.view(np.int8)
    else:
        values = np.concatenate([codes & 15, codes >> 4], axis=1).view(np.int8) - np.int8(8)
    d = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
    return (d * values).reshape(rows, -1)


def _encode_q8_0(blocks: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """d = amax / 127; q = x * (1/d) to the nearest whole number, halves away from zero."""
    d = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    scaled = blocks * _inverse(d)
    whole = np.trunc(scaled)
    whole += np.where(np.abs(scaled - whole) >= 0.5, np.sign(scaled), np.float32(0))
    return d, whole.astype(np.int8).view(np.uint8)


def _encode_q4_0(blocks: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """d = m / -8 with m the (first) element of largest magnitude, sign kept; code = min(15, trunc(x * (1/d) + 8.5))."""
    largest = np.abs(blocks).argmax(axis=1)
    d = blocks[np.arange(len(blocks)), largest][:, None] / np.float32(-8)
    codes = np.minimum(np.trunc(blocks * _inverse(d) + np.float32(8.5)), np.float32(15)).astype(np.uint8)
    return d, codes[:, : BLOCK // 2] | (codes[:, BLOCK // 2 :] << 4)


def _inverse(d: NDArray[np.float32]) -> NDArray[np.float32]:
    """1/d, or 0 where that is not finite: such a scale is 0 in f16, so that the block is 0 whatever its codes."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse: NDArray[np.float32] = np.float32(1) / d
    inverse[~np.isfinite(inverse)] = 0
    return inverse
