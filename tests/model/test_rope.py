"""Rope scaling: the definition in float64, and what the papers promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from pymixtral.model.rope import RopeScaling, llama3_factors


def yarn(scaling: RopeScaling, base: float, d: int) -> NDArray[np.float64]:
    """The formulas of arXiv:2309.00071, section 3.2, with the ramp over pairs that the authors'
    code has.
    """
    i = np.arange(d // 2)
    theta = base ** (-2.0 * i / d)

    def pair(rotations: float) -> float:
        return d * math.log(scaling.n_ctx_original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = max(math.floor(pair(scaling.beta_fast)), 0), min(math.ceil(pair(scaling.beta_slow)), d - 1)
    ramp = np.clip((i - low) / max(high - low, 0.001), 0, 1)
    return theta / scaling.factor * ramp + theta * (1 - ramp)


@pytest.mark.parametrize("base", [1e4, 1e6])
@pytest.mark.parametrize("d", [16, 64, 128])
@pytest.mark.parametrize(("factor", "n_ctx"), [(4.0, 4096), (16.0, 8192), (1.5, 300), (64.0, 40)])
@pytest.mark.parametrize("betas", [(32.0, 1.0), (8.0, 2.0)])
def test_yarn_is_the_paper_s(base: float, d: int, factor: float, n_ctx: int, betas: tuple[float, float]) -> None:
    scaling = RopeScaling("yarn", factor, 1.0, n_ctx, *betas)
    found = scaling.frequencies(base, d)
    np.testing.assert_allclose(found, yarn(scaling, base, d), rtol=1e-13)
    assert np.all(found[:-1] > found[1:])
    assert scaling.table_factor() == pytest.approx(0.1 * math.log(factor) + 1, rel=1e-15)


def test_yarn_keeps_fast_pairs_and_divides_slow_ones() -> None:
    plain, scaled = RopeScaling().frequencies(1e4, 128), RopeScaling("yarn", 16.0, 1.0, 4096).frequencies(1e4, 128)
    rotations = 4096 * plain / (2 * math.pi)
    np.testing.assert_array_equal(scaled[rotations > 40], plain[rotations > 40])
    np.testing.assert_array_equal(scaled[rotations < 0.8], plain[rotations < 0.8] / 16)
    between = (rotations < 30) & (rotations > 1.2)
    assert between.sum() > 10
    assert np.all((scaled[between] < plain[between]) & (scaled[between] > plain[between] / 16))


def test_factors_of_cosines_and_sines() -> None:
    assert RopeScaling(attn_factor=0.5).table_factor() == 0.5
    assert RopeScaling("linear", 4.0, 0.5).table_factor() == 0.5
    assert RopeScaling("yarn", 40.0, 0.5, 4096).table_factor() == pytest.approx(0.5 * (1 + 0.1 * math.log(40)))
    # mscale / mscale_all_dim of Hugging Face: equal ones cancel
    assert RopeScaling("yarn", 40.0, 1.0, 4096, log_multiplier=1.0).table_factor() == 1.0
    ratio = (1 + 0.1 * math.log(40)) / (1 + 0.0707 * math.log(40))
    assert RopeScaling("yarn", 40.0, 1.0, 4096, log_multiplier=0.707).table_factor() == pytest.approx(ratio)


def test_the_digits_do_not_depend_on_the_machine() -> None:
    scaling = RopeScaling("yarn", 8.0, 1.0, 1024)
    assert [x.hex() for x in scaling.frequencies(1e4, 8)] == [
        "0x1.0000000000000p+0",
        "0x1.2222222222222p-4",
        "0x1.1111111111111p-8",
        "0x1.0624dd2f1a9fcp-13",
    ]
    assert scaling.table_factor().hex() == "0x1.353bd3fd8bbe4p+0"


def llama3(base: float, d: int, factor: float, low: float, high: float, n_ctx: int) -> NDArray[np.float64]:
    """The scaled frequencies by the code of Llama 3.1's release, with its three cases."""
    scaled = []
    for frequency in base ** (-2.0 * np.arange(d // 2) / d):
        wavelength = 2 * math.pi / frequency
        if wavelength < n_ctx / high:
            scaled.append(frequency)
        elif wavelength > n_ctx / low:
            scaled.append(frequency / factor)
        else:
            smooth = (n_ctx / wavelength - low) / (high - low)
            scaled.append((1 - smooth) * frequency / factor + smooth * frequency)
    return np.array(scaled)


@pytest.mark.parametrize(("base", "d"), [(1e4, 64), (5e5, 64), (5e5, 128), (1e6, 16)])
@pytest.mark.parametrize("numbers", [(8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192), (2.5, 0.5, 3.0, 300)])
def test_llama3_is_the_release_s(base: float, d: int, numbers: tuple[float, float, float, int]) -> None:
    factors = llama3_factors(base, d, *numbers)
    np.testing.assert_array_equal(np.float32(factors), factors)
    assert min(factors) == 1.0
    assert max(factors) == numbers[0]
    assert any(1.0 < factor < numbers[0] for factor in factors)
    found = RopeScaling(factors=factors).frequencies(base, d)
    np.testing.assert_allclose(found, llama3(base, d, *numbers), rtol=6e-8)  # half a unit of float32


def test_factors_divide_before_another_scaling() -> None:
    factors = (1.0, 2.0, 4.0, 8.0)
    for kind in ("none", "linear", "yarn"):
        plain = RopeScaling(kind, 4.0, n_ctx_original=100)
        found = RopeScaling(kind, 4.0, n_ctx_original=100, factors=factors)
        np.testing.assert_array_equal(found.frequencies(1e4, 8) * factors, plain.frequencies(1e4, 8))
        assert found.table_factor() == plain.table_factor()


@pytest.mark.parametrize(
    ("scaling", "keys"),
    [
        (RopeScaling(), {}),
        (RopeScaling(factors=(1.0,)), {}),
        (RopeScaling("linear", 4.0, 0.5), {"type": "linear", "factor": 4.0, "attn_factor": 0.5}),
        (
            RopeScaling("yarn", 4.0, 1.0, 64, 32.0, 2.0),
            {"type": "yarn", "factor": 4.0, "original_context_length": 64, "yarn_beta_slow": 2.0},
        ),
        (
            RopeScaling("yarn", 4.0, 1.0, 64, 16.0, 1.0, 0.5),
            {
                "type": "yarn",
                "factor": 4.0,
                "original_context_length": 64,
                "yarn_beta_fast": 16.0,
                "yarn_log_multiplier": 0.5,
            },
        ),
    ],
)
def test_metadata_of_a_scaling(scaling: RopeScaling, keys: dict[str, object]) -> None:
    assert scaling.to_gguf() == {f"llama.rope.scaling.{key}": value for key, value in keys.items()}
