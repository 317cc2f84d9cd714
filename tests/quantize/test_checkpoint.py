"""Checkpoint directories: single and sharded, and each way in which parts can contradict others."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pymixtral.errors import CheckpointError, InvalidArgumentError
from pymixtral.quantize import plan, quantize
from pymixtral.quantize.sources.opening import open_checkpoint
from pymixtral.quantize.vocabulary.reading import read_vocabulary
from support.checkpoints import Shape, config_json, make_checkpoint, make_tensors, write_safetensors

SHAPE = Shape(n_vocab=64, n_layers=1)
INDEX = "model.safetensors.index.json"
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
Tensors = dict[str, Any]


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    make_checkpoint(tmp_path / "hf", SHAPE, seed=9, shards=2)
    return tmp_path / "hf"


def edit_index(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    index = json.loads((directory / INDEX).read_text())
    change(index)
    (directory / INDEX).write_text(json.dumps(index))


def refused(directory: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(directory)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_sharded_and_single_hold_the_same(tmp_path: Path, shards: int) -> None:
    source = make_checkpoint(tmp_path, SHAPE, seed=9, shards=shards)
    checkpoint = open_checkpoint(tmp_path)
    assert len(checkpoint.files) == shards
    assert checkpoint.tensors.keys() == source.keys()
    for name, array in source.items():
        np.testing.assert_array_equal(checkpoint.tensors[name].floats(slice(None)), array)


def test_index_naming_a_missing_shard(sharded: Path) -> None:
    (sharded / SHARDS[1]).unlink()
    refused(sharded, INDEX, f"expected the shard {SHARDS[1]}", "found none")


@pytest.mark.parametrize(
    "shard", ["../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..\\x.safetensors", "C:x.safetensors"]
)
def test_index_leading_out_of_the_directory(sharded: Path, shard: str) -> None:
    (sharded / "sub").mkdir()
    for place in (sharded / "sub", sharded.parent):
        shutil.copy(sharded / SHARDS[0], place / "x.safetensors")
    edit_index(sharded, lambda index: index["weight_map"].update({"model.norm.weight": shard}))
    refused(sharded, INDEX, "model.norm.weight", "plain")


@pytest.mark.parametrize("shard", ["..", "", "pytorch_model.bin", "config.json", None, 3, [SHARDS[0]]])
def test_index_naming_no_safetensors_file(sharded: Path, shard: Any) -> None:
    edit_index(sharded, lambda index: index["weight_map"].update({"model.norm.weight": shard}))
    refused(sharded, INDEX, "model.norm.weight", "plain")


@pytest.mark.parametrize("name", ["x" * 300, "\u20ac" * 90, "a\nb", "a\u2028b", "a\x1b[31mb", "a\0b", "a\ud800b"])
def test_index_with_a_name_that_no_file_has(sharded: Path, name: str) -> None:
    edit_index(sharded, lambda index: index["weight_map"].update({"model.norm.weight": f"{name}.safetensors"}))
    with pytest.raises(CheckpointError, match=r"plain \.safetensors name of at most 255 bytes") as caught:
        open_checkpoint(sharded)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["x" * 300, "y/" * 2500, "a\0b", "a\nb", "a\u2028b", "a\ud800b"])
def test_a_source_that_no_file_can_be(tmp_path: Path, name: str) -> None:
    for call in (open_checkpoint, plan):
        with pytest.raises(CheckpointError) as caught:
            call(tmp_path / name)  # type: ignore[operator]
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 600


def test_a_source_whose_files_the_system_does_not_show(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stat(path: Path, **_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "stat", stat)
    for call in (open_checkpoint, read_vocabulary):
        with pytest.raises(CheckpointError, match=r"cannot be read \(Permission denied\): check the path"):
            call(sharded)  # type: ignore[operator]


@pytest.mark.parametrize("value", ["8", [], np.zeros(2), -1, "x\n" * 500])
def test_targets_that_are_no_numbers(tiny_checkpoint: Path, value: Any) -> None:
    both: dict[str, Any] = {"type": "q4_0", "target_bytes": value}
    for options in (both, {"target_bytes": value}, {"target_bpw": value}):
        with pytest.raises(InvalidArgumentError) as caught:
            plan(tiny_checkpoint, progress=False, **options)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("source", [None, b"model", 3, ""])
def test_a_source_that_is_no_path(tmp_path: Path, source: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="expected source to be"):
        plan(source)
    with pytest.raises(InvalidArgumentError, match="expected source to be"):
        quantize(source, tmp_path / "a.gguf")
    with pytest.raises(InvalidArgumentError, match="expected dest to be"):
        quantize(tmp_path, source)


@pytest.mark.parametrize("weight_map", [None, [], {}, "x"])
def test_index_without_a_map(sharded: Path, weight_map: Any) -> None:
    edit_index(sharded, lambda index: index.update(weight_map=weight_map))
    refused(sharded, INDEX, "weight_map")


def test_index_placing_a_tensor_in_the_wrong_shard(sharded: Path) -> None:
    edit_index(sharded, lambda index: index["weight_map"].update({"model.norm.weight": SHARDS[0]}))
    refused(sharded, "model.norm.weight", SHARDS[0], SHARDS[1])


def test_index_naming_a_tensor_that_no_shard_holds(sharded: Path) -> None:
    edit_index(sharded, lambda index: index["weight_map"].update({"model.ghost.weight": SHARDS[0]}))
    refused(sharded, "model.ghost.weight", "found none there")


def test_shard_with_a_tensor_that_the_index_does_not_list(sharded: Path) -> None:
    edit_index(sharded, lambda index: index["weight_map"].pop("model.norm.weight"))
    refused(sharded, "model.norm.weight", SHARDS[1])


def test_shard_named_twice_in_the_index(sharded: Path) -> None:
    text = (sharded / INDEX).read_text()
    (sharded / INDEX).write_text(text.replace('"weight_map": {', f'"weight_map": {{"lm_head.weight": "{SHARDS[0]}",'))
    refused(sharded, INDEX, "found 'lm_head.weight' twice")


def write(tmp_path: Path, change: Callable[[Tensors], Any], **config: Any) -> Path:
    tensors: Tensors = dict(make_tensors(SHAPE, seed=9))
    change(tensors)
    (tmp_path / "config.json").write_text(json.dumps(config_json(SHAPE) | config))
    write_safetensors(tmp_path / "model.safetensors", tensors)
    return tmp_path


def test_missing_tensor(tmp_path: Path) -> None:
    name = "model.layers.0.block_sparse_moe.experts.3.w2.weight"
    refused(write(tmp_path, lambda tensors: tensors.pop(name)), "1 missing", name)


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.q_proj.bias", "model.layers.1.input_layernorm.weight", "x\ny"]
)
def test_unexpected_tensor(tmp_path: Path, name: str) -> None:
    directory = write(tmp_path, lambda tensors: tensors.update({name: np.zeros(3, np.float32)}))
    refused(directory, "1 unexpected", repr(name))


def test_missing_and_unexpected_tensors_in_one_sentence(tmp_path: Path) -> None:
    directory = write(tmp_path, lambda tensors: tensors.update({"head": tensors.pop("lm_head.weight")}))
    refused(directory, "1 missing, such as lm_head.weight", "1 unexpected, such as 'head'")


@pytest.mark.parametrize(
    "name", ["model.norm.weight", "model.embed_tokens.weight", "model.layers.0.self_attn.k_proj.weight"]
)
def test_wrong_shape(tmp_path: Path, name: str) -> None:
    directory = write(tmp_path, lambda tensors: tensors.update({name: tensors[name][:-1]}))
    refused(directory, name, "as its configuration says")


def test_shape_of_other_rank(tmp_path: Path) -> None:
    refused(
        write(tmp_path, lambda tensors: tensors.update({"model.norm.weight": tensors["model.norm.weight"][None]})),
        "[1, 64]",
        "[64]",
    )


@pytest.mark.parametrize("stored", [False, True])
def test_tied_checkpoint_needs_no_head(tmp_path: Path, stored: bool) -> None:
    directory = write(
        tmp_path, lambda tensors: None if stored else tensors.pop("lm_head.weight"), tie_word_embeddings=True
    )
    assert "output.weight" not in {target.name for target in open_checkpoint(directory).targets}


def test_directory_without_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config_json(SHAPE)))
    refused(tmp_path, "expected a checkpoint with model.safetensors, ", "consolidated.safetensors")


def test_no_such_directory(tmp_path: Path) -> None:
    refused(tmp_path / "absent", "no such directory")
    (tmp_path / "config.json").write_bytes(b"{}")
    refused(tmp_path / "config.json", "one file of a checkpoint", "name its directory")
