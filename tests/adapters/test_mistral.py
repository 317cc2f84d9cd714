"""Adapters in Mistral's own form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from pymixtral import AdapterError
from pymixtral.adapters.opening import open_adapter
from pymixtral.files.names import TensorName
from support.adapters import CONFIG, DENSE, model_config

NAMES = {
    "layers.0.attention.wq": ("attn_q", (32, 16)),
    "layers.0.attention.wk": ("attn_k", (16, 16)),
    "layers.1.attention.wv": ("attn_v", (16, 16)),
    "layers.1.attention.wo": ("attn_output", (16, 32)),
    "layers.1.feed_forward.gate": ("ffn_gate_inp", (4, 16)),
    "layers.1.feed_forward.experts.0.w1": ("ffn_gate", (24, 16)),
    "layers.1.feed_forward.experts.2.w2": ("ffn_down", (16, 24)),
    "layers.1.feed_forward.experts.3.w3": ("ffn_up", (24, 16)),
}


def make(tmp_path: Path, lora: Any = None, names: dict[str, tuple[str, tuple[int, int]]] = NAMES) -> dict[str, Any]:
    """Writes an adapter of rank 3. Returns its tensors."""
    random = np.random.default_rng(3)
    tensors = {}
    for name, (_, (rows, cols)) in names.items():
        tensors[f"{name}.lora_A.weight"] = random.standard_normal((3, cols)).astype(np.float32)
        tensors[f"{name}.lora_B.weight"] = random.standard_normal((rows, 3)).astype(np.float32)
    save_file(tensors, tmp_path / "lora.safetensors")
    params = {"dim": 16, "lora": {"rank": 3, "scaling": 2.0, "dropout": 0.0} if lora is None else lora}
    (tmp_path / "params.json").write_text(json.dumps(params))
    return tensors


def test_rows_stay_in_their_order_and_the_scale_is_multiplied_in(tmp_path: Path) -> None:
    tensors = make(tmp_path)
    adapter = open_adapter(tmp_path, model_config(CONFIG))
    assert len(adapter.pairs) == len(NAMES)
    for name, (stem, _) in NAMES.items():
        parts = name.split(".")
        pair = adapter.pairs[TensorName(stem, int(parts[1]), expert=int(parts[4]) if "experts" in name else None)]
        assert np.array_equal(pair.a, tensors[f"{name}.lora_A.weight"])
        assert np.array_equal(pair.b.T, 2 * tensors[f"{name}.lora_B.weight"])


def test_dense_models_have_them_too(tmp_path: Path) -> None:
    tensors = make(tmp_path, names={"layers.1.feed_forward.w3": ("ffn_up", (24, 16))})
    adapter = open_adapter(tmp_path, model_config(DENSE))
    assert np.array_equal(adapter.pairs[TensorName("ffn_up", 1)].a, tensors["layers.1.feed_forward.w3.lora_A.weight"])


@pytest.mark.parametrize(
    ("lora", "words"),
    [
        ({}, "a rank from 1"),
        ([], "a rank from 1"),
        ({"rank": 3}, "a scaling from"),
        ({"rank": 3, "scaling": True}, "a scaling from"),
        ({"rank": 3, "scaling": 1e9}, "a scaling from"),
        ({"rank": 0, "scaling": 2}, "a rank from 1"),
        ({"rank": 4, "scaling": 2}, "expected rank 4"),
    ],
)
def test_row_26_params_that_make_no_sense(tmp_path: Path, lora: Any, words: str) -> None:
    make(tmp_path, lora)
    with pytest.raises(AdapterError, match=words):
        open_adapter(tmp_path, model_config(CONFIG))


def test_row_26_without_params_the_scale_is_not_guessed(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "params.json").unlink()
    with pytest.raises(AdapterError, match=r'"scaling": 2\.0'):
        open_adapter(tmp_path, model_config(CONFIG))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("output", "not computed"),
        ("tok_embeddings", "not computed"),
        ("layers.0.attention_norm", "not computed"),
        ("layers.2.attention.wq", "2 layers"),
        ("layers.1.feed_forward.experts.4.w1", "4 experts"),
        ("layers.1.feed_forward.w1", "which it does not have"),
    ],
)
def test_row_26_tensors_that_are_not_computed_are_refused_by_name(tmp_path: Path, name: str, words: str) -> None:
    make(tmp_path, names=NAMES | {name: ("", (32, 16))})
    with pytest.raises(AdapterError, match=words):
        open_adapter(tmp_path, model_config(CONFIG))


def test_row_26_an_empty_file(tmp_path: Path) -> None:
    make(tmp_path, names={})
    with pytest.raises(AdapterError, match="found none"):
        open_adapter(tmp_path, model_config(CONFIG))
