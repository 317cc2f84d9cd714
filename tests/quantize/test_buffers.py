"""Tensors that are no weights, as old releases have them: those that follow from the configuration are left out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pymixtral.arrays import F32
from pymixtral.errors import CheckpointError, UnsupportedError
from pymixtral.quantize import quantize
from support.checkpoints import Shape, config_json, make_checkpoint, make_tensors, write_safetensors
from support.ggufs import contents
from support.releases import SMALL, Tensors, quantized


def frequencies(shape: Shape) -> F32:
    return (shape.rope_base ** (-np.arange(0, shape.head_dim, 2) / shape.head_dim)).astype(np.float32)


def with_buffers(directory: Path, buffers: Tensors, dtype: str = "float32") -> Path:
    make_checkpoint(directory, SMALL, seed=4)
    write_safetensors(directory / "model.safetensors", make_tensors(SMALL, seed=4) | buffers, dtype=dtype)
    return directory


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(
    "names", [["model.rotary_emb.inv_freq"], [f"model.layers.{n}.self_attn.rotary_emb.inv_freq" for n in range(2)]]
)
def test_stored_frequencies_are_compared_and_left_out(tmp_path: Path, names: list[str], dtype: str) -> None:
    make_checkpoint(tmp_path / "hf", SMALL, seed=4, dtype=dtype)
    expected = quantized(tmp_path / "hf", tmp_path / "a.gguf")
    source = with_buffers(tmp_path / "old", dict.fromkeys(names, frequencies(SMALL)), dtype)
    report = quantize(source, tmp_path / "b.gguf", "q4_0", progress=False)
    assert contents(tmp_path / "b.gguf") == expected
    assert [note for note in report.notes if names[0] in note] == [
        f"{len(names)} tensors follow from the configuration and were left out, such as {names[0]}"
    ]


def test_frequencies_before_a_linear_scaling_are_left_out(tmp_path: Path) -> None:
    """transformers of 2023 stored them so, and divided the positions."""
    source = with_buffers(tmp_path, {"model.rotary_emb.inv_freq": frequencies(SMALL)})
    config = config_json(SMALL) | {"rope_scaling": {"type": "linear", "factor": 4.0}}
    (source / "config.json").write_text(json.dumps(config))
    report = quantize(source, tmp_path / "m.gguf", progress=False)
    assert any("1 tensors follow from the configuration" in note for note in report.notes)


@pytest.mark.parametrize("change", [lambda x: x / 2, lambda x: x * 1.02, lambda x: x[:-1], lambda x: x * np.nan])
def test_frequencies_of_another_rope_are_refused(tmp_path: Path, change: Callable[[F32], F32]) -> None:
    name = "model.layers.1.self_attn.rotary_emb.inv_freq"
    source = with_buffers(tmp_path / "hf", {name: np.asarray(change(frequencies(SMALL)), np.float32)})
    with pytest.raises(
        UnsupportedError, match=rf"{re.escape(name)}: expected the 8 frequencies of the base 1e\+06, found others"
    ):
        quantize(source, tmp_path / "m.gguf", progress=False)


def test_masks_are_left_out_and_biases_are_refused(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.bias"
    masks = {
        name: np.ones((1, 1, 8, 8), np.float32),
        "model.layers.0.self_attn.masked_bias": np.full((), -1e9, np.float32),
    }
    source = with_buffers(tmp_path / "a", masks)
    assert any(
        "2 tensors follow from the configuration" in note
        for note in quantize(source, tmp_path / "m.gguf", progress=False).notes
    )
    with pytest.raises(CheckpointError, match=f"1 unexpected, such as '{name}'"):
        quantize(with_buffers(tmp_path / "b", {name: np.ones(64, np.float32)}), tmp_path / "n.gguf", progress=False)
