"""Adapters in GGUF, as llama.cpp reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray

from pymixtral import AdapterError, ModelFileError
from pymixtral.adapters.opening import open_adapter
from pymixtral.files.names import TensorName
from pymixtral.model.adapter import MAX_RANK, Adapter
from support.adapters import CONFIG, DENSE, model_config

WIDE = model_config(CONFIG | {"hidden_size": 64, "intermediate_size": 96})
Array = NDArray[np.float32]
Tensors = dict[str, Array]


def numbers(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def write(
    path: Path,
    tensors: Tensors,
    *,
    alpha: object = 16.0,
    kind: Type = Type.F32,
    keys: dict[str, str] | None = None,
    extra: Callable[[GGUFWriter], object] | None = None,
) -> Path:
    texts = {"general.type": "adapter", "adapter.type": "lora"} | (keys or {})
    writer = GGUFWriter(path, texts.pop("general.architecture", "llama"))
    for key, value in texts.items():
        writer.add_string(key, value)
    if isinstance(alpha, float):
        writer.add_float32("adapter.lora.alpha", alpha)
    elif alpha is not None:
        writer.add_uint32("adapter.lora.alpha", 16)
    if extra:
        extra(writer)
    for name, array in tensors.items():
        writer.add_tensor(name, quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def attention(rank: int = 4) -> Tensors:
    return {
        "blk.0.attn_q.weight.lora_a": numbers(rank, 64),
        "blk.0.attn_q.weight.lora_b": numbers(32, rank),
    }


def delta(adapter: Adapter, *name: object, expert: int | None = None) -> NDArray[np.float64]:
    stem, layer = name
    pair = adapter.pairs[TensorName(str(stem), int(str(layer)), expert=expert)]
    return pair.b.T.astype(np.float64) @ pair.a


@pytest.mark.parametrize(("alpha", "rank", "scale"), [(16.0, 4, 4.0), (6.0, 3, 2.0), (0.0, 4, 1.0), (None, 4, 1.0)])
def test_alpha_is_over_the_rank_of_each_pair_and_none_is_1(
    tmp_path: Path, alpha: float | None, rank: int, scale: float
) -> None:
    tensors = attention(rank)
    adapter = open_adapter(write(tmp_path / "a.gguf", tensors, alpha=alpha), WIDE)
    a, b = tensors.values()
    assert np.allclose(delta(adapter, "attn_q", 0), scale * b.astype(np.float64) @ a, atol=1e-5)


@pytest.mark.parametrize("kind", [Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0])
def test_types_of_blocks_are_read_as_gguf_reads_them(tmp_path: Path, kind: Type) -> None:
    tensors = {
        "blk.1.ffn_up_exps.weight.lora_a": numbers(4, 32, 64),
        "blk.1.ffn_up_exps.weight.lora_b": numbers(4, 96, 32),
    }
    a, b = (dequantize(quantize(array, kind), kind) for array in tensors.values())
    adapter = open_adapter(write(tmp_path / "a.gguf", tensors, kind=kind, alpha=0.0), WIDE)
    for e in range(4):
        name = TensorName("ffn_up", 1, expert=e)
        assert np.array_equal(adapter.pairs[name].a, a[e])
        assert np.array_equal(adapter.pairs[name].b.T, b[e])


def test_gate_and_up_in_one_tensor_are_taken_apart(tmp_path: Path) -> None:
    a, b = numbers(4, 2, 64), numbers(4, 192, 2)
    stem = "blk.1.ffn_gate_up_exps.weight"
    adapter = open_adapter(write(tmp_path / "a.gguf", {f"{stem}.lora_a": a, f"{stem}.lora_b": b}, alpha=0.0), WIDE)
    assert len(adapter.pairs) == 8
    for e in range(4):
        both = np.concatenate([delta(adapter, stem, 1, expert=e) for stem in ("ffn_gate", "ffn_up")])
        assert np.allclose(both, b[e].astype(np.float64) @ a[e], atol=1e-6)


def test_split_experts_the_router_and_a_rank_of_1(tmp_path: Path) -> None:
    tensors = {
        "blk.0.ffn_down.3.weight.lora_a": numbers(2, 96),
        "blk.0.ffn_down.3.weight.lora_b": numbers(64, 2),
        "blk.1.ffn_gate_inp.weight.lora_a": numbers(64),  # as ggml writes [1, 64]
        "blk.1.ffn_gate_inp.weight.lora_b": numbers(4, 1),
    }
    adapter = open_adapter(write(tmp_path / "a.gguf", tensors, alpha=0.0), WIDE)
    down, router = (tuple(tensors.values())[i : i + 2] for i in (0, 2))
    assert np.allclose(delta(adapter, "ffn_down", 0, expert=3), down[1].astype(np.float64) @ down[0], atol=1e-6)
    assert np.allclose(delta(adapter, "ffn_gate_inp", 1), np.outer(router[1], router[0]), atol=1e-6)


def test_experts_of_zeros_have_no_pair(tmp_path: Path) -> None:
    a, b = numbers(4, 2, 64), numbers(4, 96, 2)
    b[1] = 0
    stem = "blk.0.ffn_gate_exps.weight"
    adapter = open_adapter(write(tmp_path / "a.gguf", {f"{stem}.lora_a": a, f"{stem}.lora_b": b}), WIDE)
    assert [name.expert for name in adapter.pairs] == [0, 2, 3]


def refused(path: Path, *words: str, config: dict[str, Any] | None = None) -> None:
    with pytest.raises(AdapterError) as caught:
        open_adapter(path, WIDE if config is None else model_config(config))
    message = str(caught.value)
    assert "\n" not in message
    for word in (str(path), *words):
        assert word in message, message


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"general.type": "model"}, "general.type"),
        ({"adapter.type": "control_vector"}, "adapter.type"),
        ({"general.architecture": "qwen2"}, "general.architecture"),
    ],
)
def test_row_26_metadata_of_something_else(tmp_path: Path, keys: dict[str, str], words: str) -> None:
    refused(write(tmp_path / "a.gguf", attention(), keys=keys), words)


def test_row_26_a_model_is_no_adapter(tiny_q8_0: Path) -> None:
    refused(tiny_q8_0, "general.type", "adapter")


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), 1e7, "an integer"])
def test_row_26_alpha_out_of_range(tmp_path: Path, alpha: object) -> None:
    refused(write(tmp_path / "a.gguf", attention(), alpha=alpha), "adapter.lora.alpha")


def test_row_26_an_adapter_that_begins_at_tokens_is_refused(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.gguf",
        attention(),
        extra=lambda writer: writer.add_array("adapter.alora.invocation_tokens", [1, 2]),
    )
    refused(path, "aLoRA")


A, B = "blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight.lora_b"
EXPERTS = "blk.0.ffn_up_exps.weight"


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({}, "found none"),
        ({A: numbers(4, 64)}, "both tensors of a pair"),
        ({B: numbers(32, 4)}, "both tensors of a pair"),
        (attention() | {"blk.0.attn_norm.weight": numbers(64)}, "attn_norm"),
        (attention() | {"blk.0.attn_q.bias.lora_a": numbers(4, 64)}, "attn_q.bias"),
        ({f"token_embd.weight.{end}": numbers(4, 64) for end in ("lora_a", "lora_b")}, "not computed"),
        ({f"output.weight.{end}": numbers(4, 64) for end in ("lora_a", "lora_b")}, "not computed"),
        ({f"blk.0.attn_norm.weight.{end}": numbers(4, 64) for end in ("lora_a", "lora_b")}, "which it does not have"),
        ({f"blk.2.attn_q.weight.{end}": numbers(4, 64) for end in ("lora_a", "lora_b")}, "2 layers"),
        ({f"blk.0.ffn_up.4.weight.{end}": numbers(4, 64) for end in ("lora_a", "lora_b")}, "4 experts"),
        ({f"blk.0.ffn_up.weight.{end}": numbers(4, 64) for end in ("lora_a", "lora_b")}, "which it does not have"),
        ({A: numbers(4, 65), B: numbers(32, 4)}, "expected shape [4, 64]"),
        ({A: numbers(3, 64), B: numbers(32, 4)}, "expected shape [4, 64]"),
        ({A: numbers(4, 64), B: numbers(31, 4)}, "expected shape [32, 4]"),
        ({A: numbers(1, 4, 64), B: numbers(32, 4)}, "expected shape [4, 64]"),
        ({A: numbers(MAX_RANK + 1, 64), B: numbers(32, MAX_RANK + 1)}, "a rank from 1"),
        ({A: numbers(4, 64) * np.nan, B: numbers(32, 4)}, "finite"),
        (
            {f"{EXPERTS}.lora_a": numbers(3, 2, 64), f"{EXPERTS}.lora_b": numbers(3, 96, 2)},
            "expected shape [4, 96, 2]",
        ),
        (
            {
                "blk.0.ffn_up_exps.weight.lora_a": numbers(4, 2, 64),
                "blk.0.ffn_up_exps.weight.lora_b": numbers(4, 96, 2),
                "blk.0.ffn_up.1.weight.lora_a": numbers(2, 64),
                "blk.0.ffn_up.1.weight.lora_b": numbers(96, 2),
            },
            "expected one pair for blk.0.ffn_up.1.weight, found two",
        ),
    ],
)
def test_row_26_tensors_that_do_not_fit_are_named(tmp_path: Path, tensors: Tensors, words: str) -> None:
    refused(write(tmp_path / "a.gguf", tensors), words)


def test_row_26_experts_for_a_dense_model(tmp_path: Path) -> None:
    tensors = {
        "blk.0.ffn_up_exps.weight.lora_a": numbers(4, 2, 16),
        "blk.0.ffn_up_exps.weight.lora_b": numbers(4, 24, 2),
    }
    refused(write(tmp_path / "a.gguf", tensors), "which it does not have", config=DENSE)


def test_row_26_a_type_that_is_none_of_weights(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_tensor(A, numbers(4, 64).astype(np.float64))
    writer.add_tensor(B, numbers(32, 4).astype(np.float64))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refused(path, "f64")


def test_row_26_files_that_are_no_gguf(tmp_path: Path) -> None:
    for content in (b"", b"GGUF", b"x" * 100):
        (tmp_path / "a.gguf").write_bytes(content)
        with pytest.raises(ModelFileError):
            open_adapter(tmp_path / "a.gguf", WIDE)
