"""The oracle's weight types: blocks decoded into integers and scales.

Format: the section Types of docs/numerics.md, and ggml's block structs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, quants

from pymixtral.arrays import F32, I32, U8
from pymixtral.errors import UnsupportedError
from pymixtral.files.types import FLOAT_TYPES, MATRIX_TYPES, Matrix, block_bytes, show_type

TABLE = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int32)
"""The 16 values of iq4_nl and iq4_xs, from ggml."""

FOURS = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int32)
"""The 16 values of mxfp4, twice those of the 4-bit floats of the OCP Microscaling formats."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """A matrix of [rows, n_blocks] blocks, each of 32 or 256 elements.

    Attributes:
        d: scale of each block, float32 [rows, n_blocks].
        q: integer elements, int32 [rows, n_blocks, 32 or 256], with the type's offset or table
            applied.
        m: minimum of each block of 32, or dmin of each block of 256, float32 [rows, n_blocks]; None
            if the type has none.
        sc: integer scales of the sub-blocks of a block of 256, int32 [rows, n_blocks, n_sub]; None
            if the type has none.
        mins: integer minimums of the sub-blocks, int32 [rows, n_blocks, n_sub]; None if the type
            has none.
    """

    d: F32
    q: I32
    m: F32 | None = None
    sc: I32 | None = None
    mins: I32 | None = None

    @property
    def size(self) -> int:
        """Elements of a block, and of the block of activations that it is multiplied with."""
        return int(self.q.shape[2])


def f16(raw: U8, at: int) -> F32:
    """Read a float16 number of each block.

    Args:
        raw: blocks, uint8 [rows, n_blocks, bytes].
        at: the byte of a block where the number begins.

    Returns:
        float32 [rows, n_blocks].
    """
    widened: F32 = np.ascontiguousarray(raw[..., at : at + 2]).view(np.dtype("<f2"))[..., 0].astype(np.float32)
    return widened


def power(raw: U8) -> F32:
    """The powers of two 2^(e - 128) of bytes e, float32 of the same shape; two are subnormal."""
    powers: F32 = np.ldexp(np.float32(1), raw.astype(np.int32) - 128)
    return powers


def _nibbles(packed: U8) -> I32:
    """int32 [..., 2n] of bytes [..., n]: the low nibbles, then the high ones."""
    nibbles: I32 = np.concatenate([packed & 15, packed >> 4], axis=-1).astype(np.int32)
    return nibbles


def _fifth_bits(packed: U8) -> I32:
    """int32 [..., 32] of bytes [..., 4]: 16 for element i where bit i, little endian, is set."""
    return np.unpackbits(packed, axis=-1, bitorder="little").astype(np.int32) << 4


def _fields(packed: U8, group: int, bits: int) -> I32:
    """int32 [..., n * 8 / bits] of bytes [..., n].

    They are the lowest `bits` bits of each byte of a group, then the next ones, up to the highest.
    """
    groups = packed.reshape(*packed.shape[:-1], -1, 1, group)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return (groups >> shifts & (1 << bits) - 1).reshape(*packed.shape[:-1], -1).astype(np.int32)


def _six_bits(packed: U8) -> tuple[I32, I32]:
    """The 8 scales and the 8 minimums of q4_k and q5_k, both int32 [..., 8], of bytes [..., 12]."""
    low, high = packed[..., :8].astype(np.int32), packed[..., 8:].astype(np.int32)
    scales = np.concatenate([low[..., :4] & 63, high & 15 | low[..., :4] >> 6 << 4], axis=-1)
    minimums = np.concatenate([low[..., 4:] & 63, high >> 4 | low[..., 4:] >> 6 << 4], axis=-1)
    return scales, minimums


def _q2_k(raw: U8) -> Blocks:
    """Scales and minimums (16 bytes), 2 bits of each element (64), d, dmin."""
    scales = raw[..., :16].astype(np.int32)
    return Blocks(f16(raw, 80), _fields(raw[..., 16:80], 32, 2), f16(raw, 82), scales & 15, scales >> 4)


def _q3_k(raw: U8) -> Blocks:
    """Third bits (32 bytes), 2 bits (64), scales (12), d."""
    q = _fields(raw[..., 32:96], 32, 2) | _fields(raw[..., :32], 32, 1) << 2
    scales = _fields(raw[..., 96:104], 8, 4) | _fields(raw[..., 104:108], 4, 2) << 4
    return Blocks(f16(raw, 108), q - 4, sc=scales - 32)


def _q4_k(raw: U8) -> Blocks:
    """d, dmin, scales and minimums (12 bytes), 4 bits of each element (128)."""
    return Blocks(f16(raw, 0), _fields(raw[..., 16:], 32, 4), f16(raw, 2), *_six_bits(raw[..., 4:16]))


def _q5_k(raw: U8) -> Blocks:
    """d, dmin, scales and minimums (12 bytes), fifth bits (32), 4 bits (128)."""
    q = _fields(raw[..., 48:], 32, 4) | _fields(raw[..., 16:48], 32, 1) << 4
    return Blocks(f16(raw, 0), q, f16(raw, 2), *_six_bits(raw[..., 4:16]))


def _q6_k(raw: U8) -> Blocks:
    """4 bits of each element (128 bytes), the 2 bits above (64), scales (16), d."""
    q = _fields(raw[..., :128], 64, 4) | _fields(raw[..., 128:192], 32, 2) << 4
    return Blocks(f16(raw, 208), q - 32, sc=raw[..., 192:208].view(np.int8).astype(np.int32))


def _iq4_xs(raw: U8) -> Blocks:
    """d, high bits of the scales (2 bytes), low bits (4), 4 bits of each element (128)."""
    scales = _fields(raw[..., 4:8], 1, 4) | _fields(raw[..., 2:4], 1, 2) << 4
    return Blocks(f16(raw, 0), TABLE[_fields(raw[..., 8:], 16, 4)], sc=scales - 32)


_LATTICE_VALUES = {
    "IQ1": np.array([-8, 0, 8, 0], np.int32),
    "IQ2": np.array([8, 25, 43, 0], np.int32),
    "IQ3_XXS": np.array([4, 12, 20, 28, 36, 44, 52, 62], np.int32),
    "IQ3_S": np.arange(1, 16, 2, dtype=np.int32),
}
"""What the codes of the tables of gguf stand for."""


def _lattice(kind: GGMLQuantizationType) -> I32:
    """The table of an IQ type: int32 [entries, 8], of IQ3 [entries, 4]. That of both IQ1 is IQ1_S's."""
    codes = np.frombuffer(bytes.fromhex(getattr(quants, kind.name).grid_hex.decode()), "<u2")
    name, bits, mask = (kind.name, 4, 7) if kind.name.startswith("IQ3") else (kind.name[:3], 2, 3)
    entries: I32 = _LATTICE_VALUES[name][codes[:, None] >> np.arange(0, 16, bits) & mask]
    return entries


def _even(seven: I32) -> U8:
    """Bytes of seven signs, and an eighth that makes their number even."""
    low = np.unpackbits(seven[..., None].astype(np.uint8), axis=-1, bitorder="little")[..., :7]
    signs: U8 = (seven | (low.sum(axis=-1, dtype=np.int32) & 1) << 7).astype(np.uint8)
    return signs


def _entries(kind: GGMLQuantizationType, index: I32, signs: U8, d: F32, scales: I32) -> Blocks:
    """Blocks of a table's entries.

    Args:
        kind: the type.
        index: of the entries, int32 [..., n].
        signs: of each 8 elements, uint8 [..., 32].
        d: scale of each block, float32 [...].
        scales: s of each sub-block, which is multiplied with 2 * s + 1, int32 [..., n_sub].
    """
    magnitudes = _lattice(kind)[index].reshape(*signs.shape[:-1], 256)
    negative = np.unpackbits(signs, axis=-1, bitorder="little").astype(np.int32)
    return Blocks(d, magnitudes * (1 - 2 * negative), sc=2 * scales + 1)


def _words(raw: U8) -> tuple[U8, I32]:
    """The signs [..., 32] and scales [..., 8] of words [..., 8 * 4 bytes]."""
    words = np.ascontiguousarray(raw).view(np.dtype("<u4"))
    sevens = (words[..., None] >> np.arange(0, 28, 7, dtype=np.uint32) & 127).astype(np.int32)
    return _even(sevens.reshape(*words.shape[:-1], 32)), (words >> 28).astype(np.int32)


def _shifted(index: I32, down: I32, d: F32, scales: I32) -> Blocks:
    """Blocks of IQ1: entries whose elements are shifted by an eighth.

    Args:
        index: of the entries, int32 [..., 32].
        down: 1 where they are shifted down, else 0, int32 [..., 32].
        d: scale of each block, float32 [...].
        scales: s of each sub-block, which is multiplied with 2 * s + 1, int32 [..., n_sub].
    """
    q = _lattice(GGMLQuantizationType.IQ1_S)[index] + (1 - 2 * down)[..., None]
    return Blocks(d / np.float32(8), q.reshape(*d.shape, 256), sc=2 * scales + 1)


def _iq1_s(raw: U8) -> Blocks:
    """d, low bits of the entries (32 bytes), of each 32 elements 16 bits: high bits of four entries, a
    scale, the direction of the shift.
    """
    words = np.ascontiguousarray(raw[..., 34:]).view(np.dtype("<u2")).astype(np.int32)
    high = (words[..., None] >> np.arange(0, 12, 3) & 7).reshape(*raw.shape[:-1], 32)
    index = raw[..., 2:34].astype(np.int32) | high << 8
    return _shifted(index, (words >> 15).repeat(4, axis=-1), f16(raw, 0), words >> 12 & 7)


def _iq1_m(raw: U8) -> Blocks:
    """Low bits of the entries (32 bytes), of each 8 elements 4 bits: high bits of the entry, and the
    direction of the shift (16 bytes); of each 64 elements 16 bits: four scales, and four of d's bits.
    """
    nibbles = _fields(raw[..., 32:48], 1, 4)
    words = np.ascontiguousarray(raw[..., 48:]).view(np.dtype("<u2")).astype(np.int32)
    scales = (words[..., None] >> np.arange(0, 12, 3) & 7).reshape(*raw.shape[:-1], 16)
    bits = (words >> 12 << np.arange(0, 16, 4)).sum(axis=-1, dtype=np.int32)
    d = bits.astype(np.uint16).view(np.float16).astype(np.float32)
    return _shifted(raw[..., :32].astype(np.int32) | (nibbles & 7) << 8, nibbles >> 3, d, scales)


def _iq2_xxs(raw: U8) -> Blocks:
    """d, of each 32 elements four entries and a word."""
    parts = raw[..., 2:].reshape(*raw.shape[:-1], 8, 8)
    signs, scales = _words(parts[..., 4:].reshape(*raw.shape[:-1], 32))
    index = parts[..., :4].reshape(*raw.shape[:-1], 32).astype(np.int32)
    return _entries(GGMLQuantizationType.IQ2_XXS, index, signs, f16(raw, 0) / np.float32(8), scales)


def _iq2_xs(raw: U8) -> Blocks:
    """d, of each 8 elements an entry and 7 signs (64 bytes), scales (8)."""
    q = np.ascontiguousarray(raw[..., 2:66]).view(np.dtype("<u2")).astype(np.int32)
    d, scales = f16(raw, 0) / np.float32(8), _fields(raw[..., 66:], 1, 4)
    return _entries(GGMLQuantizationType.IQ2_XS, q & 511, _even(q >> 9), d, scales)


def _iq2_s(raw: U8) -> Blocks:
    """d, low bits of the entries (32 bytes), signs (32), high bits of the entries (8), scales (8)."""
    index = raw[..., 2:34].astype(np.int32) | _fields(raw[..., 66:74], 1, 2) << 8
    d, scales = f16(raw, 0) / np.float32(8), _fields(raw[..., 74:], 1, 4)
    return _entries(GGMLQuantizationType.IQ2_S, index, raw[..., 34:66], d, scales)


def _iq3_xxs(raw: U8) -> Blocks:
    """d, entries (64 bytes), a word of each 32 elements."""
    d, (signs, scales) = f16(raw, 0) / np.float32(4), _words(raw[..., 66:])
    return _entries(GGMLQuantizationType.IQ3_XXS, raw[..., 2:66].astype(np.int32), signs, d, scales)


def _iq3_s(raw: U8) -> Blocks:
    """d, low bits of the entries (64 bytes), their high bits (8), signs (32), scales (4)."""
    index = raw[..., 2:66].astype(np.int32) | _fields(raw[..., 66:74], 1, 1) << 8
    return _entries(GGMLQuantizationType.IQ3_S, index, raw[..., 74:106], f16(raw, 0), _fields(raw[..., 106:], 1, 4))


def _digits(packed: U8, n: int) -> I32:
    """int32 [..., n * m] of bytes [..., m]: the first digit of each in base 3, then the second ones.

    A byte b has the n digits of floor(3^n * b / 256); b * 3 mod 256 has them from the second one on.
    """
    moved = packed[..., None, :] * np.array([1, 3, 9, 27, 81], np.uint8)[:n, None]
    return (moved.astype(np.int32) * 3 >> 8).reshape(*packed.shape[:-1], -1)


def _tq1_0(raw: U8) -> Blocks:
    """Five digits of base 3 a byte (32 bytes, then 16), four a byte (4 bytes), d."""
    digits = [_digits(raw[..., :32], 5), _digits(raw[..., 32:48], 5), _digits(raw[..., 48:52], 4)]
    return Blocks(f16(raw, 52), np.concatenate(digits, axis=-1) - 1)


DECODERS: dict[GGMLQuantizationType, Callable[[U8], Blocks]] = {
    GGMLQuantizationType.Q4_0: lambda raw: Blocks(f16(raw, 0), _nibbles(raw[..., 2:]) - 8),
    GGMLQuantizationType.Q4_1: lambda raw: Blocks(f16(raw, 0), _nibbles(raw[..., 4:]), f16(raw, 2)),
    GGMLQuantizationType.Q5_0: lambda raw: Blocks(
        f16(raw, 0), (_nibbles(raw[..., 6:]) | _fifth_bits(raw[..., 2:6])) - 16
    ),
    GGMLQuantizationType.Q5_1: lambda raw: Blocks(
        f16(raw, 0), _nibbles(raw[..., 8:]) | _fifth_bits(raw[..., 4:8]), f16(raw, 2)
    ),
    GGMLQuantizationType.Q8_0: lambda raw: Blocks(f16(raw, 0), raw[..., 2:].view(np.int8).astype(np.int32)),
    GGMLQuantizationType.IQ4_NL: lambda raw: Blocks(f16(raw, 0), TABLE[_nibbles(raw[..., 2:])]),
    GGMLQuantizationType.MXFP4: lambda raw: Blocks(power(raw[..., 0]), FOURS[_nibbles(raw[..., 1:])]),
    GGMLQuantizationType.Q2_K: _q2_k,
    GGMLQuantizationType.Q3_K: _q3_k,
    GGMLQuantizationType.Q4_K: _q4_k,
    GGMLQuantizationType.Q5_K: _q5_k,
    GGMLQuantizationType.Q6_K: _q6_k,
    GGMLQuantizationType.IQ1_S: _iq1_s,
    GGMLQuantizationType.IQ1_M: _iq1_m,
    GGMLQuantizationType.IQ2_XXS: _iq2_xxs,
    GGMLQuantizationType.IQ2_XS: _iq2_xs,
    GGMLQuantizationType.IQ2_S: _iq2_s,
    GGMLQuantizationType.IQ3_XXS: _iq3_xxs,
    GGMLQuantizationType.IQ3_S: _iq3_s,
    GGMLQuantizationType.IQ4_XS: _iq4_xs,
    GGMLQuantizationType.TQ1_0: _tq1_0,
    GGMLQuantizationType.TQ2_0: lambda raw: Blocks(f16(raw, 64), _fields(raw[..., :64], 32, 2) - 1),
}
"""For each type in blocks, from the raw bytes, uint8 [rows, n_blocks, block bytes], to Blocks."""


def decode(w: Matrix) -> Blocks:
    """Decode a matrix of a type in blocks.

    Args:
        w: the matrix.

    Returns:
        Its blocks.

    Raises:
        UnsupportedError: for a type that this project does not run.
    """
    if w.type not in DECODERS:
        known = ", ".join(map(show_type, MATRIX_TYPES))
        raise UnsupportedError(
            f"expected a matrix of type {known}, found {show_type(w.type)}: quantize the model to one of these"
        )
    return DECODERS[w.type](w.data.reshape(w.rows, -1, block_bytes(w.type)))


def dequantize(w: Matrix) -> F32:
    """Widen or dequantize a matrix, rounding after each operation that docs/numerics.md writes.

    Args:
        w: the matrix.

    Returns:
        float32 [rows, cols].

    Raises:
        UnsupportedError: for a type that this project does not run.
    """
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
