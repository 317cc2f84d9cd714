"""The oracle's ground: sums and products rounded as the contract says, and e**x."""

from __future__ import annotations

from typing import Any

import numpy as np

from pymixtral.arrays import F32, F64
from pymixtral.errors import NonFiniteError


def finite(y: F32, what: str) -> F32:
    """Refuse NaN and infinity.

    Args:
        y: float, of any shape with a first axis.
        what: names y in the message.

    Returns:
        y itself.

    Raises:
        NonFiniteError: with the row, the index along the first axis.
    """
    bad = ~np.isfinite(y.reshape(len(y), -1)).all(axis=1)
    if bad.any():
        row = int(bad.argmax())
        raise NonFiniteError(
            f"expected finite numbers, found NaN or infinity in {what} of row {row}: check the model's weights", row
        )
    return y


def fma(a: Any, b: Any, c: Any) -> F32:
    """Compute a*b + c with one rounding, infinities and NaN as in IEEE 754.

    The product of two float32 numbers is exact in float64, but the sum is not. Knuth's two-sum
    gives its error. An inexact sum is moved to the neighbour whose last bit is odd, which makes the
    second rounding, to float32, correct (Boldo and Melquiond 2008).

    Args:
        a: float32, of any shape that broadcasts with the others.
        b: float32.
        c: float32.

    Returns:
        float32, of the common shape.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        product = np.asarray(a, np.float64) * np.asarray(b, np.float64)
        addend = np.asarray(c, np.float64)
        total = np.asarray(product + addend)
        back = total - product
        error = (product - (total - back)) + (addend - back)
        bits = total.view(np.int64)
        toward_error = np.where((error > 0) == (total > 0), bits + 1, bits - 1)
        inexact = (error < 0) | (error > 0)
        odd: F64 = np.where(inexact & (bits & 1 == 0), toward_error, bits).view(np.float64)
        return odd.astype(np.float32)


def sum8(a: F32, b: F32 | None = None) -> F32:
    """Sum along the last axis, in eight partial sums and a tree.

    Args:
        a: float32 [..., n].
        b: float32 [..., n], which broadcasts with a; if given, the products a*b are summed by fma.

    Returns:
        float32 [...].
    """
    n = a.shape[-1]
    shape = a.shape[:-1] if b is None else np.broadcast_shapes(a.shape[:-1], b.shape[:-1])
    s = np.zeros((*shape, 8), np.float32)
    for k in range(0, n, 8):
        lanes = s[..., : n - k]  # a short tail leaves the other sums as they are
        lanes[...] = lanes + a[..., k : k + 8] if b is None else fma(a[..., k : k + 8], b[..., k : k + 8], lanes)
    with np.errstate(over="ignore", invalid="ignore"):
        total: F32 = ((s[..., 0] + s[..., 4]) + (s[..., 2] + s[..., 6])) + (
            (s[..., 1] + s[..., 5]) + (s[..., 3] + s[..., 7])
        )
        return total


_LOG2_E = np.float32(float.fromhex("0x1.715476p+0"))
_LN2 = [np.float32(float.fromhex(c)) for c in ("-0x1.62e430p-1", "0x1.05c610p-29")]
_EXP = [
    np.float32(float.fromhex(c))
    for c in (
        "0x1.a125f6p-13",
        "0x1.6d444ap-10",
        "0x1.1110e0p-7",
        "0x1.5554e8p-5",
        "0x1.555556p-3",
        "0x1p-1",
        "0x1p0",
        "0x1p0",
    )
]
_EXP_MAX, _EXP_MIN = np.float32(88), np.float32(-87.3)


def exp(x: F32) -> F32:
    """Compute e**x, with an error of at most 0.85 ulp from -87.3 to 88.

    Args:
        x: float32, of any shape.

    Returns:
        float32, of the shape of x: +0 below -87.3, infinity above 88, NaN for NaN.
    """
    inside = np.clip(x, _EXP_MIN, _EXP_MAX)
    n = np.rint(inside * _LOG2_E)
    r = fma(n, _LN2[1], fma(n, _LN2[0], inside))
    p = np.broadcast_to(_EXP[0], r.shape)
    for c in _EXP[1:]:
        p = fma(p, r, c)
    with np.errstate(invalid="ignore"):
        y: F32 = np.ldexp(p, n.astype(np.int32))
    y[x > _EXP_MAX] = np.inf
    y[x < _EXP_MIN] = 0
    return y
