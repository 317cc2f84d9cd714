"""The oracle's rotary positions."""

from __future__ import annotations

import numpy as np

from pymixtral.arrays import F32, F64, I32
from pymixtral.errors import InvalidArgumentError
from pymixtral.reference.arithmetic import finite, fma

_TWO_OVER_PI = float.fromhex("0x1.45f306dc9c883p-1")
_HALF_PI = [float.fromhex(c) for c in ("0x1.921fb544p+0", "0x1.0b4611a6p-34", "0x1.3198a2e037073p-69")]
_SINE = [
    float.fromhex(c)
    for c in (
        *("0x1.952c77030ad4ap-49", "-0x1.ae7f3e733b81fp-41", "0x1.6124613a86d09p-33", "-0x1.ae64567f544e4p-26"),
        *("0x1.71de3a556c734p-19", "-0x1.a01a01a01a01ap-13", "0x1.1111111111111p-7", "-0x1.5555555555555p-3"),
    )
]
_COSINE = [
    float.fromhex(c)
    for c in (
        *("0x1.ae7f3e733b81fp-45", "-0x1.93974a8c07c9dp-37", "0x1.1eed8eff8d898p-29", "-0x1.27e4fb7789f5cp-22"),
        *("0x1.a01a01a01a01ap-16", "-0x1.6c16c16c16c17p-10", "0x1.5555555555555p-5", "-0x1p-1"),
    )
]
_MAX_ANGLE = 2.0**20  # radians; n has 20 bits and _HALF_PI's first number 33, so their product is exact


def rope_table(frequencies: F64, positions: I32, factor: float = 1.0) -> tuple[F32, F32]:
    """Compute the cosines and sines of the rotary embedding.

    Args:
        frequencies: float64 [n_pairs], in radians per position.
        positions: int32 [n_tokens].
        factor: multiplies cosines and sines.

    Returns:
        Cosines and sines, each float32 [n_tokens, n_pairs].

    Raises:
        InvalidArgumentError: for a negative position or an angle above 2^20.
    """
    angle = positions.astype(np.float64)[:, None] * frequencies
    if angle.size and not (positions.min() >= 0 and angle.max() <= _MAX_ANGLE):
        raise InvalidArgumentError(
            f"expected rope angles from 0 to 2^20, found {angle.min():g} to {angle.max():g}: use smaller positions"
        )
    n = np.rint(angle * _TWO_OVER_PI)
    r = ((angle - n * _HALF_PI[0]) - n * _HALF_PI[1]) - n * _HALF_PI[2]
    z = r * r
    p, q = np.full_like(z, _SINE[0]), np.full_like(z, _COSINE[0])
    for s, c in zip(_SINE[1:], _COSINE[1:], strict=True):
        p, q = p * z + s, q * z + c
    sine, cosine = r + (r * z) * p, 1 + z * q
    quadrant = n.astype(np.int64) & 3
    cosines = np.choose(quadrant, [cosine, -sine, -cosine, sine])
    sines = np.choose(quadrant, [sine, cosine, -sine, -cosine])
    return (cosines * factor).astype(np.float32), (sines * factor).astype(np.float32)


def rope(x: F32, cosines: F32, sines: F32) -> F32:
    """Rotate each pair of adjacent elements by the angle of its position.

    Su et al. 2021, arXiv:2104.09864.

    Args:
        x: queries or keys, float32 [n_tokens, n_heads, head_dim].
        cosines: float32 [n_tokens, head_dim/2].
        sines: float32 [n_tokens, head_dim/2].

    Returns:
        float32 [n_tokens, n_heads, head_dim].

    Raises:
        NonFiniteError: with the row.
    """
    c, s = cosines[:, None], sines[:, None]
    even, odd = x[..., 0::2], x[..., 1::2]
    y = np.empty_like(x)
    y[..., 0::2] = fma(even, c, -(odd * s))
    y[..., 1::2] = fma(even, s, odd * c)
    return finite(y, "the rotated vectors")
