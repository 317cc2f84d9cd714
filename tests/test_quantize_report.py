"""The closing report: sizes and errors by class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from checkpoints import TINY_MIXTRAL, Shape, make_checkpoint, read_tensors
from gguf import GGMLQuantizationType, quants
from pymixtral.quantize import quantize
from pymixtral.quantize.report import ERROR_STRIDE, ErrorMeter, quantity, size, tensor_class


def test_report_of_tiny_mixtral(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    report = quantize(TINY_MIXTRAL, path, "q8_0", progress=False)
    assert report.file_bytes == path.stat().st_size
    assert report.n_weights == sum(array.size for array in read_tensors(TINY_MIXTRAL).values())
    assert 8.5 < report.bits_per_weight < 8.53
    errors = {entry.name: entry.relative_error for entry in report.classes}
    assert list(errors) == ["embedding", "attention", "experts gate", "experts up", "experts down", "norms and router", "output"]
    assert errors.pop("norms and router") == 0
    assert all(0.004 < error < 0.007 for error in errors.values())
    assert report.notes == ()


def test_error_is_that_of_the_measured_rows(tmp_path: Path) -> None:
    report = quantize(TINY_MIXTRAL, tmp_path / "tiny.gguf", "q4_0", progress=False)
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


def test_notes_tell_what_is_unusual(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "hf", Shape(ffn=80, n_vocab=64), seed=1)
    report = quantize(tmp_path / "hf", tmp_path / "m.gguf", "q8_0", progress=False)
    assert any("no tokenizer.model" in note for note in report.notes)
    assert any("2 matrices are f16" in note and "blk.0.ffn_down_exps.weight" in note for note in report.notes)
    assert {entry.name: entry.types for entry in report.classes}["experts down"] == {"f16": 2}


def test_dense_models_have_feed_forward_classes(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "hf", Shape(n_experts=0, n_vocab=64), seed=1)
    names = [entry.name for entry in quantize(tmp_path / "hf", tmp_path / "m.gguf", progress=False).classes]
    assert names[2:5] == ["feed-forward gate", "feed-forward up", "feed-forward down"]


def test_class_of_zeros_has_no_error() -> None:
    meter = ErrorMeter()
    meter.add_tensor("output.weight", GGMLQuantizationType.F32, 64, 256)
    meter.add_rows("output.weight", GGMLQuantizationType.F32, np.zeros((2, 32), np.float32), np.zeros((2, 128), np.uint8))
    assert meter.classes()[0].relative_error == 0


def test_output_is_not_attention_output() -> None:
    assert tensor_class("output.weight") == "output"
    assert tensor_class("output_norm.weight") == "norms and router"
    assert tensor_class("blk.7.attn_output.weight") == "attention"
    assert tensor_class("blk.7.ffn_gate_inp.weight") == "norms and router"


def test_units() -> None:
    assert [size(0), size(1023), size(1536), size(90 << 30)] == ["0 bytes", "1023 bytes", "1.5 KiB", "90.0 GiB"]
    assert [quantity(999), quantity(46_702_792_704)] == ["999", "46.7 G"]
