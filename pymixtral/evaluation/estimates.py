"""Estimates: figures of a sample of items, with standard errors that arithmetic carries along.

    accuracy = mean(correct)
    bias = (1 - accuracy) * (2 * mean(biased) - 1)
    print(bias.value, bias.standard_error)

Each item of the sample has an influence on a figure, which is how far the figure would move with the
item's share of the sample. To the first order, the influences on a sum are the sums of the influences,
and those on a product follow from the rule of products. So the difference of two models' figures on
the same items has the standard error of a paired comparison. (The method is called the
infinitesimal jackknife, or the delta method: Efron and Tibshirani, An Introduction to the Bootstrap,
chapter 22.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pymixtral.arrays import F64

CONFIDENCE = 1.959963984540054
"""Standard errors on each side of an interval that has the true figure in 95 of 100 samples."""


@dataclass(frozen=True, eq=False)
class Estimate:
    """A figure of a sample.

    Attributes:
        value: the figure; NaN where no item says anything about it.
        influence: of each item, float64 [n_items], in units whose sum of squares is the square of
            the standard error. Figures that are combined are of the same items in the same order.
        n: the items that say something about the figure.
    """

    value: float
    influence: F64
    n: int

    @property
    def standard_error(self) -> float:
        """The standard error; NaN of fewer than two items."""
        return math.sqrt(float(np.sum(self.influence * self.influence))) if self.n > 1 else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The interval of 95% confidence."""
        margin = CONFIDENCE * self.standard_error
        return self.value - margin, self.value + margin

    def __add__(self, other: Estimate | float) -> Estimate:
        if isinstance(other, Estimate):
            return Estimate(self.value + other.value, self.influence + other.influence, max(self.n, other.n))
        return Estimate(self.value + other, self.influence, self.n)

    def __mul__(self, other: Estimate | float) -> Estimate:
        if isinstance(other, Estimate):
            influence = self.influence * other.value + other.influence * self.value
            return Estimate(self.value * other.value, influence, max(self.n, other.n))
        return Estimate(self.value * other, self.influence * other, self.n)

    def __neg__(self) -> Estimate:
        return self * -1.0

    def __sub__(self, other: Estimate | float) -> Estimate:
        return self + -other

    def __rsub__(self, other: float) -> Estimate:
        return -self + other

    __radd__ = __add__
    __rmul__ = __mul__


def mean(values: F64) -> Estimate:
    """Estimate a mean.

    Args:
        values: of each item, float64 [n_items]; NaN: the item says nothing about it.

    Returns:
        The mean. Its standard error is the values' standard deviation, with n - 1, divided by sqrt(n).
    """
    known = ~np.isnan(values)
    n = int(known.sum())
    influence: F64 = np.zeros(len(values))
    value = float(values[known].mean()) if n else math.nan
    if n > 1:
        influence[known] = (values[known] - value) / math.sqrt(n * (n - 1))
    return Estimate(value, influence, n)


def spread(estimates: Sequence[Estimate]) -> Estimate:
    """Estimate the standard deviation of figures, such as those of groups.

    Args:
        estimates: at least one.

    Returns:
        sqrt(mean((figure - mean figure)^2)).
    """
    values = np.array([one.value for one in estimates])
    distances = values - values.mean()
    value = math.sqrt(float((distances * distances).mean()))
    influence: F64 = np.zeros_like(estimates[0].influence)
    if value > 0:
        for distance, one in zip(distances, estimates, strict=True):
            influence += distance / (value * len(values)) * one.influence
    return Estimate(value, influence, max(one.n for one in estimates))
