"""The closing report: sizes and errors by class."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from pymixtral.errors import CheckpointError, UnsupportedError
from pymixtral.files.gguf import GGUFFile
from pymixtral.quantize import heat, plan, quantize
from pymixtral.quantize.report import ERROR_STRIDE, ErrorMeter, report_row
from pymixtral.quantize.sources.opening import open_checkpoint
from support.checkpoints import TINY_MIXTRAL, Shape, make_checkpoint, read_tensors


def test_report_of_tiny_mixtral(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    report = quantize(TINY_MIXTRAL, path, "q8_0", progress=False)
    assert report.file_bytes == path.stat().st_size
    assert report.n_weights == sum(array.size for array in read_tensors(TINY_MIXTRAL).values())
    assert 8.5 < report.bits_per_weight < 8.53
    errors = {entry.name: entry.relative_error for entry in report.classes}
    assert list(errors) == [
        "embedding",
        "attention",
        "experts gate",
        "experts up",
        "experts down",
        "norms and router",
        "output",
    ]
    assert errors.pop("norms and router") == 0
    assert all(0.004 < error < 0.007 for error in errors.values())
    assert [note[:9] for note in report.notes] == ["read back"]


def test_error_is_that_of_the_measured_rows(tmp_path: Path) -> None:
    report = quantize(TINY_MIXTRAL, tmp_path / "tiny.gguf", tensors=[("*", "q4_0")], progress=False)
    embedding = read_tensors(TINY_MIXTRAL)["model.embed_tokens.weight"][::ERROR_STRIDE]
    kind = GGMLQuantizationType.Q4_0
    difference = quants.dequantize(quants.quantize(embedding, kind), kind).astype(np.float64) - embedding
    expected = np.linalg.norm(difference) / np.linalg.norm(embedding.astype(np.float64))
    assert report.classes[0].relative_error == pytest.approx(expected, rel=1e-9)


def test_text_has_a_row_for_each_class_and_fits_a_terminal(tmp_path: Path) -> None:
    report = quantize(TINY_MIXTRAL, tmp_path / "tiny.gguf", "q4_0", progress=False)
    lines = str(report).splitlines()
    for entry in report.classes:
        assert any(entry.name in line and ", ".join(entry.types) in line for line in lines)
    assert all(len(line) <= 80 for line in lines[1:])
    assert f"every {ERROR_STRIDE}th row" in str(report)
    assert "exact" in str(report)


def test_a_checkpoint_without_a_tokenizer_is_refused_before_the_work(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "hf", Shape(n_vocab=64), seed=1)
    (tmp_path / "hf" / "tokenizer.model").unlink()
    for work in (partial(quantize, dest=tmp_path / "m.gguf"), plan):
        with pytest.raises(CheckpointError, match=r"found none of them: put it .*no_tokenizer=True"):
            work(tmp_path / "hf", progress=False)
    assert not (tmp_path / "m.gguf").exists()
    (tmp_path / "hf" / "tekken.json").write_text('{"config": {"pattern": "x"}}')
    with pytest.raises(UnsupportedError, match=r"tekken.*no_tokenizer=True"):
        quantize(tmp_path / "hf", tmp_path / "m.gguf", progress=False)
    quantize(tmp_path / "hf", tmp_path / "m.gguf", no_tokenizer=True, progress=False)
    with GGUFFile(tmp_path / "m.gguf") as file:
        assert not [key for key in file.metadata if key.startswith("tokenizer.")]


def test_notes_tell_what_is_unusual(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "hf", Shape(ffn=80, n_vocab=64), seed=1)
    report = quantize(tmp_path / "hf", tmp_path / "m.gguf", "q8_0", no_tokenizer=True, progress=False)
    assert any("no tokenizer was asked for" in note for note in report.notes)
    assert any("2 matrices are f16" in note and "blk.0.ffn_down_exps.weight" in note for note in report.notes)
    assert {entry.name: entry.types for entry in report.classes}["experts down"] == {"f16": 2}


def test_dense_models_have_feed_forward_classes(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "hf", Shape(n_experts=0, n_vocab=64), seed=1)
    names = [entry.name for entry in quantize(tmp_path / "hf", tmp_path / "m.gguf", progress=False).classes]
    assert names[2:5] == ["feed-forward gate", "feed-forward up", "feed-forward down"]


def test_zeros_have_no_error() -> None:
    meter = ErrorMeter()
    meter.add_rows(
        "output.weight", 0, np.zeros((2, 32), np.float32), np.zeros((2, 32), np.float32), np.ones(32, np.float32)
    )
    tensor = meter.tensor("output.weight", GGMLQuantizationType.F32, (2, 32), 256)
    assert (tensor.relative_error, tensor.weighted_error, tensor.expert_errors) == (0, None, ())
    assert meter.classes([tensor])[0].relative_error == 0


def test_errors_of_experts_and_weighted_errors() -> None:
    meter = ErrorMeter()
    exact, importance = np.array([[3, 4]], np.float32), np.array([2, 0.5], np.float32)
    meter.add_rows("blk.0.ffn_up_exps.weight", 0, exact, exact + np.array([[0.3, 0]], np.float32), importance)
    meter.add_rows("blk.0.ffn_up_exps.weight", 1, exact, exact - np.array([[0, 0.4]], np.float32), importance)
    tensor = meter.tensor("blk.0.ffn_up_exps.weight", GGMLQuantizationType.Q4_0, (2, 1, 2), 9)
    assert tensor.expert_errors == pytest.approx((0.3 / 5, 0.4 / 5), rel=1e-6)
    assert tensor.relative_error == pytest.approx((0.25 / 50) ** 0.5, rel=1e-6)
    assert tensor.weighted_error == pytest.approx(((0.09 * 2 + 0.16 * 0.5) / (2 * (9 * 2 + 16 * 0.5))) ** 0.5, rel=1e-6)


def test_json_holds_everything(tmp_path: Path) -> None:
    report = quantize(
        TINY_MIXTRAL, tmp_path / "tiny.gguf", "q8_0", tensors=[("blk.2.*_exps.weight", "q4_0")], progress=False
    )
    found = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert found["bits_per_weight"] == report.bits_per_weight
    assert found["dest"] == str(tmp_path / "tiny.gguf")
    tensors = {tensor["name"]: tensor for tensor in found["tensors"]}
    assert len(tensors) == 43
    assert tensors["blk.2.ffn_up_exps.weight"]["type"] == "q4_0"
    assert tensors["blk.2.ffn_up_exps.weight"]["shape"] == [8, 512, 256]
    assert len(tensors["blk.2.ffn_up_exps.weight"]["expert_errors"]) == 8
    assert all(0.05 < error < 0.12 for error in tensors["blk.2.ffn_up_exps.weight"]["expert_errors"])
    assert all(0.004 < error < 0.007 for error in tensors["blk.1.ffn_up_exps.weight"]["expert_errors"])
    assert tensors["output.weight"]["expert_errors"] == []


def test_heat_map_is_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    heat.draw(quantize(TINY_MIXTRAL, tmp_path / "tiny.gguf", "q4_0", progress=False), tmp_path / "errors.png")
    assert (tmp_path / "errors.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_heat_map_of_a_dense_model_is_refused(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "hf", Shape(n_experts=0, n_vocab=64), seed=1)
    with pytest.raises(UnsupportedError, match="dense"):
        heat.check(open_checkpoint(tmp_path / "hf"))


def test_heat_map_without_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UnsupportedError, match=r"pymixtral\[plot\]"):
        heat.check(open_checkpoint(TINY_MIXTRAL))


def test_output_is_not_attention_output() -> None:
    assert report_row("output.weight") == "output"
    assert report_row("output_norm.weight") == "norms and router"
    assert report_row("blk.7.attn_output.weight") == "attention"
    assert report_row("blk.7.ffn_gate_inp.weight") == "norms and router"
