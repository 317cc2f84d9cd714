"""The NumPy formats against gguf's own, and the C encoders against both, byte for byte."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from pymixtral import ops
from pymixtral.errors import NonFiniteError
from pymixtral.files.types import FLOAT_TYPES, Matrix, show_type
from pymixtral.quantize.encoders import formats
from pymixtral.reference.blocks import dequantize

BLOCK_KINDS = list(formats.UNSEARCHED)
TYPES = {show_type(kind): kind for kind in (*FLOAT_TYPES, *BLOCK_KINDS)}
KINDS = list(TYPES.values())
STEPS = {"Q8_0": 127, "Q4_0": 8, "Q4_1": 15, "Q5_0": 16, "Q5_1": 31}
"""Into how many steps the largest magnitude, or for q4_1 and q5_1 the range, is divided."""
SMALLEST_SCALE = 2.0**-118
"""Blocks below it may have a scale whose inverse overflows; there gguf casts infinity to an
integer, which C and NumPy leave undefined."""


def peer_encode(kind: GGMLQuantizationType, x: NDArray[np.float32]) -> NDArray[np.uint8]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.ascontiguousarray(quants.quantize(x, kind)).view(np.uint8).reshape(x.shape[0], -1)


def decode(kind: GGMLQuantizationType, data: NDArray[np.uint8]) -> NDArray[np.float32]:
    return dequantize(Matrix(kind, data))


def samples() -> Iterator[tuple[str, NDArray[np.float32]]]:
    rng = np.random.Generator(np.random.PCG64(11))
    yield "normal", rng.standard_normal((300, 96)).astype(np.float32)
    yield "zeros", np.zeros((2, 32), np.float32)
    yield "negative zeros", np.full((2, 32), -0.0, np.float32)
    yield "ties of magnitude", rng.choice([-1, 1], (64, 32)).astype(np.float32)
    yield "halves", (rng.integers(-254, 255, (400, 32)) / 2).astype(np.float32)
    # With the last element 127 (q8_0) or -8 (q4_0) the scale is 1, so that each x.5 is a tie.
    yield (
        "ties of q8_0",
        np.pad(rng.integers(-253, 254, (400, 31)) / 2, ((0, 0), (0, 1)), constant_values=127).astype(np.float32),
    )
    yield (
        "ties of q4_0",
        np.pad(rng.integers(-15, 16, (400, 31)) / 2, ((0, 0), (0, 1)), constant_values=-8).astype(np.float32),
    )
    yield (
        "halves of unsigned codes",
        np.pad(rng.integers(1, 30, (400, 30)) / 2, ((0, 0), (1, 1)), constant_values=(0, 15)).astype(np.float32),
    )
    yield (
        "ties of bf16",
        (rng.choice([-1, 1], (40, 32)) * (1 + (rng.integers(0, 128, (40, 32)) + 0.5) / 128)).astype(np.float32),
    )
    yield "one large", (np.eye(32) * -3.7).astype(np.float32)
    exponents = 2.0 ** np.arange(-118, 15)[:, None]
    yield "all exponents of f16 and below", (rng.uniform(-1, 1, (len(exponents), 32)) * exponents).astype(np.float32)


SAMPLES = dict(samples())


@pytest.mark.parametrize("kind", KINDS, ids=TYPES)
@pytest.mark.parametrize("name", SAMPLES)
def test_encode_equals_gguf_and_c(kind: GGMLQuantizationType, name: str) -> None:
    x = SAMPLES[name]
    ours = formats.encode(kind, x)
    np.testing.assert_array_equal(ours, peer_encode(kind, x))
    with ops.Context(2) as context:
        np.testing.assert_array_equal(ops.encode(context, kind, x), ours)


@pytest.mark.parametrize("kind", BLOCK_KINDS, ids=lambda kind: kind.name.lower())
def test_blocks_too_small_for_their_scale_are_zero(kind: GGMLQuantizationType) -> None:
    x = (
        np.random.Generator(np.random.PCG64(5)).uniform(-1, 1, (60, 32)) * 2.0 ** np.arange(-149, -89)[:, None]
    ).astype(np.float32)
    ours = formats.encode(kind, x)
    np.testing.assert_array_equal(decode(kind, ours), 0 * x)
    with ops.Context(1) as context:
        np.testing.assert_array_equal(ops.encode(context, kind, x), ours)


@settings(max_examples=150, deadline=None)
@given(
    arrays(np.float32, (2, 32), elements=st.floats(-65504, 65504, width=32, allow_subnormal=False)).filter(
        lambda x: bool(((np.abs(x).max(axis=1) >= SMALLEST_SCALE) | (np.abs(x).max(axis=1) == 0)).all())
    ),
    st.sampled_from(KINDS),
)
def test_any_block_encodes_as_gguf_does(x: NDArray[np.float32], kind: GGMLQuantizationType) -> None:
    x = x + np.float32(0)  # no -0: gguf's minimum of 0 and -0 may be either
    np.testing.assert_array_equal(formats.encode(kind, x), peer_encode(kind, x))


@pytest.mark.parametrize("kind", BLOCK_KINDS, ids=lambda kind: kind.name.lower())
def test_error_is_within_half_a_step(kind: GGMLQuantizationType) -> None:
    x = SAMPLES["normal"]
    blocks = x.reshape(-1, 32)
    affine = kind in (GGMLQuantizationType.Q4_1, GGMLQuantizationType.Q5_1)
    step = (np.ptp(blocks, axis=1, keepdims=True) if affine else np.abs(blocks).max(axis=1, keepdims=True)) / STEPS[
        kind.name
    ]
    error = np.abs(decode(kind, formats.encode(kind, x)).reshape(-1, 32) - blocks)
    # q4_0 and q5_0 have no code for +8 and +16: opposite to the largest element the error may reach
    # a whole step.
    limit = step * (1.0 if kind in (GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q5_0) else 0.5)
    assert (error <= limit + step * 0.07).all()


@pytest.mark.parametrize(
    ("kind", "largest"),
    [
        ("bf16", float.fromhex("0x1.fefffep127")),
        ("f16", 65519.0),
        ("q8_0", 127 * 65519.0),
        ("q4_0", 8 * 65519.0),
        ("q4_1", 15 * 65519.0),
        ("q5_0", 16 * 65519.0),
        ("q5_1", 31 * 65519.0),
    ],
)
def test_largest_weight(kind: str, largest: float) -> None:
    x = np.zeros((2, 64), np.float32)
    x[1, 40] = largest
    with ops.Context(1) as context:
        np.testing.assert_array_equal(ops.encode(context, TYPES[kind], x), formats.encode(TYPES[kind], x))
        assert np.isfinite(decode(TYPES[kind], formats.encode(TYPES[kind], x))).all()
        x[1, 40] *= np.float32(1.001)
        with pytest.raises(NonFiniteError) as caught:
            ops.encode(context, TYPES[kind], x)
    assert caught.value.row == 1
    with np.errstate(invalid="ignore"):
        assert np.isinf(decode(TYPES[kind], formats.encode(TYPES[kind], x))[1, 40])


@pytest.mark.parametrize("kind", KINDS, ids=TYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_c_refuses_what_is_not_finite(kind: GGMLQuantizationType, value: float) -> None:
    x = np.ones((5, 64), np.float32)
    x[3, 63] = value
    with ops.Context(2) as context, pytest.raises(NonFiniteError) as caught:
        ops.encode(context, kind, x)
    assert caught.value.row == 3
