"""Checkpoints of GPTQ and AWQ: the same codes in q4_1, and in other types what their weights give."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import quants
from safetensors.numpy import load_file, save_file

from pymixtral import Mixtral
from pymixtral.arrays import F32
from pymixtral.errors import CheckpointError, UnsupportedError
from pymixtral.files import stored as stored_module
from pymixtral.files.gguf import GGUFFile
from pymixtral.files.stored import Type
from pymixtral.files.types import show_type
from pymixtral.quantize import plan, quantize
from pymixtral.quantize.sources.opening import open_checkpoint
from pymixtral.quantize.sources.packed import PackedTensor
from pymixtral.quantize.sources.targets import rope_order
from support.checkpoints import Shape, config_json, write_safetensors
from support.ggufs import contents
from support.packed import Form, Tensors, dequantized, make_packed, numbers, pack

SHAPE = Shape(n_vocab=64, hidden=128, ffn=96, n_heads=8)
DENSE = Shape(n_vocab=64, n_experts=0)
FORMS = {
    "awq": Form(64),
    "awq, a group of a row": Form(-1),
    "gptq": Form(32, 1),
    "gptq, the last group shorter": Form(64, 1),
    "gptq, a group of a row": Form(-1, 2),
    "gptq, groups of more than a row": Form(1024, 2),
    "gptq, symmetric": Form(64, 1, symmetric=True),
    "gptq v2, symmetric": Form(32, 2, symmetric=True),
}
any_form = pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
some_forms = pytest.mark.parametrize("form", [Form(32), Form(64, 1), Form(64, 2, act_order=True)], ids=str)


def in_file_order(name: str, weights: Any, shape: Shape) -> Any:
    """Rows of queries and keys as GGUF has them."""
    heads = {"q_proj": shape.n_heads, "k_proj": shape.n_kv_heads}
    n_heads = next((n for part, n in heads.items() if part in name), 0)
    return weights[rope_order(n_heads, shape.head_dim)] if n_heads else weights


def matrices(path: Path, kind: Type) -> dict[str, Any]:
    """The blocks of all matrices of a type in a file, uint8 [rows, row_bytes], by the checkpoint's names."""
    found: dict[str, Any] = {}
    with GGUFFile(path) as file:
        for target in open_checkpoint(path.parent).targets:
            tensor = file.tensors[target.name]
            if tensor.type == kind:
                parts = tensor.data.reshape(len(target.sources), target.rows, -1)
                found |= {source: part.copy() for source, part in zip(target.sources, parts, strict=True)}
    return found


@pytest.mark.parametrize("shape", [SHAPE, DENSE], ids=["mixture", "dense"])
@any_form
def test_codes_and_scales_are_kept_and_only_the_minimums_are_rounded(tmp_path: Path, form: Form, shape: Shape) -> None:
    stored, packed = make_packed(tmp_path, shape, form)
    report = quantize(tmp_path, tmp_path / "m.gguf", progress=False)
    found = matrices(tmp_path / "m.gguf", Type.Q4_1)
    assert found.keys() == packed.keys()
    largest = 0.0
    for name, data in found.items():
        scales, zeros, codes = (in_file_order(name, x, shape) for x in numbers(packed[name], form))
        blocks = data.reshape(len(data), -1, 20)
        d, m = (np.ascontiguousarray(blocks[..., i : i + 2]).view(np.float16)[..., 0] for i in (0, 2))
        np.testing.assert_array_equal(d, scales[:, ::32])
        exact = -scales[:, ::32] * zeros[:, ::32]
        np.testing.assert_array_equal(m, exact.astype(np.float16))
        low, high = blocks[..., 4:] & 15, blocks[..., 4:] >> 4
        np.testing.assert_array_equal(np.concatenate([low, high], axis=2).reshape(codes.shape), codes)
        values = quants.dequantize(data, Type.Q4_1)
        weights = in_file_order(name, dequantized(stored, {name: packed[name]}, form)[name], shape)
        assert (np.abs(values - weights) <= np.abs(scales) / 128).all()
        if form.symmetric:
            np.testing.assert_array_equal(values, weights)
        largest = max(largest, float(np.abs(m / exact.astype(np.float64) - 1).max()))
    assert largest == 0 if form.symmetric else 0 < largest <= 2**-11
    change = f"changed by {100 * largest:.3g}% at most" if largest else "not changed"
    method = "GPTQ" if form.version else "AWQ"
    assert f"codes of {method} are kept, and scales and their zeros were {change} by rounding to" in str(report.notes)
    assert any(f"quantized already ({len(packed)} matrices by {method}" in note for note in report.notes)


def test_what_is_not_packed_is_as_of_another_checkpoint(tmp_path: Path) -> None:
    stored, _ = make_packed(tmp_path, SHAPE, FORMS["awq"])
    report = quantize(tmp_path, tmp_path / "m.gguf", progress=False)
    assert {tensor.name: tensor.type for tensor in report.tensors if tensor.type not in ("q4_1", "f32")} == {
        "token_embd.weight": "q8_0",
        "output.weight": "q8_0",
    }
    with GGUFFile(tmp_path / "m.gguf") as file:
        router = file.tensors["blk.1.ffn_gate_inp.weight"].data.view(np.float32)
    np.testing.assert_array_equal(router, stored["model.layers.1.block_sparse_moe.gate.weight"].astype(np.float32))


@some_forms
def test_the_model_writes_what_its_weights_write(tmp_path: Path, form: Form) -> None:
    stored, packed = make_packed(tmp_path, SHAPE, form)
    quantize(tmp_path, tmp_path / "m.gguf", "f32" if form.act_order else None, progress=False)
    exact = float_checkpoint(tmp_path / "exact", dequantized(stored, packed, form))
    quantize(exact, tmp_path / "exact.gguf", "f32", progress=False)
    with Mixtral(tmp_path / "m.gguf") as ours, Mixtral(tmp_path / "exact.gguf") as reference:
        ids = ours.tokenize("abcdefghijklmnop")
        a, b = (model.logits(ids).astype(np.float64) for model in (ours, reference))
        assert len(ours.generate("abc", max_tokens=8, ignore_eos=True).tokens) == 8
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.999


def float_checkpoint(directory: Path, weights: dict[str, F32], shape: Shape = SHAPE) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config_json(shape)))
    shutil.copy(directory.parent / "tokenizer.model", directory)
    write_safetensors(directory / "model.safetensors", weights)
    return directory


@pytest.mark.parametrize("options", [{"type": "q8_0"}, {"type": "q4_k_m"}, {"target_bpw": 7.0, "per_expert": True}])
@some_forms
def test_other_types_are_encoded_from_the_exact_weights(tmp_path: Path, form: Form, options: dict[str, Any]) -> None:
    stored, packed = make_packed(tmp_path, SHAPE, form)
    exact = float_checkpoint(tmp_path / "exact", dequantized(stored, packed, form))
    report = quantize(tmp_path, tmp_path / "m.gguf", **options, progress=False)
    quantize(exact, tmp_path / "exact.gguf", **options, progress=False)
    assert contents(tmp_path / "m.gguf") == contents(tmp_path / "exact.gguf")
    (note,) = [note for note in report.notes if "encoded again" in note]
    assert note.endswith("as q4_1 their codes are kept") != form.act_order
    assert not [note for note in report.notes if "are kept, and scales" in note]


@pytest.mark.parametrize("version", [1, 2])
def test_a_symmetric_checkpoint_is_q4_0_exactly(tmp_path: Path, version: int) -> None:
    form = Form(32, version, symmetric=True)
    stored, packed = make_packed(tmp_path, SHAPE, form)
    report = quantize(tmp_path, tmp_path / "m.gguf", "q4_0", progress=False)
    found = matrices(tmp_path / "m.gguf", Type.Q4_0)
    assert found.keys() == packed.keys()
    weights = dequantized(stored, packed, form)
    for name, data in found.items():
        np.testing.assert_array_equal(quants.dequantize(data, Type.Q4_0), in_file_order(name, weights[name], SHAPE))
    assert any("were not changed by rounding" in note for note in report.notes)
    assert not any("q4_0 keeps its codes too" in note for note in report.notes)
    assert any("q4_0 keeps its codes too" in note for note in plan(tmp_path, progress=False).notes)


def test_types_of_single_tensors_and_experts(tmp_path: Path) -> None:
    make_packed(tmp_path, SHAPE, FORMS["gptq"])
    report = quantize(
        tmp_path, tmp_path / "m.gguf", tensors=[("blk.0.ffn_down.*", "q6_k")], per_expert=True, progress=False
    )
    types = {tensor.name: tensor.type for tensor in report.tensors}
    assert (types["blk.0.ffn_down.3.weight"], types["blk.1.ffn_down.3.weight"]) == ("q8_0", "q4_1")
    assert [note for note in report.notes if note.startswith("4 tensors of GPTQ are encoded again")]


def test_a_plan_says_what_will_be_written(tmp_path: Path) -> None:
    make_packed(tmp_path, SHAPE, FORMS["awq"])
    planned = {tensor.target.name: show_type(tensor.type) for tensor in plan(tmp_path, progress=False).tensors}
    report = quantize(tmp_path, tmp_path / "m.gguf", progress=False)
    assert planned == {tensor.name: tensor.type for tensor in report.tensors}


def test_a_packed_output_matrix_and_a_packed_router(tmp_path: Path) -> None:
    form = Form(32, 1)
    shape = Shape(n_vocab=64, n_experts=8)
    stored, packed = make_packed(tmp_path, shape, form)
    for i, stem in enumerate(["lm_head", *(f"model.layers.{n}.block_sparse_moe.gate" for n in range(2))]):
        parts = pack(stored.pop(f"{stem}.weight").astype(np.float32), form, i)
        packed[f"{stem}.weight"] = parts
        stored |= {f"{stem}.{last}": x for last, x in parts.items()}
    save_file(stored, tmp_path / "model.safetensors")
    quantize(tmp_path, tmp_path / "m.gguf", progress=False)
    weights = dequantized(stored, packed, form)
    with GGUFFile(tmp_path / "m.gguf") as file:
        assert file.tensors["output.weight"].type == Type.Q4_1
        router = file.tensors["blk.0.ffn_gate_inp.weight"].data.view(np.float32)
    np.testing.assert_array_equal(router, weights["model.layers.0.block_sparse_moe.gate.weight"])


# --- Rows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skip", [0, 1 << 14], ids=["parts of lines", "whole lines"])
@pytest.mark.parametrize("form", [Form(32), Form(32, 1), Form(32, 1, act_order=True)], ids=str)
def test_any_rows_are_those_of_the_whole(
    tmp_path: Path, form: Form, skip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, packed = make_packed(tmp_path, SHAPE, form)
    monkeypatch.setattr(stored_module, "_SKIP", skip)
    monkeypatch.setattr(stored_module, "_SLAB", 1000)
    name = "model.layers.0.block_sparse_moe.experts.1.w1.weight"
    tensor = open_checkpoint(tmp_path).tensors[name]
    assert isinstance(tensor, PackedTensor)
    weights = dequantized(stored, {name: packed[name]}, form)[name]
    whole = tensor.encoded(Type.Q4_1, slice(None))
    assert (whole is None) == form.act_order
    for rows in (slice(None), slice(0, 8), slice(3, 21), slice(95, 96), np.array([5]), np.array([90, 2, 2, 63])):
        np.testing.assert_array_equal(tensor.floats(rows), weights[rows])
        if whole is not None:
            np.testing.assert_array_equal(tensor.encoded(Type.Q4_1, rows), whole[rows])
            np.testing.assert_array_equal(tensor.raw(rows), whole[rows])
    assert tensor.encoded(Type.Q4_0, slice(None)) is None


def test_columns_in_another_order_are_refused_for_q4_1_by_name(tmp_path: Path) -> None:
    make_packed(tmp_path, SHAPE, Form(32, 1, act_order=True))
    with pytest.raises(UnsupportedError, match=r"self_attn\.q_proj\.weight: expected columns in the order of their gr"):
        quantize(tmp_path, tmp_path / "m.gguf", progress=False)
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize("symmetric", [False, True])
def test_columns_in_another_order_are_encoded_again_and_a_note_says_so(tmp_path: Path, symmetric: bool) -> None:
    make_packed(tmp_path, SHAPE, Form(32, 2, act_order=True, symmetric=symmetric))
    several: list[tuple[str, list[tuple[str, str]]]] = [("q4_0", []), ("q8_0", [("*", "q4_1")]), ("q8_0", [])]
    for kind, tensors in several:
        notes = plan(tmp_path, kind, tensors=tensors, progress=False).notes
        assert sum("14 tensors of GPTQ are encoded again" in note for note in notes) == 1
        assert not any("codes" in note for note in notes)
    quantize(tmp_path, tmp_path / "m.gguf", "q4_0", progress=False)


# --- Numbers that no block can hold --------------------------------------------------------------------------------


def changed(directory: Path, form: Form, last: str, change: Callable[[Any], None]) -> str:
    """Changes a tensor of a packed matrix, whose name is returned."""
    stored, _ = make_packed(directory, SHAPE, form)
    stem = "model.layers.1.self_attn.v_proj"
    change(stored[f"{stem}.{last}"])
    save_file(stored, directory / "model.safetensors")
    return f"{stem}.weight"


def first_to(value: float) -> Callable[[Any], None]:
    def change(x: Any) -> None:
        x.flat[0] = value

    return change


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [None, "q8_0"])
@pytest.mark.parametrize("form", [Form(32), Form(32, 2)], ids=str)
def test_row_20_a_scale_that_is_none(tmp_path: Path, form: Form, kind: str | None, value: float) -> None:
    name = changed(tmp_path, form, "scales", first_to(value))
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)}: expected finite weights"):
        quantize(tmp_path, tmp_path / "m.gguf", kind, progress=False)
    report = quantize(tmp_path, tmp_path / "m.gguf", kind, zero_nonfinite=True, progress=False)
    assert {tensor.name: tensor.n_zeroed for tensor in report.tensors if tensor.n_zeroed} == {"blk.1.attn_v.weight": 32}


@pytest.mark.parametrize("form", [Form(64), Form(64, 2)], ids=str)
def test_row_20_zeroing_one_group_leaves_the_codes_of_the_others(tmp_path: Path, form: Form) -> None:
    make_packed(tmp_path, SHAPE, form)
    quantize(tmp_path, tmp_path / "whole.gguf", progress=False)
    name = changed(tmp_path, form, "scales", first_to(np.inf))
    quantize(tmp_path, tmp_path / "m.gguf", zero_nonfinite=True, progress=False)
    whole, found = (matrices(tmp_path / file, Type.Q4_1)[name] for file in ("whole.gguf", "m.gguf"))
    assert not quants.dequantize(found[0, :40], Type.Q4_1).any()
    np.testing.assert_array_equal(np.delete(found, np.s_[:40]), np.delete(whole, np.s_[:40]))


def test_row_20_a_minimum_beyond_f16(tmp_path: Path) -> None:
    name = changed(tmp_path, Form(32, 2), "scales", first_to(60000))
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)}: expected scales, and .* that f16 can hold"):
        quantize(tmp_path, tmp_path / "m.gguf", progress=False)
    quantize(tmp_path, tmp_path / "m.gguf", "f32", progress=False)


@pytest.mark.filterwarnings("error")
def test_row_20_a_scale_in_f32_whose_weights_are_none(tmp_path: Path) -> None:
    stored, _ = make_packed(tmp_path, SHAPE, Form(32))
    name = "model.layers.1.self_attn.v_proj.scales"
    stored[name] = stored[name].astype(np.float32)
    stored[name][0, 0] = 3e38
    save_file(stored, tmp_path / "model.safetensors")
    for kind, words in ((None, "that f16 can hold"), ("f32", "expected finite weights")):
        with pytest.raises(CheckpointError, match=words):
            quantize(tmp_path, tmp_path / "m.gguf", kind, progress=False)


def test_zeros_that_contradict_a_symmetric_quantization(tmp_path: Path) -> None:
    name = changed(tmp_path, Form(32, 2, symmetric=True), "qzeros", first_to(0x78888888))
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)}: expected zeros of 8.*found 7: use q4_1"):
        quantize(tmp_path, tmp_path / "m.gguf", "q4_0", progress=False)
    quantize(tmp_path, tmp_path / "m.gguf", "q4_1", progress=False)


def test_zeros_of_0_in_the_first_format(tmp_path: Path) -> None:
    """GPTQModel takes one from each number of a word at once, so that a 0 borrows from the next."""
    zeros = 0x70040123
    name = changed(tmp_path, Form(32, 1), "qzeros", first_to(zeros - 0x11111111))
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)}: expected zeros from 1 to 15, .* gptq_v2"):
        quantize(tmp_path, tmp_path / "m.gguf", progress=False)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["meta"] = {"quantizer": ["gptqmodel:1.4.2"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensor = open_checkpoint(tmp_path).tensors[name]
    scales = stored_scales(tmp_path, name)
    m = tensor.raw(slice(0, 8)).reshape(8, -1, 20)[:, 0, 2:4].copy().view(np.float16)[:, 0]
    expected = [-(zeros >> 4 * i & 15) * np.float32(scales[0, i]) for i in range(8)]
    np.testing.assert_array_equal(m, np.array(expected).astype(np.float16))


def stored_scales(directory: Path, name: str) -> Any:
    tensors: Tensors = load_file(directory / "model.safetensors")
    return tensors[name.replace("weight", "scales")]
