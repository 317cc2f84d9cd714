"""Blocks of weights, from the numbers that represent them to the bytes of csrc/blocks.h."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType

from pymixtral.arrays import F32, I32, U8

_Type = GGMLQuantizationType


@dataclass
class Blocks:
    """What represents blocks of weights.

    Attributes:
        d: float32 [blocks], the scales, exact in f16.
        codes: uint8 [blocks, elements], the integers of the weights, from 0; of q8_0 as int8; of a
            lattice empty.
        m: float32 [blocks], what is subtracted, in blocks of 256 the scales of `minimums`, exact in
            f16; empty for a type that has none.
        scales: int32 [blocks, sub-blocks], of blocks of 256, else empty.
        minimums: int32 [blocks, sub-blocks], of blocks of 256 of a type that has them, else empty.
        entries: int32 [blocks, groups], of a lattice, else empty.
        signs: uint8 [blocks, elements / 8], of a lattice, else empty: bit i is set if weight i of
            the 8 is negative.
    """

    d: F32
    codes: U8
    m: F32 = field(default_factory=lambda: np.zeros(0, np.float32))
    scales: I32 = field(default_factory=lambda: np.zeros((0, 0), np.int32))
    minimums: I32 = field(default_factory=lambda: np.zeros((0, 0), np.int32))
    entries: I32 = field(default_factory=lambda: np.zeros((0, 0), np.int32))
    signs: U8 = field(default_factory=lambda: np.zeros((0, 0), np.uint8))


def pack(kind: GGMLQuantizationType, blocks: Blocks) -> U8:
    """The bytes of blocks.

    Args:
        kind: a type in blocks that pymixtral.quantize can write.
        blocks: what represents them.

    Returns:
        uint8 [blocks, block bytes].
    """
    return np.concatenate(_PARTS[kind](blocks), axis=1)


def _half(values: F32) -> U8:
    return np.ascontiguousarray(values.astype("<f2")).view(np.uint8).reshape(-1, 2)


def _fields(codes: Any, group: int, bits: int) -> U8:
    """Integers of `bits` bits, packed.

    Of each 8 / bits groups of `group` values, the first is in the lowest bits of `group` bytes, the
    next one above it, and so on.
    """
    values = codes.reshape(len(codes), -1, 8 // bits, group).astype(np.uint8) & np.uint8((1 << bits) - 1)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    packed: U8 = np.bitwise_or.reduce(values << shifts, axis=2).reshape(len(codes), -1)
    return packed


def _fifth_bits(codes: U8) -> U8:
    return np.packbits(codes >> 4, axis=1, bitorder="little")


def _six_bits(f: Blocks) -> U8:
    """The scales and minimums of q4_k and q5_k: six bits each of eight and eight, in 12 bytes."""
    s, m = f.scales, f.minimums
    low, high = slice(None, 4), slice(4, None)
    parts = [
        s[:, low] | s[:, high] >> 4 << 6,
        m[:, low] | m[:, high] >> 4 << 6,
        s[:, high] & 15 | (m[:, high] & 15) << 4,
    ]
    packed: U8 = np.concatenate(parts, axis=1).astype(np.uint8)
    return packed


def _q2_k(f: Blocks) -> list[U8]:
    scales = np.stack([f.scales, f.minimums], axis=1)
    return [_fields(scales, 16, 4), _fields(f.codes, 32, 2), _half(f.d), _half(f.m)]


def _q3_k(f: Blocks) -> list[U8]:
    scales = f.scales + 32
    low = [_fields(f.codes >> 2, 32, 1), _fields(f.codes, 32, 2)]
    return [*low, _fields(scales, 8, 4), _fields(scales >> 4, 4, 2), _half(f.d)]


def _q5_k(f: Blocks) -> list[U8]:
    return [_half(f.d), _half(f.m), _six_bits(f), _fields(f.codes >> 4, 32, 1), _fields(f.codes, 32, 4)]


def _q6_k(f: Blocks) -> list[U8]:
    scales = f.scales.astype(np.int8).view(np.uint8)
    return [_fields(f.codes, 64, 4), _fields(f.codes >> 4, 32, 2), scales, _half(f.d)]


def _iq4_xs(f: Blocks) -> list[U8]:
    scales = f.scales + 32
    return [_half(f.d), _fields(scales >> 4, 1, 2), _fields(scales, 1, 4), _fields(f.codes, 16, 4)]


def _low_bytes(f: Blocks) -> U8:
    low: U8 = (f.entries & 255).astype(np.uint8)
    return low


def _words(words: Any, kind: str) -> U8:
    """Integers [blocks, n] as little-endian bytes."""
    packed: U8 = np.ascontiguousarray(words.astype(kind)).view(np.uint8)
    return packed


def _signs_and_scales(f: Blocks) -> U8:
    """Of each 32 a word of four times 7 signs and a scale of 4 bits."""
    signs = f.signs.reshape(len(f.signs), 8, 4).astype(np.uint32) & 127
    words = np.bitwise_or.reduce(signs << np.arange(0, 28, 7, dtype=np.uint32), axis=2)
    return _words(words | f.scales.astype(np.uint32) << 28, "<u4")


def _iq2_xxs(f: Blocks) -> list[U8]:
    parts = [part.reshape(-1, 8, 4) for part in (_low_bytes(f), _signs_and_scales(f))]
    return [_half(f.d), np.concatenate(parts, axis=2).reshape(-1, 64)]


def _iq2_xs(f: Blocks) -> list[U8]:
    words = f.entries | (f.signs & 127).astype(np.int32) << 9
    return [_half(f.d), _words(words, "<u2"), _fields(f.scales, 1, 4)]


def _iq2_s(f: Blocks) -> list[U8]:
    return [_half(f.d), _low_bytes(f), f.signs, _fields(f.entries >> 8, 1, 2), _fields(f.scales, 1, 4)]


def _iq3_xxs(f: Blocks) -> list[U8]:
    return [_half(f.d), _low_bytes(f), _signs_and_scales(f)]


def _iq3_s(f: Blocks) -> list[U8]:
    return [_half(f.d), _low_bytes(f), _fields(f.entries >> 8, 1, 1), f.signs, _fields(f.scales, 1, 4)]


_PARTS: dict[GGMLQuantizationType, Callable[[Blocks], list[U8]]] = {
    _Type.Q8_0: lambda f: [_half(f.d), f.codes],
    _Type.Q4_0: lambda f: [_half(f.d), _fields(f.codes, 16, 4)],
    _Type.Q4_1: lambda f: [_half(f.d), _half(-f.m), _fields(f.codes, 16, 4)],
    _Type.Q5_0: lambda f: [_half(f.d), _fifth_bits(f.codes), _fields(f.codes, 16, 4)],
    _Type.Q5_1: lambda f: [_half(f.d), _half(-f.m), _fifth_bits(f.codes), _fields(f.codes, 16, 4)],
    _Type.IQ4_NL: lambda f: [_half(f.d), _fields(f.codes, 16, 4)],
    _Type.Q2_K: _q2_k,
    _Type.Q3_K: _q3_k,
    _Type.Q4_K: lambda f: [_half(f.d), _half(f.m), _six_bits(f), _fields(f.codes, 32, 4)],
    _Type.Q5_K: _q5_k,
    _Type.Q6_K: _q6_k,
    _Type.IQ4_XS: _iq4_xs,
    _Type.IQ2_XXS: _iq2_xxs,
    _Type.IQ2_XS: _iq2_xs,
    _Type.IQ2_S: _iq2_s,
    _Type.IQ3_XXS: _iq3_xxs,
    _Type.IQ3_S: _iq3_s,
}
