"""The weight encoders: every instruction set and number of threads gives the bytes of the NumPy
definitions, which keep errors small.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from pymixtral import ops
from pymixtral.arrays import F32
from pymixtral.errors import InvalidArgumentError, PymixtralError
from pymixtral.files.types import Matrix, block_weights
from pymixtral.quantize.encoders import formats, lattices, search
from pymixtral.reference.blocks import dequantize
from support.variants import (
    ENCODED,
    FIRST_CONTEXT,
    SEARCHED,
    UNSEARCHED,
    every_context,
    generator,
    normal,
    row_of,
    wide,
)

KINDS = GGMLQuantizationType
LATTICES = list(lattices.LATTICES)
WEIGHTED = [kind for kind in ENCODED if kind in search.GRIDS]
LARGEST_SCALED = {
    "Q2_K": 15 * 3,
    "Q3_K": 32 * 4,
    "Q4_K": 63 * 15,
    "Q5_K": 63 * 31,
    "Q6_K": 128 * 32,
    "IQ4_NL": 127,
    "IQ4_XS": 32 * 127,
    "IQ2_XXS": 15.5 * 10.75,
    "IQ2_XS": 15.5 * 10.75,
    "IQ2_S": 15.5 * 10.75,
    "IQ3_XXS": 15.5 * 31,
    "IQ3_S": 15.5 * 30,
}
"""The largest weight of a type whose d is 1: about so much, as d and the scales are fitted.

Up to three times as much of a lattice without an entry for one large weight among small ones.
"""

names = {"ids": lambda kind: kind.name.lower()}


@cache
def nasty(cols: int) -> F32:
    """Rows of ordinary weights, then constant, sparse, tied, one-sided, shifted, tiny and huge
    ones, and all magnitudes in one block.
    """
    x = normal(10, 32, cols)
    ends = np.where(np.arange(cols) % 2, -2, 2).astype(np.float32)
    halves = (np.arange(cols) % 255 - 127).astype(np.float32) / np.float32(2)
    halves[::32] = 127
    for row, values in enumerate(
        [0.0, -0.0, 1.5, -2.25, ends, -ends, halves, -halves, 1e-40, 1e-45, 2e-38, 6e-8, 3e-8, 1e-3]
    ):
        x[row] = values
    x[14] = wide(11, cols) * np.float32(1e-6)
    for row, factor in enumerate([1e-5, 1e-7, 1e-12, 1e-30, 1e4], 15):
        x[row] *= np.float32(factor)
    x[20], x[21] = np.abs(x[20]), -np.abs(x[21])
    x[22] = x[22] * np.float32(1e-5) + 3
    x[23][generator(12).random(cols) < 0.95] = 0
    x[24] = np.ldexp(x[24], generator(13).integers(-30, 12, cols))
    x[25] = np.repeat(x[25, : cols // 32], 32)
    x[26][::256] = 500
    return x


def importances(cols: int) -> list[F32 | None]:
    """None, an ordinary one, one with zeros and huge numbers, one that is all zeros."""
    ordinary = generator(14).gamma(0.5, size=cols).astype(np.float32)
    uneven = np.where(generator(15).random(cols) < 0.5, 0, ordinary * np.float32(1e30)).astype(np.float32)
    return [None, ordinary, uneven, np.zeros(cols, np.float32)]


def decode(kind: GGMLQuantizationType, data: NDArray[np.uint8]) -> F32:
    return dequantize(Matrix(kind, data))


def root_mean_square(
    kind: GGMLQuantizationType, x: F32, encoded: NDArray[np.uint8], weights: F32 | float = 1.0
) -> float:
    return float(np.sqrt((weights * np.square(decode(kind, encoded).astype(np.float64) - x)).mean()))


# --- The same bytes ----------------------------------------------------------------------------------------------


@cache
def defined(kind: GGMLQuantizationType, cols: int, which: int) -> NDArray[np.uint8]:
    return formats.encode(kind, nasty(cols), importances(cols)[which])


@every_context
@pytest.mark.parametrize("kind", ENCODED, **names)
@pytest.mark.parametrize("cols", [256, 768])
def test_bytes_are_those_of_the_definition(ctx: ops.Context, kind: GGMLQuantizationType, cols: int) -> None:
    for which, importance in enumerate(importances(cols)):
        np.testing.assert_array_equal(ops.encode(ctx, kind, nasty(cols), importance), defined(kind, cols, which))


@every_context
@pytest.mark.parametrize("kind", [kind for kind in ENCODED if block_weights(kind) == 32], **names)
def test_rows_of_few_blocks_of_32(ctx: ops.Context, kind: GGMLQuantizationType) -> None:
    for cols in (32, 96, 320, 544):
        x, importance = normal(16, 9, cols), np.square(normal(17, cols))
        for weights in (None, importance):
            np.testing.assert_array_equal(ops.encode(ctx, kind, x, weights), formats.encode(kind, x, weights))


@every_context
@pytest.mark.parametrize("kind", UNSEARCHED, **names)
def test_bytes_are_those_of_gguf(ctx: ops.Context, kind: GGMLQuantizationType) -> None:
    x = normal(12, 300, 320) * np.float32(0.02)
    np.testing.assert_array_equal(
        ops.encode(ctx, kind, x), np.ascontiguousarray(quants.quantize(x, kind)).view(np.uint8)
    )


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float32, (1, 256), elements=st.floats(-30000, 30000, width=32)),
    st.none() | arrays(np.float32, 256, elements=st.floats(0, 2.0**100, width=32)),
    st.sampled_from(WEIGHTED),
)
def test_any_block(x: F32, importance: F32 | None, kind: GGMLQuantizationType) -> None:
    np.testing.assert_array_equal(ops.encode(FIRST_CONTEXT, kind, x, importance), formats.encode(kind, x, importance))


@pytest.mark.parametrize("kind", WEIGHTED, **names)
def test_zeros_of_either_sign(kind: GGMLQuantizationType) -> None:
    x = np.zeros((256, 256), np.float32)
    np.fill_diagonal(x, -0.0)
    for rows in (x, -x):
        np.testing.assert_array_equal(ops.encode(FIRST_CONTEXT, kind, rows), formats.encode(kind, rows))


@every_context
def test_f16_rounds_as_numpy_does(ctx: ops.Context) -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    every = np.sort(every[np.isfinite(every)]).astype(np.float32)
    middle = (every[1:] + every[:-1]) / 2
    x = np.concatenate(
        [every, middle, np.nextafter(middle, np.float32(1e9)), np.nextafter(middle, np.float32(-1e9)), wide(13, 1000)]
    )
    x = x[np.abs(x) < 65520][None]
    np.testing.assert_array_equal(ops.encode(ctx, KINDS.F16, x).view(np.uint16), x.astype(np.float16).view(np.uint16))


# --- Errors ------------------------------------------------------------------------------------------------------

RELATIVE_ERRORS = {
    "IQ4_NL": 0.0745,
    "IQ4_XS": 0.0755,
    "IQ2_XXS": 0.35,
    "IQ2_XS": 0.3,
    "IQ2_S": 0.248,
    "IQ3_XXS": 0.18,
    "IQ3_S": 0.131,
    "Q2_K": 0.271,
    "Q3_K": 0.148,
    "Q4_K": 0.0711,
    "Q5_K": 0.0355,
    "Q6_K": 0.0174,
}
"""Of Gaussian weights, rounded up."""


@pytest.mark.parametrize("kind", SEARCHED, **names)
def test_errors_of_gaussian_weights(kind: GGMLQuantizationType) -> None:
    x = normal(18, 64, 2048)
    error = root_mean_square(kind, x, ops.encode(FIRST_CONTEXT, kind, x))
    assert 0.97 * RELATIVE_ERRORS[kind.name] < error < RELATIVE_ERRORS[kind.name]


def explained(kind: GGMLQuantizationType, x: F32, weights: F32 | None) -> NDArray[np.float64]:
    """Of each block: how long what is decoded is along the weights."""
    decoded = decode(kind, ops.encode(FIRST_CONTEXT, kind, x, weights)).astype(np.float64)
    sums = [
        ((1 if weights is None else weights) * x * a).reshape(-1, block_weights(kind)).sum(axis=1) for a in (decoded, x)
    ]
    return np.asarray(sums[0] / sums[1], np.float64)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", WEIGHTED, **names)
def test_errors_are_orthogonal_to_the_weights(kind: GGMLQuantizationType, weighted: bool) -> None:
    """With scales of least squares a block would be too short: by 7% at q2_k."""
    x = generator(27).laplace(size=(64, 1024)).astype(np.float32)
    importance = generator(28).gamma(0.7, size=1024).astype(np.float32) if weighted else np.ones(1024, np.float32)
    np.testing.assert_allclose(explained(kind, x, importance), 1, atol=2e-3)


def test_a_block_that_is_mostly_error_stays_short() -> None:
    """One scale for weights of which the larger do not count and the smaller fall below its step."""
    x, importance = normal(29, 32, 256), np.ones(256, np.float32)
    x[:, 16:] *= np.float32(0.01)
    importance[16:] = 1e4
    assert explained(KINDS.Q2_K, x, importance).max() < 0.9


@pytest.mark.parametrize("kind", WEIGHTED, **names)
def test_importance_moves_the_error_to_other_columns(kind: GGMLQuantizationType) -> None:
    x, importance = normal(19, 64, 1024), generator(20).gamma(0.7, size=1024).astype(np.float32)
    plain, weighted = (
        ops.encode(FIRST_CONTEXT, kind, x, weights) for weights in (np.ones(1024, np.float32), importance)
    )
    assert root_mean_square(kind, x, weighted, importance) < 0.98 * root_mean_square(kind, x, plain, importance)
    assert root_mean_square(kind, x, weighted) > root_mean_square(kind, x, plain)


@pytest.mark.parametrize("kind", WEIGHTED, **names)
def test_only_ratios_of_importance_matter(kind: GGMLQuantizationType) -> None:
    x, importance = normal(21, 8, 512), np.square(normal(22, 512))
    want = ops.encode(FIRST_CONTEXT, kind, x, importance)
    for factor in (2.0**-60, 2.0**60):
        np.testing.assert_array_equal(ops.encode(FIRST_CONTEXT, kind, x, importance * np.float32(factor)), want)


@pytest.mark.parametrize("kind", [KINDS.F32, KINDS.F16, KINDS.BF16, KINDS.Q8_0], **names)
def test_types_that_ignore_importance(kind: GGMLQuantizationType) -> None:
    x = normal(23, 8, 512)
    np.testing.assert_array_equal(
        ops.encode(FIRST_CONTEXT, kind, x, np.square(x[0])), ops.encode(FIRST_CONTEXT, kind, x)
    )


@pytest.mark.parametrize("kind", ENCODED, **names)
def test_zeros_stay_zeros(kind: GGMLQuantizationType) -> None:
    assert not decode(kind, ops.encode(FIRST_CONTEXT, kind, np.zeros((2, 512), np.float32))).any()


@pytest.mark.parametrize("kind", SEARCHED, **names)
@pytest.mark.parametrize("value", [1.0, -1.0, 0.37, -1e-4, 1e4])
def test_constant_blocks_are_nearly_exact(kind: GGMLQuantizationType, value: float) -> None:
    x = np.full((1, 256), value, np.float32)
    np.testing.assert_allclose(
        decode(kind, ops.encode(FIRST_CONTEXT, kind, x)), x, rtol=2e-3 if abs(value) > 1e-3 else 0.1
    )


@pytest.mark.parametrize("kind", SEARCHED[1:], **names)
def test_weights_too_small_for_a_plain_scale_survive(kind: GGMLQuantizationType) -> None:
    """d = 1e-6 / (largest code * largest scale) would be zero in f16: the smallest f16 takes its
    place.
    """
    x = normal(24, 8, 256) * np.float32(1e-6)
    assert root_mean_square(kind, x, ops.encode(FIRST_CONTEXT, kind, x)) < 0.5 * float(
        np.sqrt(np.square(x.astype(np.float64)).mean())
    )


# --- What is refused ---------------------------------------------------------------------------------------------


@every_context
@pytest.mark.parametrize("kind", ENCODED, **names)
def test_what_a_type_cannot_hold(ctx: ops.Context, kind: GGMLQuantizationType) -> None:
    too_large: dict[str, list[float]] = {
        "F32": [],
        "F16": [65520, -65520],
        "BF16": [float.fromhex("0x1.ffp127"), -3.4e38],
        "Q8_0": [65520 * 127.0, -1e30],
        "Q4_0": [65520 * 8.0, -1e30],
        "Q4_1": [65520 * 15.0, -65520, -1e30],
        "Q5_0": [65520 * 16.0, -1e30],
        "Q5_1": [65520 * 31.0, -65520, -1e30],
    }
    bad = too_large.get(kind.name) or [
        sign * size
        for size in ((3 if kind in LATTICES else 1.02) * 65520 * LARGEST_SCALED.get(kind.name, 1), 1e30)
        for sign in (1, -1)
    ]
    for value in [np.nan, np.inf, -np.inf, *(bad if kind != KINDS.F32 else [])]:
        x = normal(14, 7, 512)
        x[5, 511] = x[6, 0] = value
        assert row_of(ops.encode, ctx, kind, x) == 5
    if kind in (KINDS.Q4_1, KINDS.Q5_1):  # each value is finite, their difference is not
        x = normal(14, 7, 512)
        x[5, 510:] = 3e38, -3e38
        assert row_of(ops.encode, ctx, kind, x) == 5


@pytest.mark.parametrize("kind", SEARCHED, **names)
def test_large_weights_that_fit(kind: GGMLQuantizationType) -> None:
    x = normal(25, 2, 512)
    x[1, 40] = -0.7 * 65504 * LARGEST_SCALED[kind.name]
    if kind in (KINDS.Q2_K, KINDS.Q4_K, KINDS.Q5_K):
        x[1, 40] *= -1
    decoded = decode(kind, ops.encode(FIRST_CONTEXT, kind, x))
    if kind in LATTICES:
        assert np.isfinite(decoded).all()
        assert 0.55 < decoded[1, 40] / x[1, 40] < 1.02
    else:
        np.testing.assert_allclose(decoded[1, 40], x[1, 40], rtol=0.02)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_importance_must_be_finite_and_not_negative(value: float) -> None:
    importance = np.ones(256, np.float32)
    importance[77] = value
    with pytest.raises(InvalidArgumentError, match=r"^importance\[77\]: expected"):
        ops.encode(FIRST_CONTEXT, KINDS.Q4_K, normal(26, 2, 256), importance)
    with pytest.raises(InvalidArgumentError, match="importance"):
        ops.encode(FIRST_CONTEXT, KINDS.Q4_K, normal(26, 2, 256), importance[:-1])


def test_other_types_and_parts_of_blocks() -> None:
    for kind in set(GGMLQuantizationType) - set(ENCODED):
        with pytest.raises(PymixtralError):
            ops.encode(FIRST_CONTEXT, kind, normal(15, 1, 256))
    for kind in ENCODED[3:]:
        with pytest.raises(InvalidArgumentError, match=f"multiple of {block_weights(kind)}"):
            ops.encode(FIRST_CONTEXT, kind, normal(15, 1, 48))
