"""Weight types whose scales are searched for: what csrc/encode/search.h is compared with.

Blocks are cut into sub-blocks of 16 or 32 weights x, represented by integers q as scale * q or
scale * q - minimum. A candidate (inverse scale, offset) rounds x to codes q; weighted least squares
then gives the best scale and minimum for these q, and their error, in closed form. The best of
some 20 candidates is refined twice by its own scale. In blocks of 256 the scales are integers times
the block's d (and the minimums times dmin): d comes from the largest, each integer is chosen among
three by error, d is fitted to the choice, and again.

At last d (and dmin) of each block grow until the error is orthogonal to the weights. What least
squares decodes is a projection of the weights, shorter than they are by the part that is error, 7%
at 2 bits. All outputs of a matrix would be too small by that, in every layer; the predictions of a
model suffer more from it than from the larger squared error.

All arithmetic is float32, each written operation rounded, sums in the order of the elements. Arrays
of sub-blocks are [elements, sub-blocks], so that one row holds the same element of all sub-blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, SupportsFloat

import numpy as np
from gguf import GGMLQuantizationType

from pymixtral.arrays import F32, U8

from .lattices import LATTICES, Lattice
from .packing import Blocks, pack

ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)

MAGIC = np.float32(3 << 22)
"""Adding and subtracting it rounds to nearest even."""

VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
"""The values of iq4_nl's and iq4_xs's codes."""

DELTAS = (0, -1, 1)
"""What is added to the nearest integer scale, to be tried. Without -1 and 1 errors are up to 2%
larger (q5_k); -2 and 2 as well would lower them by less than 0.4%."""

LONGEST = np.float32(1.25)
"""What d grows by at most, of a block that is mostly error."""


def _range(first: float, step: float, count: int) -> tuple[np.float32, ...]:
    return tuple(np.float32(first + step * k) for k in range(count))


@dataclass(frozen=True)
class Grid:
    """How a type represents a sub-block, and the candidates.

    Attributes:
        sub: weights of a sub-block.
        n_sub: sub-blocks that share d and dmin; 1: a block of 32, which has a scale of its own.
        codes: the smallest and the largest integer; None: those are VALUES.
        scales: the smallest and the largest integer scale; the largest is that of minimums too.
        down: candidates for scale * q: inverse scales times the weight of largest magnitude, when
            that gets a negative code.
        up: the same, when it gets a positive code.
        steps: candidates for scale * q - minimum: inverse scales times the range of the weights.
        offsets: the same: what is added to the codes.
        lattice: of a type whose codes are entries of one: q is what an entry stands for, without
            signs, and `up` has the candidates, of which the first makes weights of one magnitude
            exact. Its integer scales are whole numbers and a half.
    """

    sub: int
    n_sub: int
    codes: tuple[int, int] | None
    scales: tuple[float, float] = (1, 1)
    down: tuple[np.float32, ...] = ()
    up: tuple[np.float32, ...] = ()
    steps: tuple[np.float32, ...] = ()
    offsets: tuple[np.float32, ...] = ()
    lattice: Lattice | None = None


def _lattice(kind: GGMLQuantizationType, sub: int, up: tuple[np.float32, ...]) -> Grid:
    return Grid(sub, 256 // sub, None, (0.5, 15.5), up=up, lattice=LATTICES[kind])


KINDS = GGMLQuantizationType
OFFSETS = _range(0.125, -0.3125, 4)
GRIDS = {
    KINDS.Q4_0: Grid(32, 1, (-8, 7), down=_range(6.5, 0.25, 12), up=_range(6.5, 0.25, 6)),
    KINDS.Q5_0: Grid(32, 1, (-16, 15), down=_range(14.5, 0.25, 12), up=_range(14.5, 0.25, 6)),
    KINDS.IQ4_NL: Grid(32, 1, None, down=_range(95, 4, 13), up=_range(95, 4, 9)),
    KINDS.Q4_1: Grid(32, 1, (0, 15), steps=_range(14.25, 0.5, 6), offsets=OFFSETS),
    KINDS.Q5_1: Grid(32, 1, (0, 31), steps=_range(30.25, 0.5, 6), offsets=OFFSETS),
    KINDS.Q2_K: Grid(16, 16, (0, 3), (0, 15), steps=_range(2.25, 0.375, 6), offsets=OFFSETS),
    KINDS.Q3_K: Grid(16, 16, (-4, 3), (-32, 31), down=_range(2.75, 0.25, 9), up=_range(2.75, 0.25, 5)),
    KINDS.Q4_K: Grid(32, 8, (0, 15), (0, 63), steps=_range(14.25, 0.5, 6), offsets=OFFSETS),
    KINDS.Q5_K: Grid(32, 8, (0, 31), (0, 63), steps=_range(30.25, 0.5, 6), offsets=OFFSETS),
    KINDS.Q6_K: Grid(16, 16, (-32, 31), (-128, 127), down=_range(31, 0.25, 9)),
    KINDS.IQ4_XS: Grid(32, 8, None, (-32, 31), down=_range(95, 4, 13), up=_range(95, 4, 9)),
    KINDS.IQ2_XXS: _lattice(KINDS.IQ2_XXS, 32, _range(2, 3, 7)),
    KINDS.IQ2_XS: _lattice(KINDS.IQ2_XS, 16, _range(2, 3, 7)),
    KINDS.IQ2_S: _lattice(KINDS.IQ2_S, 16, _range(2, 3, 7)),
    KINDS.IQ3_XXS: _lattice(KINDS.IQ3_XXS, 32, _range(2, 6.5, 8)),
    KINDS.IQ3_S: _lattice(KINDS.IQ3_S, 32, _range(2, 6.5, 8)),
}
"""The candidates give the extreme weight a code around the end of the range. On Gaussian and
Laplacian weights and on tests/data/tiny-mixtral's, candidates half as far apart lower errors by
less than 0.5%, and a span twice as wide by less than 1.1% (q6_k: 2.1%), in twice the time."""


def weights_of(importance: F32) -> F32:
    """What the squared error of each column counts.

    Args:
        importance: float32 [cols], finite, not negative.

    Returns:
        float32 [cols]: importance over its mean, from 2^-20 to 2^20; 1 where all importance is 0.
    """
    total = np.cumsum(importance, dtype=np.float64)[-1]
    if total == 0:
        return np.ones_like(importance)
    weights: F32 = np.clip(importance / (total / len(importance)), 2.0**-20, 2.0**20).astype(np.float32)
    return weights


def encode(kind: GGMLQuantizationType, x: F32, importance: F32 | None) -> U8:
    """Encodes weights in a type of GRIDS.

    Args:
        kind: the type.
        x: float32 [rows, cols], finite, cols a multiple of the block.
        importance: float32 [cols], what the squared error of each column counts; None: all the
            same.

    Returns:
        uint8 [rows, row_bytes]. A scale that overflows f16 becomes infinity here; C refuses it.
    """
    grid = GRIDS[kind]
    weights = np.broadcast_to(ONE if importance is None else weights_of(importance), x.shape)
    tiles = [np.ascontiguousarray(a.reshape(-1, grid.sub).T) for a in (x, weights)]
    with np.errstate(all="ignore"):
        if grid.lattice:
            found = _of_lattice(grid, grid.lattice, *tiles)
        else:
            found = _affine(grid, *tiles) if grid.steps else _symmetric(grid, *tiles)
            found.codes = np.ascontiguousarray(found.codes.T).reshape(-1, grid.sub * grid.n_sub)
    return pack(kind, found).reshape(x.shape[0], -1)


# --- Arithmetic


def _rounded(v: F32) -> F32:
    rounded: F32 = (v + MAGIC) - MAGIC
    return rounded


def _clamped(v: F32, lo: SupportsFloat, hi: SupportsFloat) -> F32:
    clamped: F32 = np.minimum(np.maximum(v, np.float32(lo)), np.float32(hi))
    return clamped


def _finite_ratio(a: Any, b: F32) -> F32:
    ratio: F32 = a / b
    return np.where(np.isfinite(ratio), ratio, ZERO)


def _ratio(a: F32, b: F32) -> F32:
    return np.where(b > 0, a / b, ZERO)


def _scale16(d: F32) -> F32:
    """The nearest f16; what is not zero does not become zero."""
    smallest = np.float32(2**-24)
    d = np.where((d != 0) & (np.abs(d) < smallest), np.where(d < 0, -smallest, smallest), d)
    nearest: F32 = d.astype(np.float16).astype(np.float32)
    return nearest


def _sum(a: F32) -> F32:
    """Over the last axis, in order."""
    total = np.zeros(a.shape[:-1], np.float32)
    for j in range(a.shape[-1]):
        total = total + a[..., j]
    return total


def _quantize(grid: Grid, x: F32, inverse: F32, offset: Any) -> F32:
    if grid.codes is None:
        return VALUES[np.searchsorted((VALUES[1:] + VALUES[:-1]) / TWO, x * inverse)]
    return _clamped(_rounded(x * inverse + offset), *grid.codes)


def _sums(grid: Grid, x: F32, w: F32, inverse: F32, offset: Any) -> F32:
    """[3, sub-blocks]: the sums of w*q (of a lattice 0), w*q*q and w*q*x."""
    if grid.lattice:
        _, qq, xq = grid.lattice.nearest(x, w, inverse)
        return np.stack([np.zeros_like(qq), qq, xq])
    total = np.zeros((3, x.shape[1]), np.float32)
    for xi, wi in zip(x, w, strict=True):
        q = _quantize(grid, xi, inverse, offset)
        weighted = wi * q
        total += (weighted, weighted * q, weighted * xi)
    return total


def _finish(grid: Grid, x: F32, w: F32, d: F32, m: F32, scales: F32, minimums: F32, lowest: F32) -> Blocks:
    """x, w: float32 [elements, sub-blocks]; d, m: [blocks]; the others [sub-blocks]."""
    inverse = _finite_ratio(ONE, np.repeat(d, grid.n_sub) * scales)
    q = _quantize(grid, x - lowest, inverse, (np.repeat(m, grid.n_sub) * minimums + lowest) * inverse)
    d, m = _lengthened(grid, x, w, q, d, m, scales, minimums)
    codes = np.searchsorted(VALUES, q) if grid.codes is None else q - np.float32(grid.codes[0])
    shape = (-1, grid.n_sub)
    integers = [of_sub.reshape(shape).astype(np.int32) for of_sub in (scales, minimums)]
    return Blocks(d, codes.astype(np.uint8), m, integers[0], integers[1])


def _lengthened(grid: Grid, x: F32, w: F32, q: F32, d: F32, m: F32, scales: F32, minimums: F32) -> tuple[F32, F32]:
    """d and m of blocks whose error is orthogonal to x, as far as LONGEST lets them."""
    weighted = x * w
    products = (_sum((weighted * x).T), scales * _sum((weighted * q).T), minimums * _sum(weighted.T))
    xx, xq, xm = (_sum(a.reshape(-1, grid.n_sub)) for a in products)
    factor = np.minimum(_ratio(xx, d * xq - m * xm), LONGEST)
    longer_d, longer_m = _scale16(d * factor), _scale16(m * factor)
    good = (factor != 0) & np.isfinite(longer_d) & np.isfinite(longer_m)
    return np.where(good, longer_d, d), np.where(good, longer_m, m)


# --- Symmetric: x is about scale * q


def _symmetric(grid: Grid, x: F32, w: F32) -> Blocks:
    scale = _find_scales(grid, x, w)
    zeros = np.zeros_like(scale)
    if grid.n_sub == 1:
        return _finish(grid, x, w, _scale16(scale), zeros, np.ones_like(scale), zeros, zeros)
    d, scales = _fit_scales(grid, x, w, scale)
    return _finish(grid, x, w, d, np.zeros_like(d), scales, zeros, zeros)


def _of_lattice(grid: Grid, lattice: Lattice, x: F32, w: F32) -> Blocks:
    x, signs = lattice.magnitudes(x, w)
    d, scales = _fit_scales(grid, x, w, _find_scales(grid, x, w))
    entries = lattice.nearest(x, w, _finite_ratio(ONE, np.repeat(d, grid.n_sub) * scales))[0]
    q = lattice.values_of(entries)
    d, _ = _lengthened(grid, x, w, q, d, np.zeros_like(d), scales, np.zeros_like(scales))
    no_codes: U8 = np.zeros((len(d), 0), np.uint8)
    by_block = (len(d), -1)
    return Blocks(
        d,
        no_codes,
        scales=scales.T.reshape(by_block).astype(np.int32),
        entries=entries.T.reshape(by_block),
        signs=signs.T.reshape(by_block),
    )


def _find_scales(grid: Grid, x: F32, w: F32) -> F32:
    scale, best = np.zeros((2, x.shape[1]), np.float32)
    extreme = np.take_along_axis(x, np.abs(x).argmax(axis=0)[None], 0)[0]
    if grid.lattice:
        extreme = np.abs(extreme)
    for c in (*(-c for c in grid.down), *grid.up, None, None):
        _, qq, xq = _sums(grid, x, w, _finite_ratio(ONE, scale) if c is None else _finite_ratio(c, extreme), ZERO)
        candidate = _ratio(np.maximum(xq, ZERO) if grid.lattice else xq, qq)
        gain = xq * candidate
        better = gain > best
        best, scale = np.where(better, gain, best), np.where(better, candidate, scale)
    return scale


def _fit_scales(grid: Grid, x: F32, w: F32, found: F32) -> tuple[F32, F32]:
    """d [blocks] and the integer scales, float32 [sub-blocks]."""
    lo, hi = grid.scales
    by_block = found.reshape(-1, grid.n_sub)
    largest = np.take_along_axis(by_block, np.abs(by_block).argmax(axis=1)[:, None], 1)[:, 0]
    d = _scale16(largest / np.float32(hi if grid.lattice else lo))
    half = np.float32(0.5 if grid.lattice else 0)
    # No code of a lattice is 0: of weights far below the least d, all 0 is nearer than any entry.
    chosen_d, total = (np.zeros_like(d), np.zeros_like(d)) if grid.lattice else (d, np.full_like(d, np.inf))
    chosen: F32 = np.zeros_like(by_block)
    for _ in range(2):
        of_sub = np.repeat(d, grid.n_sub)
        best: F32 = np.full((4, len(found)), np.inf, np.float32)
        for delta in DELTAS:
            nearest = _rounded(found * _finite_ratio(ONE, of_sub) - half) + half
            candidate = _clamped(nearest + np.float32(delta), lo, hi)
            scale = of_sub * candidate
            _, qq, xq = _sums(grid, x, w, _finite_ratio(ONE, scale), ZERO)
            error = scale * (scale * qq - (xq + xq))
            best = np.where(error < best[0], (error, candidate, qq, xq), best)
        error, integer, qq, xq = best.reshape(4, -1, grid.n_sub)
        better = _sum(error) < total
        total = np.where(better, _sum(error), total)
        chosen_d, chosen = np.where(better, d, chosen_d), np.where(better[:, None], integer, chosen)
        following = _scale16(_ratio(_sum(integer * xq), _sum(integer * integer * qq)))
        d = np.where(np.isinf(following) | ((following <= 0) & (grid.lattice is not None)), d, following)
    return chosen_d, chosen.reshape(-1)


# --- Affine: x is about scale * q - minimum; u = x - lowest is about scale * q - shift


@dataclass
class _Shifted:
    """Sub-blocks less their lowest weight.

    u: [elements, sub-blocks]; the others [sub-blocks]. wsum, usum: the sums of w and w*u. bounded:
    a minimum is not negative.
    """

    u: F32
    lowest: F32
    wsum: F32
    usum: F32
    bounded: bool

    def error(self, sums: F32, scale: F32, shift: F32) -> F32:
        """The weighted squared error, less that of nothing."""
        q, qq, uq = sums
        cross = uq + shift * q
        error: F32 = scale * (scale * qq - (cross + cross)) + shift * (shift * self.wsum + (self.usum + self.usum))
        return error


def _affine(grid: Grid, x: F32, w: F32) -> Blocks:
    bounded = grid.n_sub > 1
    lowest = np.where(x[0] > 0, ZERO, x[0]) if bounded else x[0]
    for xi in x[1:]:
        lowest = np.where(xi < lowest, xi, lowest)
    u = x - lowest
    f = _Shifted(u, lowest, _sum(w.T), _sum((w * u).T), bounded)
    scale, shift = _find_affine(grid, f, w)
    if bounded:
        d, m, scales, minimums = _fit_affine(grid, f, w, scale, shift)
    else:
        scales = minimums = np.ones_like(scale)
        d, m = _scale16(scale), (shift - lowest).astype(np.float16).astype(np.float32)
    return _finish(grid, x, w, d, m, scales, minimums, lowest)


def _find_affine(grid: Grid, f: _Shifted, w: F32) -> tuple[F32, F32]:
    """Scales and shifts [sub-blocks]."""
    scale = np.zeros_like(f.lowest)
    shift = -f.usum / f.wsum
    shift = np.where(f.bounded & (shift < f.lowest), f.lowest, shift)
    best = shift * (shift * f.wsum + (f.usum + f.usum))
    largest = np.maximum(f.u.max(axis=0), ZERO)
    for candidate in (*((step, offset) for step in grid.steps for offset in grid.offsets), None, None):
        if candidate is None:
            inverse = _finite_ratio(ONE, scale)
            offset: Any = shift * inverse
        else:
            inverse, offset = _finite_ratio(candidate[0], largest), candidate[1]
        sums = _sums(grid, f.u, w, inverse, offset)
        q, qq, uq = sums
        det = f.wsum * qq - q * q
        new_scale, new_shift = _ratio(f.wsum * uq - f.usum * q, det), _ratio(q * uq - qq * f.usum, det)
        # Codes that hardly differ give a scale alone.
        below = f.bounded & ((new_shift < f.lowest) | (det <= f.wsum * qq * np.float32(2**-16)))
        new_scale = np.where(below, _ratio(uq + f.lowest * q, qq), new_scale)
        new_shift = np.where(below, f.lowest, new_shift)
        error = f.error(sums, new_scale, new_shift)
        better = (error < best) & (new_scale > 0)
        best, scale, shift = np.where(better, (error, new_scale, new_shift), (best, scale, shift))
    return scale, shift


def _fit_affine(grid: Grid, f: _Shifted, w: F32, scale: F32, shift: F32) -> tuple[F32, F32, F32, F32]:
    """d and dmin [blocks], integer scales and minimums, float32 [sub-blocks]."""
    most, n_sub = np.float32(grid.scales[1]), grid.n_sub
    d, m = (_scale16(np.maximum(a.reshape(-1, n_sub).max(axis=1), ZERO) / most) for a in (scale, shift - f.lowest))
    minimum = _clamped(_rounded((shift - f.lowest) * _finite_ratio(ONE, np.repeat(m, n_sub))), 0, most)
    total = np.full_like(d, np.inf)
    chosen: F32 = np.zeros((2, len(d)), np.float32)
    integers: F32 = np.zeros((2, len(d), n_sub), np.float32)
    for _ in range(2):
        d_sub, m_sub = np.repeat(d, n_sub), np.repeat(m, n_sub)
        best: F32 = np.full((6, len(scale)), np.inf, np.float32)
        for delta in DELTAS:
            candidate = _clamped(_rounded(scale * _finite_ratio(ONE, d_sub)) + np.float32(delta), 0, most)
            a = d_sub * candidate
            inverse = _finite_ratio(ONE, a)
            sums = _sums(grid, f.u, w, inverse, (m_sub * minimum + f.lowest) * inverse)
            wanted = (a * sums[0] - f.usum) / f.wsum - f.lowest
            integral = _clamped(_rounded(wanted * _finite_ratio(ONE, m_sub)), 0, most)
            error = f.error(sums, a, m_sub * integral + f.lowest)
            best = np.where(error < best[0], (error, candidate, integral, *sums), best)
        minimum = best[2]
        error, s, k, q, qq, uq = best.reshape(6, -1, n_sub)
        better = _sum(error) < total
        total = np.where(better, _sum(error), total)
        chosen, integers = np.where(better, (d, m), chosen), np.where(better[:, None], (s, k), integers)
        lowest, wsum, usum = (a.reshape(-1, n_sub) for a in (f.lowest, f.wsum, f.usum))
        aa, ab, bb = _sum(s * s * qq), _sum(s * k * q), _sum(k * k * wsum)
        xa, xb = _sum(s * (uq + lowest * q)), _sum(k * (usum + lowest * wsum))
        det = aa * bb - ab * ab
        next_d, next_m = _scale16(_ratio(bb * xa - ab * xb, det)), _scale16(_ratio(ab * xa - aa * xb, det))
        good = (next_d > 0) & (next_m > 0) & np.isfinite(next_d) & np.isfinite(next_m)
        d, m = np.where(good, (next_d, next_m), (d, m))
    return chosen[0], chosen[1], integers[0].reshape(-1), integers[1].reshape(-1)
