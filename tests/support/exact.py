"""float32 arithmetic from its definition, in rational numbers."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np


def nearest_float32(x: Fraction) -> float:
    """x rounded to nearest even, from the definition of binary32."""
    if x == 0:
        return 0.0
    exponent = x.numerator.bit_length() - x.denominator.bit_length()  # floor(log2 |x|) or one more
    if abs(x) < Fraction(2) ** exponent:
        exponent -= 1
    quantum = Fraction(2) ** max(exponent - 23, -149)
    rounded = round(x / quantum) * quantum  # Python rounds halves of a Fraction to even
    return math.copysign(math.inf, x) if abs(rounded) >= Fraction(2) ** 128 else float(rounded)


def exact_fma(a: Any, b: Any, c: Any) -> Any:
    """a*b + c rounded once, a np.float32."""
    return np.float32(nearest_float32(Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))))
