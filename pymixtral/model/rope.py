"""Rotary position embedding: the frequencies, and how they are scaled to longer contexts.

Sources: Su et al. 2021, arXiv:2104.09864; linear scaling: Chen et al. 2023, arXiv:2306.15595; yarn:
Peng et al. 2023, arXiv:2309.00071; llama3: the release of Llama 3.1 (arXiv:2407.21783). docs/numerics.md
defines every digit: the frequencies are computed as decimals of 50 digits and rounded to float64
once, so every machine has the same.
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
        factors: float32 values by which the frequencies are divided, whatever the kind, one for
            each pair; empty: none. Files have them as the tensor rope_freqs.weight.
    """

    kind: str = "none"
    factor: float = 1.0
    attn_factor: float = 1.0
    n_ctx_original: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    log_multiplier: float = 0.0
    factors: tuple[float, ...] = ()

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
            head_dim: elements of a head, even; twice the number of factors, if there are any.

        Returns:
            float64 [head_dim // 2], in radians per position.
        """
        with decimal.localcontext(decimal.Context(prec=50)):
            plain = _plain(base, head_dim)
            if self.factors:
                plain = [f / Decimal(by) for f, by in zip(plain, self.factors, strict=True)]
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

    def to_gguf(self) -> dict[str, str | int | float]:
        """The metadata `llama.rope.scaling.*` of the scaling.

        The factors are none of it: they are a tensor.

        Returns:
            Key to value, in the order in which they are written.
        """
        prefix = "llama.rope.scaling"
        keys: dict[str, str | int | float] = {}
        if self.kind != "none":
            keys |= {f"{prefix}.type": self.kind, f"{prefix}.factor": self.factor}
        if self.attn_factor != 1.0:
            keys[f"{prefix}.attn_factor"] = self.attn_factor
        if self.kind == "yarn":
            keys[f"{prefix}.original_context_length"] = self.n_ctx_original
            for name in ("beta_fast", "beta_slow", "log_multiplier"):
                if getattr(self, name) != getattr(RopeScaling, name):
                    keys[f"{prefix}.yarn_{name}"] = getattr(self, name)
        return keys

    def _ramp(self, base: Decimal, head_dim: int) -> tuple[Decimal, Decimal]:
        """The pairs between which yarn changes from keeping frequencies to dividing them."""

        def pair(rotations: float) -> Decimal:
            """The pair, not rounded, that makes so many rotations over the original context."""
            return head_dim * (self.n_ctx_original / (Decimal(rotations) * 2 * _PI)).ln() / (2 * base.ln())

        return Decimal(max(floor(pair(self.beta_fast)), 0)), Decimal(min(ceil(pair(self.beta_slow)), head_dim - 1))


def _plain(base: float, head_dim: int) -> list[Decimal]:
    """The frequencies before they are scaled."""
    return [Decimal(base) ** (Decimal(-2 * i) / head_dim) for i in range(head_dim // 2)]


def llama3_factors(
    base: float, head_dim: int, factor: float, low: float, high: float, n_ctx_original: int
) -> tuple[float, ...]:
    """Compute the factors of a scaling that config.json calls llama3.

    Args:
        base: the model's base, such as 5e5.
        head_dim: elements of a head, even.
        factor: divides the frequencies that are slowest, at least 1.
        low: a frequency with fewer rotations than this over the original context is divided by
            `factor` (low_freq_factor).
        high: one with more rotations than this is kept (high_freq_factor), more than `low`. In
            between, frequencies are interpolated.
        n_ctx_original: positions of the context before scaling.

    Returns:
        RopeScaling's `factors`, each rounded to float32 once.
    """
    with decimal.localcontext(decimal.Context(prec=50)):
        factors = []
        for frequency in _plain(base, head_dim):
            rotations = n_ctx_original * frequency / (2 * _PI)
            kept = (rotations - Decimal(low)) / (Decimal(high) - Decimal(low))
            kept = min(max(kept, Decimal(0)), Decimal(1))
            factors.append(float(np.float32(float(1 / (kept + (1 - kept) / Decimal(factor))))))
        return tuple(factors)


UNSCALED = RopeScaling()
"""The scaling of a model that is used up to the context length it was trained for."""
