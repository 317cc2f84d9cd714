"""The oracle's fused multiply-add against exact rational arithmetic."""

from __future__ import annotations

import numpy as np

from pymixtral.arrays import F32
from pymixtral.reference import oracle
from support.exact import exact_fma


def normal(seed: int, *shape: int) -> F32:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def assert_fma_exact(a: F32, b: F32, c: F32) -> None:
    got = oracle.fma(a, b, c)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, np.array([exact_fma(*operands) for operands in zip(a, b, c, strict=True)]))


def floats(generator: np.random.Generator, n: int) -> F32:
    """Finite float32 of any bit pattern: any exponent, subnormals too."""
    bits = generator.integers(0, 1 << 32, n, np.uint32)
    return np.where((bits & 0x7F800000) == 0x7F800000, bits & 0x807FFFFF, bits).view(np.float32)


def test_fma_of_any_bit_patterns() -> None:
    generator = np.random.default_rng(1)
    assert_fma_exact(floats(generator, 4000), floats(generator, 4000), floats(generator, 4000))


def test_fma_where_the_product_cancels_its_addend() -> None:
    a, b = normal(2, 3000), normal(3, 3000)
    assert_fma_exact(a, b, -(a * b))


def test_fma_where_the_sum_is_next_to_a_half() -> None:
    # An addend of 24 bits and a product that is half a unit of its last place, or just above or
    # below: rounding twice gets these wrong.
    generator = np.random.default_rng(4)
    c = (generator.integers(1 << 23, 1 << 24, 4000) * generator.choice([-1.0, 1.0], 4000)).astype(np.float32)
    half = generator.choice([0.5, -0.5, 1.5], 4000).astype(np.float32)
    nudge = generator.choice([0, 1, -1, 3], 4000) * np.float32(2.0**-23)
    assert_fma_exact(
        half + nudge * abs(half), (1 + generator.choice([0, 1, -1], 4000) * 2.0**-23).astype(np.float32), c
    )


def test_fma_with_a_tiny_product_decides_a_tie_of_the_double_sum() -> None:
    # c + a*b is a tie of float32 up to a part that float64 cannot hold beside c.
    tiny = np.float32(2.0**-60)
    a = np.array([1 + 2.0**-23, 1 + 2.0**-23, tiny, tiny, -tiny], np.float32)
    b = np.array([1 + 2.0**-23, -1 - 2.0**-23, tiny, 1, 1], np.float32)
    c = np.array([2.0**24, -(2.0**24), 1, 1.5, 1 + 2.0**-23], np.float32)
    assert_fma_exact(a, b, c)
    # 2^-24 (1 + 2^-12)(1 - 2^-12) = 2^-24 (1 - 2^-24), a hair below half a unit of 1.
    assert_fma_exact(
        np.array([2.0**-24 * (1 + 2.0**-12)], np.float32),
        np.array([1 - 2.0**-12], np.float32),
        np.array([1], np.float32),
    )
    assert_fma_exact(
        np.array([2.0**-24 * (1 + 2.0**-12)], np.float32),
        np.array([1 - 2.0**-12], np.float32),
        np.array([1 + 2.0**-23], np.float32),
    )


def test_fma_with_subnormal_results_and_operands() -> None:
    generator = np.random.default_rng(5)
    small = (generator.integers(-(1 << 24), 1 << 24, 4000) * 2.0**-149).astype(np.float32)
    a = (normal(6, 4000) * np.float32(2.0**-70)).astype(np.float32)
    b = (normal(7, 4000) * np.float32(2.0**-76)).astype(np.float32)
    assert_fma_exact(a, b, small)
    assert_fma_exact(small, normal(8, 4000), small[::-1])


def test_fma_near_overflow() -> None:
    generator = np.random.default_rng(9)
    large = np.ldexp(generator.uniform(1, 2, 2000), 127).astype(np.float32)
    near_one = (1 + generator.integers(-8, 8, 2000) * 2.0**-24).astype(np.float32)
    largest = np.finfo(np.float32).max
    assert_fma_exact(large, near_one, -large[::-1])
    assert_fma_exact(np.full(2000, largest), near_one, (normal(10, 2000) * np.float32(2.0**103)).astype(np.float32))


def test_fma_of_infinities_and_nan() -> None:
    inf, nan = np.float32(np.inf), np.float32(np.nan)
    got = oracle.fma(
        np.array([inf, 1, inf, 0, 1], np.float32),
        np.array([2, 2, 1, inf, nan], np.float32),
        np.array([1, -inf, -inf, 1, 1], np.float32),
    )
    np.testing.assert_array_equal(got, np.array([inf, -inf, nan, nan, nan], np.float32))
