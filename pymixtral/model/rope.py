"""Rotary position embedding: the frequencies, and how they are scaled to longer contexts.

Sources: Su et al. 2021, arXiv:2104.09864; linear scaling: Chen et al. 2023, arXiv:2306.15595; yarn:
Peng et al. 2023, arXiv:2309.00071. docs/numerics.md defines every digit: the frequencies are
computed as decimals of 50 digits and rounded to float64 once, so every machine has the same.
"""

from __future__ import annotations

import decimal
from dataclasses import dataclass
from decimal import Decimal
from math import ceil, floor

import numpy as np

from pymixtral.arrays import F64

_PI = Decimal("3.1415926535897932384626433832795028841971693993751")


@dataclass(frozen=True)
class RopeScaling:
    """How a model's rotary frequencies are scaled to a longer context.

    Attributes:
        kind: "none", "linear" or "yarn".
        factor: by how much the context grows, at least 1.
        attn_factor: multiplies cosines and sines, whatever the kind.
        n_ctx_original: yarn: positions of the context before scaling.
        beta_fast: yarn: a frequency with more rotations than this over the original context is
            kept.
        beta_slow: yarn: a frequency with fewer rotations than this is divided by `factor`.
            Frequencies in between are interpolated.
        log_multiplier: yarn: the model's own part in the attention factor, which DeepSeek calls
            mscale_all_dim; 0: none.
    """

    kind: str = "none"
    factor: float = 1.0
    attn_factor: float = 1.0
    n_ctx_original: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    log_multiplier: float = 0.0

    def table_factor(self) -> float:
        """Compute the number that multiplies cosines and sines.

        Returns:
            attn_factor, times yarn's attention factor if kind is "yarn".
        """
        with decimal.localcontext(decimal.Context(prec=50)):
            factor = Decimal(self.attn_factor)
            if self.kind == "yarn":
                step = Decimal(self.factor).ln() / 10
                factor *= (1 + step) / (1 + Decimal(self.log_multiplier) * step)
            return float(factor)

    def frequencies(self, base: float, head_dim: int) -> F64:
        """Compute the scaled frequencies.

        Args:
            base: the model's base, such as 1e6.
            head_dim: elements of a head, even.

        Returns:
            float64 [head_dim // 2], in radians per position.
        """
        with decimal.localcontext(decimal.Context(prec=50)):
            plain = [Decimal(base) ** (Decimal(-2 * i) / head_dim) for i in range(head_dim // 2)]
            if self.kind == "none":
                return np.array([float(f) for f in plain], np.float64)
            factor = Decimal(self.factor)
            if self.kind == "linear":
                return np.array([float(f / factor) for f in plain], np.float64)
            low, high = self._ramp(Decimal(base), head_dim)
            width = max(high - low, Decimal("0.001"))  # yarn's guard against a division by 0
            parts = [min(max((i - low) / width, Decimal(0)), Decimal(1)) for i in range(head_dim // 2)]
            return np.array(
                [float(f / factor * part + f * (1 - part)) for f, part in zip(plain, parts, strict=True)], np.float64
            )

    def _ramp(self, base: Decimal, head_dim: int) -> tuple[Decimal, Decimal]:
        """The pairs between which yarn changes from keeping frequencies to dividing them."""

        def pair(rotations: float) -> Decimal:
            """The pair, not rounded, that makes so many rotations over the original context."""
            return head_dim * (self.n_ctx_original / (Decimal(rotations) * 2 * _PI)).ln() / (2 * base.ln())

        return Decimal(max(floor(pair(self.beta_fast)), 0)), Decimal(min(ceil(pair(self.beta_slow)), head_dim - 1))


UNSCALED = RopeScaling()
"""The scaling of a model that is used up to the context length it was trained for."""
