"""The forms in which a model is published: each gives the same tensors, byte for byte.

Each can be broken in ways that are refused.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pymixtral.arrays import F32
from pymixtral.errors import CheckpointError, OutputError, PymixtralError, UnsupportedError
from pymixtral.files.gguf import GGUFFile
from pymixtral.model.rope import llama3_factors
from pymixtral.quantize import quantize
from pymixtral.quantize.sources.opening import open_checkpoint
from support.checkpoints import (
    TINY_MIXTRAL,
    Shape,
    config_json,
    make_checkpoint,
    make_tensors,
    read_tensors,
    write_safetensors,
)
from support.ggufs import contents, rewrite
from support.releases import (
    DENSE,
    SMALL,
    Tensors,
    fused,
    of_mlx,
    params,
    quantized,
    stacked,
    write_consolidated,
    write_fused,
)

TINY = Shape(hidden=256, ffn=512, n_layers=4, n_heads=8, n_kv_heads=2, head_dim=32, n_experts=8, n_ctx=2048)


@pytest.fixture(scope="module")
def tiny_tensors() -> Tensors:
    return read_tensors(TINY_MIXTRAL)


_FORMS = ["fused", "mlx", "stacked", "no index", "consolidated", "consolidated in three files"]


@pytest.mark.parametrize("form", [*_FORMS, "f32", "bf16", "split", "sharded", "fused gguf"])
def test_each_form_of_tiny_mixtral_gives_the_same_bytes(
    tmp_path: Path, tiny_q4_0: Path, tiny_tensors: Tensors, form: str
) -> None:
    """Its weights are bfloat16, so that f32 and bf16 hold them exactly."""
    if form == "fused":
        source = write_fused(tmp_path / "source", tiny_tensors, TINY, "bfloat16")
    elif form == "mlx":
        source = write_fused(tmp_path / "source", tiny_tensors, TINY, "bfloat16")
        write_safetensors(source / "model.safetensors", of_mlx(tiny_tensors, TINY), dtype="bfloat16")
    elif form == "stacked":
        source = write_consolidated(tmp_path / "source", tiny_tensors, TINY, "bfloat16")
        write_safetensors(source / "consolidated.safetensors", stacked(tiny_tensors, TINY), dtype="bfloat16")
    elif form == "no index":
        source = tmp_path / "source"
        source.mkdir()
        for name in ("config.json", "tokenizer.model"):
            shutil.copy(TINY_MIXTRAL / name, source)
        names = list(tiny_tensors)
        for i in range(3):
            part = {name: tiny_tensors[name] for name in names[i::3]}
            write_safetensors(source / f"model-{i + 1:05}-of-00003.safetensors", part, dtype="bfloat16")
    elif form.startswith("consolidated"):
        source = write_consolidated(tmp_path / "source", tiny_tensors, TINY, "bfloat16", 3 if "three" in form else 1)
    else:
        source = tmp_path / "source.gguf"
        quantize(TINY_MIXTRAL, source, "bf16" if form == "bf16" else "f32", progress=False)
        if form in ("split", "sharded"):
            source = rewrite(
                source, tmp_path / "other.gguf", split=form == "split", shard_tensors=9 if form == "sharded" else 0
            )
        elif form == "fused gguf":
            source = rewrite(source, tmp_path / "other.gguf", fused=True)
    assert quantized(source, tmp_path / "m.gguf") == contents(tiny_q4_0)


def test_any_number_of_experts(tmp_path: Path) -> None:
    """As MergeKit makes them."""
    shape = Shape(n_vocab=64, n_layers=1, n_experts=3, n_experts_used=3)
    tensors = make_checkpoint(tmp_path / "hf", shape, seed=4)
    expected = quantized(tmp_path / "hf", tmp_path / "a.gguf")
    assert expected["blk.0.ffn_up_exps.weight"][1] == (3, 96, 64)
    assert quantized(write_fused(tmp_path / "fused", tensors, shape), tmp_path / "b.gguf") == expected


def test_directory_with_both_forms_is_read_once(tmp_path: Path) -> None:
    """Mistral's repositories hold the model twice."""
    tensors = make_checkpoint(tmp_path / "hf", SMALL, seed=4)
    write_consolidated(tmp_path / "own", tensors, SMALL)
    for path in (tmp_path / "own").iterdir():
        shutil.copy(path, tmp_path / "hf")
    assert quantized(tmp_path / "hf", tmp_path / "a.gguf") == quantized(tmp_path / "own", tmp_path / "b.gguf")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.model", "model.safetensors"])
def test_row_18_no_file_of_the_checkpoint_is_overwritten(tmp_path: Path, name: str) -> None:
    make_checkpoint(tmp_path, Shape(n_layers=1), seed=4)
    before = (tmp_path / name).read_bytes()
    with pytest.raises(OutputError, match="found one that is read"):
        quantize(tmp_path, tmp_path / name, force=True, progress=False)
    assert (tmp_path / name).read_bytes() == before
    quantize(tmp_path, tmp_path / "m.gguf", progress=False)
    quantize(tmp_path, tmp_path / "m.gguf", force=True, progress=False)


# --- Rope --------------------------------------------------------------------------------------------------------

LLAMA3 = replace(SMALL, rope_scaling=("llama3", 8.0, 256))


def test_factors_of_llama3_become_a_tensor(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "hf", LLAMA3, seed=4)
    report = quantize(tmp_path / "hf", tmp_path / "a.gguf", "q4_0", progress=False)
    assert [(t.type, t.shape) for t in report.tensors if t.name == "rope_freqs.weight"] == [("f32", (8,))]
    with GGUFFile(tmp_path / "a.gguf") as file:
        assert not any("scaling" in key for key in file.metadata)
        factors = file.tensors["rope_freqs.weight"].data.view(np.float32)
    assert tuple(factors.tolist()) == llama3_factors(LLAMA3.rope_base, 16, 8.0, 1.0, 4.0, 256)
    quantize(tmp_path / "a.gguf", tmp_path / "b.gguf", "q4_0", progress=False)  # a GGUF source keeps them
    assert contents(tmp_path / "b.gguf") == contents(tmp_path / "a.gguf")
    quantize(tmp_path / "hf", tmp_path / "c.gguf", target_bpw=8, per_expert=True, progress=False)
    assert contents(tmp_path / "c.gguf")["rope_freqs.weight"] == contents(tmp_path / "a.gguf")["rope_freqs.weight"]


def test_a_configuration_that_changes_meanwhile_is_noticed(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "hf", LLAMA3, seed=4)
    checkpoint = open_checkpoint(tmp_path / "hf")
    (tmp_path / "hf" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"config\.json.*changed"):
        checkpoint.check_unchanged()


def test_row_17_factors_in_a_tensor_too(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, LLAMA3, seed=4)
    tensors = make_tensors(LLAMA3, seed=4) | {"rope_freqs.weight": np.ones(8, np.float32)}
    write_safetensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match=r"rope_freqs\.weight: expected it once, found it twice"):
        quantize(tmp_path, tmp_path / "m.gguf", progress=False)


def test_a_llama_is_read_and_its_biases_are_refused(tmp_path: Path) -> None:
    shape = replace(DENSE, window=0)
    make_checkpoint(tmp_path / "hf", shape, seed=4)
    expected = quantized(tmp_path / "hf", tmp_path / "a.gguf")
    config = config_json(shape) | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    assert quantized(tmp_path / "hf", tmp_path / "b.gguf") == expected
    name = "model.layers.0.self_attn.q_proj.bias"
    tensors = make_tensors(shape, seed=4) | {name: np.ones(64, np.float32)}
    write_safetensors(tmp_path / "hf" / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match=f"1 unexpected, such as '{name}'"):
        quantize(tmp_path / "hf", tmp_path / "c.gguf", progress=False)


# --- What is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "advice"),
    [("pytorch_model.bin", "save_pretrained"), ("consolidated.00.pth", "save_file"), ("model.pt", "save_pretrained")],
)
@pytest.mark.parametrize("named", [False, True])
def test_pickles_are_refused_with_the_way_to_convert(tmp_path: Path, name: str, advice: str, named: bool) -> None:
    """A pickle that would tell if it were loaded."""
    (tmp_path / "config.json").write_text(json.dumps(config_json(SMALL)))
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR.")
    with pytest.raises(UnsupportedError, match=f"expected safetensors, found {name}, a Python pickle.*({advice})"):
        quantize(tmp_path / name if named else tmp_path, tmp_path / "m.gguf", progress=False)
    assert not (tmp_path / "ran").exists()


def test_what_is_no_checkpoint_is_refused_in_one_sentence(tmp_path: Path, tiny_f16: Path) -> None:
    def refused(source: Path, *words: str) -> None:
        with pytest.raises(PymixtralError) as caught:
            quantize(source, tmp_path / "m.gguf", progress=False)
        assert "\n" not in str(caught.value)
        for word in words:
            assert word in str(caught.value)

    empty = tmp_path / "empty"
    empty.mkdir()
    refused(empty, "expected a checkpoint with model.safetensors, ", "consolidated.safetensors", "GGUF")
    shutil.copy(tiny_f16, empty / "some.gguf")
    refused(empty, "name one of them", "some.gguf")
    refused(TINY_MIXTRAL / "model.safetensors", "name its directory")
    refused(tmp_path / "absent", "no such directory or file")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model.layers.1.mlp.experts.gate_up_proj", lambda x: x.swapaxes(1, 2)),
        ("model.layers.1.mlp.experts.gate_up_proj", lambda x: x[:3]),
        ("model.layers.0.mlp.experts.down_proj", lambda x: x[:, :-1]),
        ("model.layers.0.mlp.experts.down_proj", lambda x: x[0]),
        ("model.layers.0.mlp.gate.weight", lambda x: x[:-1]),
    ],
)
def test_row_17_fused_tensor_of_another_shape(tmp_path: Path, name: str, change: Callable[[F32], F32]) -> None:
    tensors = fused(make_tensors(SMALL, seed=1), SMALL)
    tensors[name] = np.ascontiguousarray(change(tensors[name]))
    (tmp_path / "config.json").write_text(json.dumps(config_json(SMALL)))
    write_safetensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match="expected shape"):
        quantize(tmp_path, tmp_path / "m.gguf", progress=False)


def test_row_17_fused_and_single_experts_together(tmp_path: Path) -> None:
    tensors = make_tensors(SMALL, seed=1)
    (tmp_path / "config.json").write_text(json.dumps(config_json(SMALL)))
    write_safetensors(tmp_path / "model.safetensors", tensors | fused(tensors, SMALL))
    with pytest.raises(CheckpointError, match="found it twice: by itself, and fused with others"):
        quantize(tmp_path, tmp_path / "m.gguf", progress=False)


@pytest.mark.parametrize(
    "names", [["00001-of-00003", "00003-of-00003"], ["00001-of-99999"], ["00001-of-00002", "00001-of-00003"]]
)
def test_row_17_numbered_files_that_are_not_all(tmp_path: Path, names: list[str]) -> None:
    """No number in a name costs time or memory."""
    for prefix, config in (
        ("model-", ("config.json", config_json(SMALL))),
        ("consolidated.", ("params.json", params(SMALL))),
    ):
        source = tmp_path / prefix
        source.mkdir()
        (source / config[0]).write_text(json.dumps(config[1]))
        for name in names:
            write_safetensors(source / f"{prefix}{name}.safetensors", {})
        with pytest.raises(
            CheckpointError, match=r"expected all files of one checkpoint|expected at most 1024 files, found 99999"
        ):
            quantize(source, tmp_path / "m.gguf", progress=False)
        for path in source.glob("*.safetensors"):
            path.rename(source / f"{prefix}00001-of-{'9' * 200}.safetensors")
        with pytest.raises(CheckpointError, match="expected at most 1024 files"):
            quantize(source, tmp_path / "m.gguf", progress=False)
