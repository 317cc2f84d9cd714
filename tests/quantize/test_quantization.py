"""What the files of a checkpoint say of its quantization: read, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from pymixtral.errors import CheckpointError, PymixtralError, UnsupportedError
from pymixtral.quantize import quantize
from pymixtral.quantize.sources.huggingface import INDEX
from pymixtral.quantize.sources.opening import open_checkpoint
from support.checkpoints import Shape, make_tensors
from support.ggufs import contents
from support.packed import Form, Tensors, make_packed

SHAPE = Shape(n_vocab=64, n_layers=1)
GPTQ, AWQ = Form(32, 1), Form(32)
STEM = "model.layers.0.self_attn.k_proj"


def set_config(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    config = json.loads((directory / "config.json").read_text())
    change(config)
    (directory / "config.json").write_text(json.dumps(config))


def refused(directory: Path, error: type[PymixtralError], *words: str) -> None:
    with pytest.raises(error) as caught:
        open_checkpoint(directory)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


# --- Where it is said ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "name", "values"),
    [
        (GPTQ, "quantize_config.json", {"bits": 4, "group_size": 32, "desc_act": False, "sym": False}),
        (AWQ, "quant_config.json", {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}),
        (GPTQ, None, {"method": "gptq", "format": "gptq", "bits": 4, "group_size": 32, "dynamic": {"-:.*gate": {}}}),
        (AWQ, None, {"quant_method": "awq", "checkpoint_format": "gemm", "bits": 4, "group_size": 32}),
    ],
)
def test_every_program_s_words_mean_the_same(
    tmp_path: Path, form: Form, name: str | None, values: dict[str, Any]
) -> None:
    make_packed(tmp_path, SHAPE, form)
    quantize(tmp_path, tmp_path / "a.gguf", progress=False)
    set_config(tmp_path, lambda config: config.pop("quantization_config"))
    if name:
        (tmp_path / name).write_text(json.dumps(values))
    else:
        set_config(tmp_path, lambda config: config.update(quantization_config=values))
    quantize(tmp_path, tmp_path / "b.gguf", progress=False)
    assert contents(tmp_path / "a.gguf") == contents(tmp_path / "b.gguf")


def test_nothing_says_it(tmp_path: Path) -> None:
    make_packed(tmp_path, SHAPE, GPTQ)
    set_config(tmp_path, lambda config: config.pop("quantization_config"))
    refused(tmp_path, CheckpointError, "expected quantization_config in config.json", "quantize_config.json")


@pytest.mark.parametrize("shards", [0, 1, 3])
def test_names_of_files(tmp_path: Path, shards: int) -> None:
    """AutoGPTQ's own, and shards with an index: the parts of a matrix may be in two of them."""
    stored, _ = make_packed(tmp_path, SHAPE, GPTQ)
    quantize(tmp_path, tmp_path / "a.gguf", progress=False)
    (tmp_path / "model.safetensors").unlink()
    stem, places = "gptq_model-4bit-32g" if shards != 3 else "model", {}
    if shards == 0:
        save_file(stored, tmp_path / f"{stem}.safetensors")
    for i in range(shards):
        part = dict(list(stored.items())[i::shards])
        shard = f"{stem}-{i + 1:05}-of-{shards:05}.safetensors"
        save_file(part, tmp_path / shard)
        places |= dict.fromkeys(part, shard)
    if shards:
        (tmp_path / INDEX.replace("model", stem, 1)).write_text(json.dumps({"weight_map": places}))
    quantize(tmp_path, tmp_path / "b.gguf", progress=False)
    assert contents(tmp_path / "a.gguf") == contents(tmp_path / "b.gguf")


def test_all_files_of_a_packed_matrix_are_watched(tmp_path: Path) -> None:
    stored, _ = make_packed(tmp_path, SHAPE, Form(32, 1, act_order=True))
    (tmp_path / "model.safetensors").unlink()
    for i, last in enumerate(("qweight", "qzeros", "scales", "g_idx", "weight")):
        part = {name: x for name, x in stored.items() if name.endswith(f".{last}")}
        save_file(part, tmp_path / f"model-{i + 1:05}-of-00005.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    path = tmp_path / "model-00002-of-00005.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink()
    path.write_bytes(content)
    assert len(checkpoint.tensors[f"{STEM}.weight"].files) == 4
    with pytest.raises(CheckpointError, match=r"model-00002-of-00005.*changed"):
        checkpoint.check_unchanged()


# --- What is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "values", "words"),
    [
        (GPTQ, {"bits": 8}, "bits: expected 4, found 8"),
        (GPTQ, {"bits": 4.0}, "bits: expected 4, found 4.0"),
        (GPTQ, {"bits": None}, "bits: expected 4, found None"),
        (GPTQ, {"group_size": 16}, "group_size: expected a multiple of 32, or -1, found 16"),
        (GPTQ, {"group_size": 0}, "group_size: expected a multiple of 32, or -1, found 0"),
        (GPTQ, {"group_size": True}, "group_size: expected a multiple of 32, or -1, found True"),
        (GPTQ, {"group_size": None}, "group_size: expected a multiple of 32, or -1, found None"),
        (GPTQ, {"group_size": 2**70}, "group_size: expected a multiple of 32, or -1, found"),
        (GPTQ, {"checkpoint_format": "marlin"}, "checkpoint_format: expected gptq or gptq_v2, found 'marlin'"),
        (GPTQ, {"checkpoint_format": ["gptq"]}, "checkpoint_format: expected gptq or gptq_v2, found ['gptq']"),
        (GPTQ, {"is_marlin_format": True}, "is_marlin_format: expected False, found True"),
        (GPTQ, {"quant_method": "fp8"}, "quant_method: expected gptq or awq, found 'fp8'"),
        (GPTQ, {"quant_method": 4}, "quant_method: expected gptq or awq, found 4"),
        (GPTQ, {"dynamic": {r"+:.*\.w1": {"bits": 8}}}, "dynamic: expected one quantization for all matrices"),
        (AWQ, {"version": "gemv"}, "version: expected gemm, found 'gemv'"),
        (AWQ, {"version": "gemv_fast"}, "version: expected gemm, found 'gemv_fast'"),
        (AWQ, {"zero_point": False}, "zero_point: expected True, found False"),
        (AWQ, {"backend": "llm-awq"}, "backend: expected 'autoawq', found 'llm-awq'"),
    ],
)
def test_other_quantizations_are_refused_by_name(
    tmp_path: Path, form: Form, values: dict[str, Any], words: str
) -> None:
    make_packed(tmp_path, SHAPE, form)
    set_config(tmp_path, lambda config: config["quantization_config"].update(values))
    refused(tmp_path, UnsupportedError, "config.json: quantization_config: ", words)


@pytest.mark.parametrize(
    ("values", "words"),
    [("gptq", "quantization_config: expected an object"), ({**GPTQ.settings, "meta": []}, "meta: expected an object")],
)
def test_row_17_settings_that_are_none(tmp_path: Path, values: object, words: str) -> None:
    make_packed(tmp_path, SHAPE, GPTQ)
    set_config(tmp_path, lambda config: config.update(quantization_config=values))
    refused(tmp_path, CheckpointError, words)


def replaced(last: str, change: Callable[[Any], Any]) -> Callable[[Tensors], None]:
    def apply(stored: Tensors) -> None:
        stored[f"{STEM}.{last}"] = np.ascontiguousarray(change(stored[f"{STEM}.{last}"]))

    return apply


def removed(last: str) -> Callable[[Tensors], None]:
    def apply(stored: Tensors) -> None:
        del stored[f"{STEM}.{last}"]

    return apply


def beside(name: str, values: Any) -> Callable[[Tensors], None]:
    return lambda stored: stored.update({f"{STEM}.{name}": values})


_I32 = np.int32
DAMAGE: list[tuple[Form, Callable[[Tensors], None], str]] = [
    (GPTQ, removed("qzeros"), "k_proj.qzeros: expected it beside"),
    (AWQ, removed("scales"), "k_proj.scales: expected it beside"),
    (GPTQ, removed("qweight"), "1 missing, such as model.layers.0.self_attn.k_proj.weight; 3 unexpected"),
    (Form(32, 1, act_order=True), removed("g_idx"), "k_proj.g_idx: expected it beside"),
    (GPTQ, replaced("qzeros", lambda x: x[:1]), "k_proj.qzeros: expected shape [2, 4], as its qweight [8, 32] in"),
    (GPTQ, replaced("scales", lambda x: x.T), "k_proj.scales: expected shape [2, 32]"),
    (GPTQ, replaced("g_idx", lambda x: x[:-1]), "k_proj.g_idx: expected shape [64]"),
    (GPTQ, replaced("g_idx", lambda x: x - 1), "k_proj.g_idx: expected groups from 0 to 1, found -1 to 0"),
    (GPTQ, replaced("g_idx", lambda x: x + 1), "k_proj.g_idx: expected groups from 0 to 1, found 1 to 2"),
    (GPTQ, replaced("g_idx", lambda x: x * 2**30), "k_proj.g_idx: expected groups from 0 to 1, found 0 to 1073741824"),
    (GPTQ, replaced("qweight", lambda x: x.view(np.float32)), "k_proj.qweight': dtype: expected I32, found 'F32'"),
    (GPTQ, replaced("scales", lambda x: x.view(np.int16)), "k_proj.scales': dtype: expected F32, BF16 or F16"),
    (GPTQ, replaced("qweight", lambda x: x.reshape(2, 4, 32)), "k_proj.qweight: expected a matrix of a multiple of 32"),
    (GPTQ, replaced("qweight", lambda x: x[:0]), "k_proj.qweight: expected a matrix of a multiple of 32"),
    (GPTQ, replaced("qweight", lambda x: x[:3]), "k_proj.qweight: expected a matrix of a multiple of 32"),
    (GPTQ, replaced("qweight", lambda x: x[:, :7]), "k_proj.qweight: expected a matrix of a multiple of 32 columns"),
    (AWQ, replaced("qweight", lambda x: x[:5]), "k_proj.qweight: expected a matrix of a multiple of 32"),
    (GPTQ, beside("weight", np.ones((32, 64), np.float16)), "k_proj.weight: expected it once, found it packed"),
    (GPTQ, beside("bias", np.ones(32, np.float16)), "1 unexpected, such as 'model.layers.0.self_attn.k_proj.bias'"),
    (GPTQ, beside("bias", np.zeros(31, np.float16)), "1 unexpected, such as 'model.layers.0.self_attn.k_proj.bias'"),
    (GPTQ, beside("bias", np.full(32, np.nan, np.float16)), "1 unexpected, such as"),
    (GPTQ, lambda stored: stored.update({"x.qzeros": np.ones(3, _I32)}), "1 unexpected, such as 'x.qzeros'"),
]


@pytest.mark.parametrize(("form", "change", "words"), DAMAGE, ids=[words for *_, words in DAMAGE])
def test_row_17_parts_that_do_not_fit(
    tmp_path: Path, form: Form, change: Callable[[Tensors], None], words: str
) -> None:
    stored, _ = make_packed(tmp_path, SHAPE, form)
    change(stored)
    save_file(stored, tmp_path / "model.safetensors")
    refused(tmp_path, UnsupportedError if "a matrix of a multiple" in words else CheckpointError, words)


@pytest.mark.parametrize("act_order", [True, 1, "true"])
def test_row_17_whatever_says_that_columns_are_in_another_order_asks_for_it(tmp_path: Path, act_order: object) -> None:
    stored, _ = make_packed(tmp_path, SHAPE, Form(32, 1))
    removed("g_idx")(stored)
    save_file(stored, tmp_path / "model.safetensors")
    open_checkpoint(tmp_path)
    set_config(tmp_path, lambda config: config["quantization_config"].update(desc_act=act_order))
    refused(tmp_path, CheckpointError, "k_proj.g_idx: expected it beside")


def test_row_17_a_whole_matrix_of_another_shape(tmp_path: Path) -> None:
    """Its parts fit each other, and not config.json."""
    stored, packed = make_packed(tmp_path, SHAPE, GPTQ)
    other = packed["model.layers.0.self_attn.q_proj.weight"]
    stored |= {f"{STEM}.{last}": x for last, x in other.items()}
    save_file(stored, tmp_path / "model.safetensors")
    refused(tmp_path, CheckpointError, f"{STEM}.weight: expected shape [32, 64]", "found [64, 64]")


def test_biases_of_0_are_left_out(tmp_path: Path) -> None:
    stored, _ = make_packed(tmp_path, SHAPE, GPTQ)
    quantize(tmp_path, tmp_path / "a.gguf", progress=False)
    stored |= {f"{STEM}.bias": np.zeros(32, np.float16), f"{STEM.replace('k_', 'o_')}.bias": -np.zeros(64, np.float16)}
    save_file(stored, tmp_path / "model.safetensors")
    report = quantize(tmp_path, tmp_path / "b.gguf", progress=False)
    assert contents(tmp_path / "a.gguf") == contents(tmp_path / "b.gguf")
    assert "2 biases of packed matrices are 0 and were left out" in report.notes


def test_a_checkpoint_of_floats_may_still_have_the_settings(tmp_path: Path) -> None:
    """As somebody leaves them who dequantized it."""
    make_packed(tmp_path, SHAPE, GPTQ)
    save_file(make_tensors(SHAPE, seed=1), tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.packing is None
    assert quantize(tmp_path, tmp_path / "m.gguf", progress=False).type == "q8_0"


_SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4)
)
_WORDS = st.sampled_from(["gptq", "gptq_v2", "awq", "gemm", "GEMM", "marlin", 4, 32, -1, True, {}, {"quantizer": 1}])
_KEYS = (
    *("quant_method", "method", "checkpoint_format", "format", "version", "bits", "w_bit", "group_size"),
    *("q_group_size", "desc_act", "sym", "meta", "dynamic", "zero_point", "backend", "is_marlin_format"),
)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(_KEYS),
        _SCALARS | _WORDS | st.lists(_SCALARS, max_size=2) | st.dictionaries(st.text(max_size=2), _SCALARS, max_size=2),
        max_size=4,
    )
)
def test_row_17_any_settings_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]
) -> None:
    directory = tmp_path_factory.getbasetemp() / "settings"
    if not directory.exists():
        make_packed(directory, SHAPE, GPTQ)
    set_config(directory, lambda config: config.update(quantization_config=GPTQ.settings | changes))
    try:
        checkpoint = open_checkpoint(directory)
    except (CheckpointError, UnsupportedError):
        return
    assert np.isfinite(checkpoint.tensors[f"{STEM}.weight"].floats()).all()
