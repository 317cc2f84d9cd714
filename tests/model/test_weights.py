"""Tensors by name: every layout that is read, and what contradicts the metadata."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pymixtral.errors import ModelConfigError, PymixtralError, UnsupportedError
from pymixtral.files.gguf import GGUFFile
from pymixtral.files.types import Matrix
from pymixtral.model.config import ModelConfig
from pymixtral.model.weights import load_weights
from support.ggufs import finish

Type = GGMLQuantizationType
Arrays = dict[str, NDArray[Any]]

CONFIG = ModelConfig(
    name="small",
    n_vocab=7,
    n_ctx_train=128,
    hidden=32,
    n_layers=2,
    ffn=64,
    n_heads=4,
    n_kv_heads=2,
    head_dim=16,
    n_experts=3,
    n_experts_used=2,
    rms_eps=1e-5,
    rope_base=1e4,
    window=0,
)
DENSE = replace(CONFIG, n_experts=1, n_experts_used=1)


def arrays(config: ModelConfig, *, split: bool = False) -> Arrays:
    """A model's tensors in float32, router and norms included."""
    rng = np.random.default_rng(1)
    c = config
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd": (c.n_vocab, c.hidden),
        "output_norm": (c.hidden,),
        "output": (c.n_vocab, c.hidden),
    }
    for i in range(c.n_layers):
        layer: dict[str, tuple[int, ...]] = {
            "attn_norm": (c.hidden,),
            "ffn_norm": (c.hidden,),
            "attn_q": (c.n_heads * c.head_dim, c.hidden),
            "attn_k": (c.n_kv_heads * c.head_dim, c.hidden),
            "attn_v": (c.n_kv_heads * c.head_dim, c.hidden),
            "attn_output": (c.hidden, c.n_heads * c.head_dim),
        }
        experts = {"ffn_gate": (c.ffn, c.hidden), "ffn_up": (c.ffn, c.hidden), "ffn_down": (c.hidden, c.ffn)}
        if c.n_experts > 1:
            layer["ffn_gate_inp"] = (c.n_experts, c.hidden)
        for name, shape in experts.items():
            if c.n_experts == 1:
                layer[name] = shape
            elif split:
                layer.update({f"{name}.{e}": shape for e in range(c.n_experts)})
            else:
                layer[f"{name}_exps"] = (c.n_experts, *shape)
        shapes.update({f"blk.{i}.{name}": shape for name, shape in layer.items()})
    return {f"{name}.weight": rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., GGUFFile]:
    def write(tensors: Arrays, types: dict[str, Type] | None = None) -> GGUFFile:
        """The tensors in a file: of the types given by name, else as the array is."""
        writer = GGUFWriter(tmp_path / "model.gguf", "llama")
        for name, array in tensors.items():
            kind = (types or {}).get(name)
            if kind is None:
                writer.add_tensor(name, array)
            else:
                writer.add_tensor(name, quantize(array, kind), raw_dtype=kind)
        finish(writer)
        return GGUFFile(tmp_path / "model.gguf")

    return write


def floats(matrix: Matrix) -> NDArray[np.float32]:
    assert matrix.type == Type.F32
    return matrix.data.view(np.float32)


@pytest.mark.parametrize("split", [False, True])
def test_a_mixtral_with_merged_or_split_experts(write: Callable[..., GGUFFile], split: bool) -> None:
    tensors = arrays(CONFIG, split=split)
    file = write(tensors)
    weights = load_weights(file, CONFIG)
    assert np.array_equal(floats(weights.embedding), tensors["token_embd.weight"])
    assert np.array_equal(floats(weights.head), tensors["output.weight"])
    assert np.array_equal(weights.output_norm, tensors["output_norm.weight"])
    assert len(weights.layers) == 2
    for i, layer in enumerate(weights.layers):
        matrices = {
            "attn_q": layer.q,
            "attn_k": layer.k,
            "attn_v": layer.v,
            "attn_output": layer.output,
            "ffn_gate_inp": layer.router,
        }
        for name, matrix in matrices.items():
            assert matrix is not None
            assert np.array_equal(floats(matrix), tensors[f"blk.{i}.{name}.weight"])
        assert np.array_equal(layer.attn_norm, tensors[f"blk.{i}.attn_norm.weight"])
        assert np.array_equal(layer.ffn_norm, tensors[f"blk.{i}.ffn_norm.weight"])
        assert len(layer.experts) == 3
        for e, expert in enumerate(layer.experts):
            for name, matrix in zip(("ffn_gate", "ffn_up", "ffn_down"), expert, strict=True):
                expected = tensors[f"blk.{i}.{name}.{e}.weight"] if split else tensors[f"blk.{i}.{name}_exps.weight"][e]
                assert np.array_equal(floats(matrix), expected)
                assert not matrix.data.flags.owndata
                assert matrix.data.flags.c_contiguous


def test_gate_and_up_in_one_tensor(write: Callable[..., GGUFFile]) -> None:
    tensors = arrays(CONFIG)
    fused = {name: x for name, x in tensors.items() if "ffn_gate_exps" not in name and "ffn_up_exps" not in name}
    for i in range(2):
        gate, up = (tensors[f"blk.{i}.ffn_{name}_exps.weight"] for name in ("gate", "up"))
        fused[f"blk.{i}.ffn_gate_up_exps.weight"] = np.concatenate([gate, up], axis=1)
    weights = load_weights(write(fused), CONFIG)
    for i, layer in enumerate(weights.layers):
        for e, expert in enumerate(layer.experts):
            for name, matrix in zip(("ffn_gate", "ffn_up", "ffn_down"), expert, strict=True):
                assert np.array_equal(floats(matrix), tensors[f"blk.{i}.{name}_exps.weight"][e])
                assert not matrix.data.flags.owndata
                assert matrix.data.flags.c_contiguous
    name = "blk.0.ffn_gate_up_exps.weight"
    with pytest.raises(ModelConfigError, match=rf"'{name}': expected shape \[3, .*\], found"):
        load_weights(write(fused | {name: fused[name][:, 1:]}), CONFIG)
    with pytest.raises(UnsupportedError, match=r"found 'blk\.0\.ffn_up_exps\.weight'"):
        load_weights(write(fused | {name.replace("gate_", ""): tensors[name.replace("gate_", "")]}), CONFIG)


def test_a_dense_model_is_one_expert_without_router(write: Callable[..., GGUFFile]) -> None:
    tensors = arrays(DENSE)
    weights = load_weights(write(tensors), DENSE)
    for i, layer in enumerate(weights.layers):
        assert layer.router is None
        ((gate, up, down),) = layer.experts
        for name, matrix in {"ffn_gate": gate, "ffn_up": up, "ffn_down": down}.items():
            assert np.array_equal(floats(matrix), tensors[f"blk.{i}.{name}.weight"])


def test_quantized_weights_stay_as_the_file_has_them(write: Callable[..., GGUFFile]) -> None:
    tensors = arrays(CONFIG)
    types = {"blk.0.ffn_up_exps.weight": Type.Q4_0, "blk.1.attn_q.weight": Type.Q8_0, "token_embd.weight": Type.F16}
    weights = load_weights(write(tensors, types), CONFIG)
    up = weights.layers[0].experts[2][1]
    assert (up.type, up.shape) == (Type.Q4_0, (64, 32))
    assert np.array_equal(up.data, quantize(tensors["blk.0.ffn_up_exps.weight"][2], Type.Q4_0))
    q = weights.layers[1].q
    assert (q.type, q.shape) == (Type.Q8_0, (64, 32))
    assert np.array_equal(q.data, quantize(tensors["blk.1.attn_q.weight"], Type.Q8_0))
    assert (weights.embedding.type, weights.embedding.shape) == (Type.F16, (7, 32))


def test_norms_in_f16_are_widened(write: Callable[..., GGUFFile]) -> None:
    tensors = arrays(CONFIG)
    half = tensors["output_norm.weight"].astype(np.float16)
    weights = load_weights(write({**tensors, "output_norm.weight": half}), CONFIG)
    assert weights.output_norm.dtype == np.float32
    assert np.array_equal(weights.output_norm, half.astype(np.float32))


def test_norms_and_matrices_are_aligned_for_their_elements(write: Callable[..., GGUFFile]) -> None:
    weights = load_weights(write(arrays(CONFIG)), CONFIG)
    assert weights.output_norm.flags.aligned
    for layer in weights.layers:
        assert all(matrix.data.ctypes.data % 4 == 0 for expert in layer.experts for matrix in expert)


def test_a_tied_head_is_the_embedding(write: Callable[..., GGUFFile]) -> None:
    tensors = arrays(CONFIG)
    del tensors["output.weight"]
    weights = load_weights(write(tensors), CONFIG)
    assert weights.head is weights.embedding


def test_weights_outlive_the_file(write: Callable[..., GGUFFile]) -> None:
    tensors = arrays(CONFIG)
    with write(tensors) as file:
        weights = load_weights(file, CONFIG)
    del file
    assert np.array_equal(floats(weights.head), tensors["output.weight"])


def test_active_bytes(write: Callable[..., GGUFFile]) -> None:
    weights = load_weights(write(arrays(CONFIG), {"blk.0.ffn_up_exps.weight": Type.Q8_0}), CONFIG)
    attention = 4 * (64 * 32 + 2 * 32 * 32 + 32 * 64)
    router = 4 * 3 * 32
    expert = 4 * 3 * 64 * 32
    quantized_expert = 4 * 2 * 64 * 32 + 64 * 34
    ends = 4 * (7 * 32 + 32)
    assert weights.active_bytes(2) == ends + 2 * (attention + router) + 2 * (expert + quantized_expert)
    assert weights.active_bytes(3) - weights.active_bytes(2) == expert + quantized_expert
    dense = load_weights(write(arrays(DENSE)), DENSE)
    assert dense.active_bytes(1) == ends + 2 * (attention + expert)


# --- Row 12 of the list of hostile inputs ---------------------------------------------------------


@pytest.mark.parametrize("split", [False, True])
def test_row_12_each_missing_tensor_is_named(write: Callable[..., GGUFFile], split: bool) -> None:
    tensors = arrays(CONFIG, split=split)
    for name, array in tensors.items():
        if name == "output.weight":
            continue
        rest = {k: v for k, v in tensors.items() if k != name}
        missing = name
        shape: tuple[int, ...] = array.shape
        if split and name.endswith(".0.weight"):  # without its first expert it is taken for the merged layout
            missing = name.replace(".0.weight", "_exps.weight")
            shape = (3, *shape)
        with pytest.raises(ModelConfigError) as caught:
            load_weights(write(rest), CONFIG)
        assert f"model.gguf: tensor '{missing}' is missing, expected one of shape {list(shape)}" in str(caught.value)


def test_row_12_shapes_that_contradict_the_metadata(write: Callable[..., GGUFFile]) -> None:
    tensors = arrays(CONFIG)
    for name, array in tensors.items():
        for wrong in (np.concatenate([array, array]), array[None]):
            with pytest.raises(ModelConfigError) as caught:
                load_weights(write({**tensors, name: wrong}), CONFIG)
            assert f"tensor '{name}': expected shape {list(array.shape)}, found {list(wrong.shape)}" in str(
                caught.value
            )


def test_row_12_metadata_that_contradicts_the_tensors(write: Callable[..., GGUFFile]) -> None:
    file = write(arrays(CONFIG))
    changes: list[dict[str, Any]] = [
        {"n_vocab": 8},
        {"hidden": 64},
        {"ffn": 32},
        {"n_heads": 8},
        {"n_kv_heads": 1},
        {"n_experts": 4},
    ]
    for change in changes:
        with pytest.raises(ModelConfigError, match=r"tensor '.*': expected shape \[.*\], found \["):
            load_weights(file, replace(CONFIG, **change))
    with pytest.raises(ModelConfigError, match=r"'blk\.2\.ffn_gate_exps\.weight' is missing"):
        load_weights(file, replace(CONFIG, n_layers=3))
    with pytest.raises(UnsupportedError, match=r"found 'blk\.1\.[a-z_]*\.weight' too"):
        load_weights(file, replace(CONFIG, n_layers=1))
    with pytest.raises(ModelConfigError, match=r"'blk\.0\.ffn_gate\.weight' is missing"):
        load_weights(file, DENSE)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("blk.0.attn_q.weight", Type.I8),
        ("blk.1.ffn_down_exps.weight", Type.I32),
        ("token_embd.weight", Type.F64),
        ("output_norm.weight", Type.Q8_0),
        ("blk.0.ffn_norm.weight", Type.Q4_0),
    ],
)
def test_types_without_a_kernel_are_refused_by_name(write: Callable[..., GGUFFile], name: str, kind: Type) -> None:
    tensors, types = arrays(CONFIG), {name: kind}
    plain = {Type.I8: np.int8, Type.I32: np.int32, Type.F64: np.float64}
    if kind in plain:
        tensors[name], types = tensors[name].astype(plain[kind]), {}
    with pytest.raises(UnsupportedError) as caught:
        load_weights(write(tensors, types), CONFIG)
    assert f"tensor '{name}'" in str(caught.value)
    assert f"found {kind.name}" in str(caught.value)


@pytest.mark.parametrize(
    "name", ["blk.0.attn_q.bias", "rope_freqs.weight", "blk.0.ffn_gate.3.weight", "blk.0.ffn_gate.weight", "\x1b[31m"]
)
def test_tensors_with_no_part_in_the_computation_are_refused_by_name(write: Callable[..., GGUFFile], name: str) -> None:
    file = write({**arrays(CONFIG), name: np.zeros(32, np.float32)})
    with pytest.raises(UnsupportedError) as caught:
        load_weights(file, CONFIG)
    assert f"found {name!r} too" in str(caught.value)


positive = st.integers(1, 4)
configs = st.fixed_dictionaries(
    {},
    optional={
        "n_vocab": st.integers(1, 16),
        "hidden": st.sampled_from([32, 64]),
        "n_layers": st.integers(1, 1024),
        "ffn": st.sampled_from([32, 64]),
        "n_heads": positive,
        "n_kv_heads": positive,
        "head_dim": st.sampled_from([8, 16, 32]),
        "n_experts": st.integers(1, 64),
    },
)


@settings(max_examples=200, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(change=configs)
def test_weights_fit_the_config_or_are_refused(write: Callable[..., GGUFFile], change: dict[str, Any]) -> None:
    config = replace(CONFIG, **change)
    try:
        weights = load_weights(write(arrays(CONFIG)), config)
    except PymixtralError:
        return
    assert replace(config, n_heads=4, head_dim=16, n_kv_heads=2) == CONFIG
    assert config.n_heads * config.head_dim == 64
    assert len(weights.layers) == 2
