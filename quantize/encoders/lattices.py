"""Weight types whose codes are entries of a lattice: what the search asks of each sub-block.

A lattice is a table of vectors of 4 or 8 magnitudes, its entries, which are part of GGUF's format.
Weights are cut into groups of as many: a group is an entry times the scale of its sub-block, and a
sign for each weight. In a type with even signs, of each 8 weights an even number is negative.

A group's magnitudes, over the scale, are first rounded to the nearest point of all points that its
values make. Entries that are near to a point are known beforehand, NEIGHBOURS of each. Of them the
group takes the one of least squared error, weighted, against the weights themselves. The nearest of
all entries would lower the error by less than 0.3%, with uneven importance by less than 2%.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from gguf import GGMLQuantizationType, quants

from pymixtral.arrays import F32, I32, U8

NEIGHBOURS = 16
"""Entries that are tried for each point. With 8 errors are up to 1.4% larger, with importance 2.5%."""


@dataclass(frozen=True)
class Lattice:
    """The codes of a type.

    Attributes:
        type: the type.
        group: weights that an entry stands for.
        values: the magnitudes in an entry, in units, ascending.
        unit: what a unit is, over the scale: a power of two.
        even: whether of each 8 weights an even number is negative.
    """

    type: GGMLQuantizationType
    group: int
    values: tuple[int, ...]
    unit: float
    even: bool

    @cached_property
    def entries(self) -> I32:
        """int32 [entries, group]: values in units."""
        table = np.frombuffer(bytes.fromhex(getattr(quants, self.type.name).grid_hex.decode()), "<u2")
        bits = 16 // self.group
        levels = table[:, None] >> (bits * np.arange(self.group)) & ((1 << bits) - 1)
        entries: I32 = np.array(self.values, np.int32)[levels]
        return entries

    @cached_property
    def neighbours(self) -> I32:
        """int32 [points, NEIGHBOURS]: the entries nearest to each point, of two the first one first."""
        n = len(self.values)
        levels = np.indices((n,) * self.group).reshape(self.group, -1).T
        points = np.array(self.values, np.float64)[levels]  # all numbers are whole, and exact
        squares = [np.square(a).sum(axis=1) for a in (points, self.entries)]
        found: I32 = np.empty((len(points), NEIGHBOURS), np.int32)
        for part in np.array_split(np.arange(len(points)), 16):
            distances = squares[0][part, None] + squares[1] - 2 * (points[part] @ self.entries.T.astype(np.float64))
            found[part] = np.argsort(distances, axis=1, kind="stable")[:, :NEIGHBOURS]
        return found

    def magnitudes(self, x: F32, w: F32) -> tuple[F32, U8]:
        """Weights without their signs.

        Where an odd number of 8 would be negative, the sign of one is wrong, and its magnitude
        negative: that of least w * |x| * (|x| + the mean of the 8 |x|), the first of several.

        Args:
            x: float32 [elements, sub-blocks].
            w: the same shape, what the squared error of each counts.

        Returns:
            float32 [elements, sub-blocks]; and uint8 [elements / 8, sub-blocks], the signs: bit i
            is set if weight i of the 8 is negative.
        """
        eights: F32 = np.abs(x).reshape(-1, 8, x.shape[1])
        signs = np.packbits(np.signbit(x).reshape(eights.shape), axis=1, bitorder="little")[:, 0]
        if self.even:
            total = np.zeros_like(eights[:, 0])
            for i in range(8):
                total = total + eights[:, i]
            cost = w.reshape(eights.shape) * eights * (eights + total[:, None] * np.float32(0.125))
            least = cost.argmin(axis=1)
            odd = np.bitwise_xor.reduce(signs[:, None] >> np.arange(8, dtype=np.uint8)[:, None] & 1, axis=1)
            signs ^= odd << least.astype(np.uint8)
            at = np.arange(8)[:, None] == least[:, None]
            eights = np.where(at & (odd[:, None] == 1), -eights, eights)
        return eights.reshape(x.shape), signs

    def nearest(self, x: F32, w: F32, inverse: F32) -> tuple[I32, F32, F32]:
        """The groups' entries at a scale.

        Args:
            x: magnitudes, float32 [elements, sub-blocks].
            w: the same shape, what the squared error of each counts.
            inverse: float32 [sub-blocks], of the scale.

        Returns:
            int32 [groups, sub-blocks], the entries; and float32 [sub-blocks], the sums of w*q*q and
            of w*q*x, q being what they stand for at a scale of 1.
        """
        groups = (-1, self.group, x.shape[1])
        near = self.neighbours[self._points((x * inverse).reshape(groups))]  # [groups, sub-blocks, neighbours]
        q = self.entries[near].astype(np.float32)
        unit = np.float32(self.unit)
        twice = (inverse + inverse) * (np.float32(1) / unit)
        twice = np.where(np.isfinite(twice), twice, np.float32(0))
        qq, xq = np.zeros((2, *near.shape), np.float32)
        for i in range(self.group):
            wi, xi = (a.reshape(groups)[:, i, :, None] for a in (w, x))
            qq = qq + wi * (q[..., i] * q[..., i])
            xq = xq + (wi * xi) * q[..., i]
        best = _lowest(qq - twice[:, None] * xq)[..., None]
        entries, qq, xq = (np.take_along_axis(a, best, axis=2)[..., 0] for a in (near, qq, xq))
        total_qq, total_xq = np.zeros((2, x.shape[1]), np.float32)
        for group_qq, group_xq in zip(qq, xq, strict=True):
            total_qq, total_xq = total_qq + group_qq, total_xq + group_xq
        return entries, total_qq * (unit * unit), total_xq * unit

    def values_of(self, entries: I32) -> F32:
        """What entries stand for, float32 [elements, sub-blocks], at a scale of 1."""
        values: F32 = self.entries[entries].astype(np.float32) * np.float32(self.unit)
        return np.ascontiguousarray(values.transpose(0, 2, 1)).reshape(-1, entries.shape[1])

    def _points(self, v: F32) -> I32:
        """The number of the point that each group is rounded to: v float32 [groups, group, sub-blocks]."""
        least, most = (self.values[i] * self.unit for i in (0, -1))
        levels = len(self.values) - 1
        per_step = np.float32(0.25 if levels == 7 else levels / (most - least))
        magic = np.float32(3 << 22)
        rounded = ((v - np.float32(least)) * per_step + magic) - magic
        codes = np.minimum(np.maximum(rounded, np.float32(0)), np.float32(levels)).astype(np.int32)
        point: I32 = np.zeros_like(codes[:, 0])
        for i in range(self.group):
            point = point * len(self.values) + codes[:, i]
        return point


def _lowest(errors: F32) -> I32:
    """The first of the lowest errors of the last axis, which differ from others above the last 4 bits."""
    bits = errors.view(np.int32)
    ordered = bits ^ (bits >> 31 & 0x7FFFFFFF)
    keys = ordered & ~(NEIGHBOURS - 1) | np.arange(NEIGHBOURS, dtype=np.int32)
    lowest: I32 = keys.min(axis=-1) & (NEIGHBOURS - 1)
    return lowest


_KINDS = GGMLQuantizationType
LATTICES = {
    _KINDS.IQ2_XXS: Lattice(_KINDS.IQ2_XXS, 8, (8, 25, 43), 0.25, even=True),
    _KINDS.IQ2_XS: Lattice(_KINDS.IQ2_XS, 8, (8, 25, 43), 0.25, even=True),
    _KINDS.IQ2_S: Lattice(_KINDS.IQ2_S, 8, (8, 25, 43), 0.25, even=False),
    _KINDS.IQ3_XXS: Lattice(_KINDS.IQ3_XXS, 4, (4, 12, 20, 28, 36, 44, 52, 62), 0.5, even=True),
    _KINDS.IQ3_S: Lattice(_KINDS.IQ3_S, 4, (1, 3, 5, 7, 9, 11, 13, 15), 2.0, even=False),
}
"""By type: a weight is d * (0.5 + the integer scale) * unit * value."""
