"""Rope in metadata: frequencies, the scalings that files name, and what makes no sense."""

from __future__ import annotations

import math
import re
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pymixtral.errors import ModelConfigError, UnsupportedError
from pymixtral.files.gguf import GGUFFile
from pymixtral.model.config import ModelConfig
from pymixtral.model.rope import RopeScaling
from support.configs import DENSE, MIXTRAL, YARN, read, write


def test_rope_frequencies(tmp_path: Path) -> None:
    frequencies = read(tmp_path, MIXTRAL).rope_frequencies()
    assert frequencies.dtype == np.float64
    assert (frequencies.shape, frequencies[0]) == ((64,), 1.0)
    # Correctly rounded: within half a unit of the exact base^(-i/64), taken as a root of a power to
    # 80 digits.
    with localcontext() as context:
        context.prec = 80
        root = Decimal(10)
        for _ in range(5):
            root = root.sqrt()  # 10^(1/32); base^(-i/64) = 10^(-6i/64) = root^(-3i)
        for i, frequency in enumerate(frequencies.tolist()):
            assert abs(Decimal(frequency) - 1 / root ** (3 * i)) <= Decimal(math.ulp(frequency)) / 2


@pytest.mark.parametrize(
    "keys",
    [
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
        {"llama.rope.scaling.factor": 4.0},
        {"llama.rope.scale_linear": 4.0},
        {"llama.rope.scale_linear": 8.0, "llama.rope.scaling.factor": 4.0, "llama.rope.scaling.attn_factor": 1.0},
    ],
)
def test_linear_rope_scaling_divides_the_frequencies(tmp_path: Path, keys: dict[str, Any]) -> None:
    config = read(tmp_path, {**MIXTRAL, **keys})
    assert (config.rope_scaling, config.rope_factor()) == (RopeScaling("linear", 4.0), 1.0)
    assert np.array_equal(config.rope_frequencies() * 4, read(tmp_path, MIXTRAL).rope_frequencies())


@pytest.mark.parametrize(
    "keys",
    [
        {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0},
        {"llama.rope.scaling.factor": 0.0},
        {"llama.rope.scale_linear": 1.0},
        {"llama.rope.scaling.type": "yarn"},
        {
            "llama.rope.scaling.type": "yarn",
            "llama.rope.scaling.factor": 1.0,
            "llama.rope.scaling.yarn_log_multiplier": 1.0,
        },
    ],
)
def test_no_rope_scaling(tmp_path: Path, keys: dict[str, Any]) -> None:
    assert read(tmp_path, {**MIXTRAL, **keys}).rope_scaling == RopeScaling()


def test_yarn(tmp_path: Path) -> None:
    assert read(tmp_path, {**DENSE, **YARN}).rope_scaling == RopeScaling("yarn", 16.0, n_ctx_original=8192)
    more = {
        "attn_factor": 0.5,
        "yarn_beta_fast": 16.0,
        "yarn_beta_slow": 2.0,
        "yarn_log_multiplier": 0.25,
        "yarn_ext_factor": 1.0,
        "yarn_attn_factor": 1.0,
    }
    keys = {f"llama.rope.scaling.{key}": value for key, value in more.items()}
    assert read(tmp_path, {**DENSE, **YARN, **keys}).rope_scaling == RopeScaling(
        "yarn", 16.0, 0.5, 8192, 16.0, 2.0, 0.25
    )
    del keys["llama.rope.scaling.attn_factor"]
    short = {**DENSE, **YARN, "llama.rope.scaling.original_context_length": None}
    assert read(tmp_path, short).rope_scaling.n_ctx_original == 32768  # the model's own


@pytest.mark.parametrize(
    ("key", "value"),
    [("type", "longrope"), ("type", "llama3"), ("type", ""), ("yarn_ext_factor", 0.5), ("yarn_attn_factor", 1.5)],
)
def test_other_rope_scalings_are_refused_by_name(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(UnsupportedError, match=rf"llama\.rope\.scaling\.{key}.*not supported"):
        read(tmp_path, {**MIXTRAL, **YARN, f"llama.rope.scaling.{key}": value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("attn_factor", x) for x in (0.0, -1.0, math.nan, math.inf, 1)),
        *(("original_context_length", x) for x in (0, -1, 2**20 + 1, 8192.0)),
        *(("yarn_beta_fast", x) for x in (0.0, -1.0, math.nan, math.inf)),
        *(("yarn_beta_slow", x) for x in (0.0, -1.0, math.nan)),
        *(("yarn_log_multiplier", x) for x in (-1.0, math.nan, math.inf)),
        ("factor", 0.5),
    ],
)
def test_row_11_rope_scalings_that_make_no_sense(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(ModelConfigError, match=rf"'llama\.rope\.scaling\.{key}': expected"):
        read(tmp_path, {**MIXTRAL, **YARN, f"llama.rope.scaling.{key}": value})


def test_row_11_a_base_of_1_has_no_yarn(tmp_path: Path) -> None:
    with pytest.raises(ModelConfigError, match=r"'llama\.rope\.freq_base': expected more than 1"):
        read(tmp_path, {**MIXTRAL, **YARN, "llama.rope.freq_base": 1.0})


def read_with(directory: Path, factors: NDArray[Any], metadata: dict[str, Any] = MIXTRAL) -> ModelConfig:
    path = write(directory / "model.gguf", metadata, {"rope_freqs.weight": factors})
    with GGUFFile(path) as file:
        return ModelConfig.from_gguf(file)


@pytest.mark.parametrize("scaling", [{}, {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}])
def test_factors_of_a_tensor_divide_the_frequencies(tmp_path: Path, scaling: dict[str, Any]) -> None:
    factors = np.linspace(1, 8, 64).astype(np.float32)
    config = read_with(tmp_path, factors, MIXTRAL | scaling)
    assert config.rope_scaling.factors == tuple(factors.tolist())
    plain = read(tmp_path, MIXTRAL | scaling).rope_frequencies()
    np.testing.assert_allclose(config.rope_frequencies(), plain / factors, rtol=1e-15)
    names = [str(name) for name, _ in config.tensors()]
    assert "rope_freqs.weight" in names
    assert "rope_freqs.weight" not in [str(name) for name, _ in read(tmp_path, MIXTRAL).tensors()]


ONES = np.ones(64, np.float32)


@pytest.mark.parametrize(
    ("factors", "found"),
    [
        *((ONES * wrong, f"found {wrong:g}") for wrong in (0.5, 0.0, -1.0, math.nan, math.inf, 1e7)),
        (ONES[:-1], "found shape [63]"),
        (np.ones((1, 64), np.float32), "found shape [1, 64]"),
        (ONES.astype(np.float16), "type F16"),
        (ONES.astype(np.float64), "type F64"),
    ],
)
def test_row_11_factors_that_make_no_sense(tmp_path: Path, factors: NDArray[Any], found: str) -> None:
    with pytest.raises(ModelConfigError, match=rf"'rope_freqs\.weight': expected .*{re.escape(found)}"):
        read_with(tmp_path, factors)
