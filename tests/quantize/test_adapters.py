"""Adapters that are merged into what is quantized, and converted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from pymixtral import AdapterError, CheckpointError, InvalidArgumentError, OutputError, convert_adapter
from pymixtral.adapters.opening import open_adapter
from pymixtral.files.names import TensorName
from pymixtral.model.adapter import Adapter
from pymixtral.quantize import plan, quantize
from pymixtral.quantize.adapters import read_numbers
from support.adapters import ADAPTERS, CONFIG, GOLDENS, case_config, difference, probe
from support.checkpoints import Shape, make_checkpoint

SHAPE = Shape(hidden=16, ffn=24, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, n_experts=4, n_vocab=64)
CASES = sorted(path.name for path in ADAPTERS.iterdir() if not path.name.startswith("dense-"))
Matrices = dict[str, NDArray[np.float32]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "hf"
    make_checkpoint(path, SHAPE, seed=4, shards=3)
    return path


def matrices(path: Path) -> Matrices:
    """All matrices of an f32 file, experts one by one."""
    found = {}
    for tensor in GGUFReader(path).tensors:
        name = TensorName.parse(tensor.name)
        assert name is not None
        if name.merged:
            found |= {str(name.of_expert(e)): np.array(part) for e, part in enumerate(tensor.data)}
        else:
            found[str(name)] = np.array(tensor.data)
    return found


@pytest.mark.parametrize("case", CASES)
def test_merged_weights_are_the_sums_that_peft_makes(checkpoint: Path, tmp_path: Path, case: str) -> None:
    quantize(checkpoint, tmp_path / "base.gguf", "f32", progress=False)
    report = quantize(checkpoint, tmp_path / "merged.gguf", "f32", adapters=[ADAPTERS / case], progress=False)
    before, after = matrices(tmp_path / "base.gguf"), matrices(tmp_path / "merged.gguf")
    with np.load(GOLDENS / f"{case}.npz") as golden:
        assert {name for name in before if not np.array_equal(before[name], after[name])} == set(golden)
        for name in golden:
            delta = after[name].astype(np.float64) - before[name]
            if "attn_q" in name or "attn_k" in name:  # of each head, first the even rows, then the odd ones
                delta = delta.reshape(-1, 4, 2, delta.shape[1]).swapaxes(1, 2).reshape(delta.shape)
            assert np.abs(delta @ probe(delta.shape[1]) - golden[name]).max() < 1e-5
    assert any("adapters add" in note and str(ADAPTERS / case) in note for note in report.notes)


def test_sums_are_rounded_once_and_scales_count(checkpoint: Path, tmp_path: Path) -> None:
    case = "v4-all"
    quantize(checkpoint, tmp_path / "base.gguf", "f32", progress=False)
    given = [(ADAPTERS / case, 0.5), (str(ADAPTERS / "v5-down"), -2.0)]
    quantize(checkpoint, tmp_path / "merged.gguf", "f32", adapters=given, progress=False)
    before, after = matrices(tmp_path / "base.gguf"), matrices(tmp_path / "merged.gguf")
    read: list[tuple[Adapter, float]] = [(open_adapter(path, case_config(case)), scale) for path, scale in given]
    for text, weights in before.items():
        name, exact = TensorName.parse(text), weights.astype(np.longdouble)
        for adapter, scale in read:
            if name in adapter.pairs:
                pair = adapter.pairs[name]
                exact = exact + scale * (pair.b.T.astype(np.longdouble) @ pair.a.astype(np.longdouble))
        assert np.array_equal(after[text], exact.astype(np.float32))


@pytest.mark.parametrize("per_expert", [False, True])
def test_a_gguf_source_of_quantized_types_is_encoded_again_where_it_changes(
    tiny_q8_0: Path, tmp_path: Path, per_expert: bool
) -> None:
    config = read_numbers(tiny_q8_0)
    folder = tmp_path / "adapter"
    folder.mkdir()
    random = np.random.default_rng(1)
    name = "layers.1.feed_forward.experts.5.w2"
    tensors = {
        f"{name}.lora_A.weight": random.standard_normal((2, config.ffn)).astype(np.float32),
        f"{name}.lora_B.weight": random.standard_normal((config.hidden, 2)).astype(np.float32),
    }
    save_file(tensors, folder / "lora.safetensors")
    (folder / "params.json").write_text(json.dumps({"lora": {"rank": 2, "scaling": 0.1}}))
    dest = tmp_path / "merged.gguf"
    quantize(tiny_q8_0, dest, "q8_0", adapters=[folder], per_expert=per_expert, progress=False)
    before = {tensor.name: tensor.data for tensor in GGUFReader(tiny_q8_0).tensors}
    after = {tensor.name: tensor.data for tensor in GGUFReader(dest).tensors}
    for expert in range(8):
        old = before["blk.1.ffn_down_exps.weight"][expert]
        new = after[f"blk.1.ffn_down.{expert}.weight"] if per_expert else after["blk.1.ffn_down_exps.weight"][expert]
        assert np.array_equal(old, new) == (expert != 5)
    kept = after["blk.0.ffn_down.5.weight"] if per_expert else after["blk.0.ffn_down_exps.weight"][5]
    assert np.array_equal(before["blk.0.ffn_down_exps.weight"][5], kept)


def test_a_plan_checks_adapters_too(checkpoint: Path) -> None:
    assert plan(checkpoint, "q8_0", adapters=[ADAPTERS / "v4-all"], progress=False).n_weights > 0
    with pytest.raises(AdapterError, match="own base model"):
        plan(checkpoint, "q8_0", adapters=[ADAPTERS / "dense-all"], progress=False)


@pytest.mark.parametrize(
    ("adapters", "words"),
    [
        ("a/path", "a list of paths"),
        ([3], "a path"),
        ([(ADAPTERS / "v4-all", float("nan"))], "scale"),
        ([(ADAPTERS / "v4-all", 1e4)], "scale"),
        ([(ADAPTERS / "v4-all", "2")], "scale"),
    ],
)
def test_arguments_that_are_none(checkpoint: Path, adapters: object, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        plan(checkpoint, "q8_0", adapters=adapters, progress=False)  # type: ignore[arg-type]


def test_row_18_an_adapter_is_not_replaced(checkpoint: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "a.gguf"
    convert_adapter(ADAPTERS / "v4-all", adapter, checkpoint)
    content = adapter.read_bytes()
    with pytest.raises(OutputError, match="a file of its own"):
        quantize(checkpoint, adapter, "q8_0", adapters=[adapter], force=True, progress=False)
    with pytest.raises(OutputError, match="a file of its own"):
        convert_adapter(adapter, adapter, checkpoint, force=True)
    assert adapter.read_bytes() == content


@pytest.mark.parametrize("case", CASES)
def test_conversions_keep_what_an_adapter_does(checkpoint: Path, tmp_path: Path, case: str) -> None:
    """PEFT to GGUF and back; the model is a folder with a configuration, and a GGUF file."""
    quantize(checkpoint, tmp_path / "model.gguf", "q8_0", progress=False)
    first = convert_adapter(ADAPTERS / case, tmp_path / "a.gguf", checkpoint)
    second = convert_adapter(tmp_path / "a.gguf", tmp_path / "peft", tmp_path / "model.gguf")
    assert first.files == (tmp_path / "a.gguf",)
    assert second.files == (tmp_path / "peft" / "adapter_config.json", tmp_path / "peft" / "adapter_model.safetensors")
    assert first.n_bytes == (tmp_path / "a.gguf").stat().st_size
    for path in (tmp_path / "a.gguf", tmp_path / "peft"):
        assert difference(open_adapter(path, case_config(case)), case) < 1e-6


def test_a_configuration_alone_is_enough(tmp_path: Path) -> None:
    config = CONFIG | {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = convert_adapter(ADAPTERS / "v5-all", tmp_path / "a.gguf", tmp_path)
    assert (found.n_pairs, found.rank) == (34, 2)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json or params\.json"):
        convert_adapter(ADAPTERS / "v5-all", tmp_path / "b.gguf", tmp_path)


@pytest.mark.parametrize("dest", ["a.gguf", "a"])
def test_an_adapter_of_zeros_is_not_converted(checkpoint: Path, tmp_path: Path, dest: str) -> None:
    source = shutil.copytree(ADAPTERS / "v5-down", tmp_path / "source")
    tensors = load_file(source / "adapter_model.safetensors")
    zeros = {name: np.zeros_like(array) for name, array in tensors.items() if ".experts" in name}
    save_file(zeros, source / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="found one of zeros"):
        convert_adapter(source, tmp_path / dest, checkpoint)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_row_18_destinations_of_conversions(checkpoint: Path, tmp_path: Path) -> None:
    place = tmp_path / "peft"
    convert_adapter(ADAPTERS / "v4-all", place, checkpoint)
    with pytest.raises(OutputError, match="found one that exists"):
        convert_adapter(ADAPTERS / "v5-all", place, checkpoint)
    convert_adapter(ADAPTERS / "v4-attention", place, checkpoint, force=True)
    assert difference(open_adapter(place, case_config("v4-attention")), "v4-attention") < 1e-6
    with pytest.raises(OutputError):
        convert_adapter(place, place, checkpoint, force=True)
    (tmp_path / "file").write_text("")
    for force in (False, True):
        with pytest.raises(OutputError):
            convert_adapter(ADAPTERS / "v4-all", tmp_path / "file", checkpoint, force=force)
    with pytest.raises(OutputError, match="create"):
        convert_adapter(ADAPTERS / "v4-all", tmp_path / "missing" / "peft", checkpoint)
    assert not (tmp_path / "missing").exists()
