"""Checkpoints in Mistral's own form: consolidated or stacked tensors beside a params.json."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pymixtral.errors import CheckpointError, UnsupportedError
from pymixtral.files.gguf import GGUFFile
from pymixtral.quantize import quantize
from pymixtral.quantize.sources.mistral import read_params
from support.checkpoints import make_checkpoint, make_tensors, write_safetensors
from support.releases import DENSE, SMALL, consolidated, params, quantized, stacked, write_consolidated


@pytest.mark.parametrize("shards", [1, 2])
def test_dense_model_in_mistral_s_form(tmp_path: Path, shards: int) -> None:
    tensors = make_checkpoint(tmp_path / "hf", DENSE, seed=4)
    expected = quantized(tmp_path / "hf", tmp_path / "a.gguf", "f16")
    assert (
        quantized(write_consolidated(tmp_path / "own", tensors, DENSE, shards=shards), tmp_path / "b.gguf", "f16")
        == expected
    )
    with GGUFFile(tmp_path / "a.gguf") as a, GGUFFile(tmp_path / "b.gguf") as b:
        differing = {"general.name", "llama.context_length"}  # which params.json does not tell
        ours, theirs = ({key: bytes(entry) for key, entry in file.encoded.items()} for file in (a, b))
        assert {key for key in ours | theirs if ours.get(key) != theirs.get(key)} == differing


@pytest.mark.parametrize("kept", [[0, 2], [1, 2], [0, 1]])
def test_row_17_consolidated_file_missing(tmp_path: Path, kept: list[int]) -> None:
    source = write_consolidated(tmp_path / "own", make_tensors(SMALL, seed=1), SMALL, shards=3)
    (missing,) = {0, 1, 2} - set(kept)
    (source / f"consolidated.{missing:02}-of-03.safetensors").unlink()
    with pytest.raises(CheckpointError, match="expected all files" if missing else "expected all files|missing"):
        quantize(source, tmp_path / "m.gguf", progress=False)


def test_row_17_stacked_tensor_of_another_shape(tmp_path: Path) -> None:
    tensors = stacked(make_tensors(SMALL, seed=1), SMALL)
    source = write_consolidated(tmp_path / "own", make_tensors(SMALL, seed=1), SMALL)
    name = "layers.1.block_sparse_moe.w2"
    write_safetensors(source / "consolidated.safetensors", tensors | {name: np.ascontiguousarray(tensors[name].T)})
    with pytest.raises(
        CheckpointError, match=rf"{re.escape(name)}: expected shape \[384, 64\], as params.json says, found \[64, 384\]"
    ):
        quantize(source, tmp_path / "m.gguf", progress=False)


def test_row_17_stacked_tensor_beside_single_ones(tmp_path: Path) -> None:
    source = write_consolidated(tmp_path / "own", make_tensors(SMALL, seed=1), SMALL)
    both = consolidated(make_tensors(SMALL, seed=1), SMALL) | stacked(make_tensors(SMALL, seed=1), SMALL)
    write_safetensors(source / "consolidated.safetensors", both)
    with pytest.raises(CheckpointError, match="found it stacked with others and by itself"):
        quantize(source, tmp_path / "m.gguf", progress=False)


def test_row_17_consolidated_tensor_in_two_files(tmp_path: Path) -> None:
    source = write_consolidated(tmp_path / "own", make_tensors(SMALL, seed=1), SMALL, shards=2)
    shutil.copy(source / "consolidated.00-of-02.safetensors", source / "consolidated.01-of-02.safetensors")
    with pytest.raises(CheckpointError, match=r"'tok_embeddings\.weight': expected it in one file"):
        quantize(source, tmp_path / "m.gguf", progress=False)


def test_row_17_consolidated_tensor_missing_or_unexpected(tmp_path: Path) -> None:
    source = write_consolidated(tmp_path / "own", make_tensors(SMALL, seed=1), SMALL)
    tensors = consolidated(make_tensors(SMALL, seed=1), SMALL)
    tensors["layers.0.attention.bias"] = tensors.pop("layers.1.feed_forward.experts.2.w2.weight")
    write_safetensors(source / "consolidated.safetensors", tensors)
    with pytest.raises(
        CheckpointError, match=r"layers\.1\.feed_forward\.experts\.2\.w2\.weight.*'layers\.0\.attention\.bias'"
    ):
        quantize(source, tmp_path / "m.gguf", progress=False)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("dim", 0, "dim: expected a whole number from 1 to 131072, found 0"),
        ("dim", None, "dim: expected a whole number from 1 to 131072, found None"),
        ("n_layers", 10**9, "n_layers"),
        ("n_kv_heads", 3, "n_kv_heads: expected a divisor of n_heads, which is 4, found 3"),
        ("head_dim", 15, "multiple of 8"),
        ("norm_eps", -1, "norm_eps"),
        ("vocab_size", -1, "vocab_size"),
        ("rope_theta", "1e6", "rope_theta"),
        ("sliding_window", 0, "sliding_window"),
        ("moe", [8, 2], "moe: expected an object, found [8, 2]"),
        ("moe", {"num_experts": 8}, "num_experts_per_tok is missing"),
        (
            "moe",
            {"num_experts": 8, "num_experts_per_tok": 9},
            "num_experts_per_tok: expected a whole number from 1 to 8, found 9",
        ),
        (
            "moe",
            {"num_experts": 1, "num_experts_per_tok": 1},
            "num_experts: expected a whole number from 2 to 64, found 1",
        ),
        ("dim", 2**17 + 8, "dim: expected a whole number from 1 to 131072, found 131080"),
        ("n_heads", 1025, "n_heads: expected a whole number from 1 to 1024, found 1025"),
        ("max_seq_len", 2**20 + 1, "max_seq_len: expected a whole number from 1 to 1048576, found 1048577"),
        (
            "moe",
            {"num_experts": 65, "num_experts_per_tok": 2},
            "num_experts: expected a whole number from 2 to 64, found 65",
        ),
    ],
)
def test_row_17_params_that_make_no_sense(tmp_path: Path, key: str, value: object, words: str) -> None:
    (tmp_path / "params.json").write_text(json.dumps(params(SMALL) | {key: value}))
    with pytest.raises(CheckpointError, match=re.escape(words)):
        read_params(tmp_path / "params.json")


def test_params_with_a_feature_that_is_not_computed(tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text(json.dumps(params(SMALL) | {"vision_encoder": {"image_size": 1024}}))
    with pytest.raises(UnsupportedError, match="vision_encoder"):
        read_params(tmp_path / "params.json")


def test_params_left_out_have_mistral_s_defaults(tmp_path: Path) -> None:
    values = params(SMALL)
    del values["rope_theta"], values["head_dim"]
    (tmp_path / "params.json").write_text(json.dumps(values))
    found, _ = read_params(tmp_path / "params.json")
    assert (found.rope_base, found.head_dim, found.n_ctx_train) == (1e6, 16, 32768)
    (tmp_path / "params.json").write_text(json.dumps(params(DENSE) | {"rope_theta": None, "max_seq_len": 4096}))
    found, _ = read_params(tmp_path / "params.json")
    assert (found.rope_base, found.window, found.n_ctx_train) == (1e4, 512, 4096)


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
_JSON = (
    _SCALARS
    | st.lists(_SCALARS, max_size=3)
    | st.dictionaries(st.sampled_from(["num_experts", "num_experts_per_tok"]), _SCALARS)
)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([*params(SMALL), "moe", "sliding_window", "max_seq_len", "tied_embeddings"]), _JSON, max_size=4
    )
)
def test_row_17_any_params_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "params.json"
    path.write_text(json.dumps(params(SMALL) | changes))
    try:
        found, _ = read_params(path)
    except (CheckpointError, UnsupportedError):
        return
    assert found.hidden >= 1
    assert found.n_heads % found.n_kv_heads == 0
    assert found.n_experts_used <= found.n_experts <= 64
