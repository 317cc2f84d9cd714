"""Inspection: headers of files of true size, of files that cannot run, of files that are broken."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter

from pymixtral import Mixtral
from pymixtral.errors import InvalidArgumentError, ModelConfigError, ModelFileError
from pymixtral.files.gguf import GGUFFile
from pymixtral.inspection.inspect import inspect
from pymixtral.inspection.inventory import Inventory
from pymixtral.inspection.mixes import mixed
from pymixtral.inspection.published import MODELS
from pymixtral.inspection.verify import verify
from pymixtral.model.footprint import footprint, kv_bytes_per_token
from pymixtral.model.kv_cache import KVCache, n_pages_for
from support.ggufs import rewrite
from support.holes import split, write_hole

CONFIG = MODELS["8x7b"]


def mixtral(mix: str) -> Inventory:
    return mixed(Inventory.of_model(CONFIG), mix)


@pytest.mark.parametrize("mix", ["q8_0", "q4_k_m", "q2_k", "iq4_xs"])
@pytest.mark.parametrize("merged", [True, False])
def test_mixtral_8x7b_of_true_size(tmp_path: Path, mix: str, merged: bool) -> None:
    expected = mixtral(mix)
    path = write_hole(tmp_path / "mixtral.gguf", CONFIG, expected.parts if merged else split(expected.parts, 8))
    begin = time.perf_counter()
    found = inspect(path)
    assert time.perf_counter() - begin < 2
    assert path.stat().st_blocks * 512 < 1 << 20 < found.file_bytes  # a hole
    assert f"{found.inventory.n_weights / 1e9:.1f} {found.inventory.active_weights / 1e9:.1f}" == "46.7 12.9"
    assert (found.inventory.n_bytes, found.inventory.active_bytes) == (expected.n_bytes, expected.active_bytes)
    assert found.config is not None
    assert (found.config.n_experts, found.config.n_experts_used, found.has_tokenizer) == (8, 2, False)
    memory = found.footprint(32768)
    assert memory is not None
    assert (memory.weights, memory.kv) == (expected.n_bytes, 4 << 30)
    written = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert (written["parameters"], written["active_parameters"]) == (46_702_792_704, 12_879_925_248)
    assert written["kv_bytes_per_token"] == {"f16": 128 * 1024, "f32": 256 * 1024, "q8_0": 68 * 1024}
    assert written["memory"]["context"] == 4096
    assert written["tensors"]["experts"]["count"] == (96 if merged else 768)


def test_a_model_that_runs(tiny_q8_0: Path) -> None:
    found = inspect(tiny_q8_0)
    assert (found.problem, found.has_tokenizer) == (None, True)
    assert found.to_json()["metadata"]["tokenizer.ggml.tokens"] == {
        "length": 4096,
        "first": ["<unk>", "<s>", "</s>", "<0x00>", "<0x01>", "<0x02>", "<0x03>", "<0x04>"],
    }
    with Mixtral(tiny_q8_0) as engine:
        assert found.config == engine.config


def test_keys_and_values_take_what_the_cache_takes() -> None:
    c = MODELS["7b"]
    for n_ctx, kv_type in ((1, "f16"), (64, "q8_0"), (65, "f16"), (1000, "f32"), (1000, "q8_0")):
        cache = KVCache(c.n_layers, c.n_kv_heads, c.head_dim, n_pages_for(n_ctx), kv_type)
        assert footprint(c, 0, n_ctx, kv_type).kv == cache.k.nbytes + cache.v.nbytes
    assert kv_bytes_per_token(c) * 64 == footprint(c, 0, 1).kv


def test_the_context_has_limits(tiny_q8_0: Path) -> None:
    found = inspect(tiny_q8_0)
    assert found.config is not None
    for n_ctx, bound in ((0, "at least 1"), (2049, "at most 2048")):
        with pytest.raises(InvalidArgumentError, match=bound):
            found.footprint(n_ctx)


def test_another_architecture_is_described_with_the_reason_why_it_does_not_run(tmp_path: Path) -> None:
    found = inspect(write_hole(tmp_path / "other.gguf", CONFIG, mixtral("q8_0").parts, architecture="gemma"))
    assert found.config is None
    assert found.problem is not None
    assert found.problem.startswith("metadata key 'general.architecture'")
    assert found.footprint() is None
    assert found.to_json()["active_parameters"] is None
    assert found.inventory.n_weights == 46_702_792_704


def test_a_missing_tensor_is_the_reason(tmp_path: Path) -> None:
    name = "blk.31.ffn_down_exps.weight"
    parts = [part for part in mixtral("q8_0").parts if part.name != name]
    found = inspect(write_hole(tmp_path / "part.gguf", CONFIG, parts))
    assert found.config is not None
    assert found.problem is not None
    assert found.problem.startswith(f"tensor '{name}' is missing")


def test_metadata_is_plain_in_json(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "odd.gguf", "llama")
    writer.add_float32("infinite", math.inf)
    writer.add_array("scores", [1.5, -math.inf])
    writer.add_array("flags", [True, False])
    writer.add_string("text", "a\n\x1b[31m\x00")
    writer.add_bool("flag", True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    metadata = json.loads(json.dumps(inspect(tmp_path / "odd.gguf").to_json(), allow_nan=False))["metadata"]
    del metadata["general.architecture"]
    assert metadata == {
        "infinite": "inf",
        "scores": [1.5, "-inf"],
        "flags": [True, False],
        "text": "a\n\x1b[31m\x00",
        "flag": True,
    }


def test_a_broken_file_is_refused(tmp_path: Path, tiny_q8_0: Path) -> None:
    (tmp_path / "short.gguf").write_bytes(tiny_q8_0.read_bytes()[:-100])
    with pytest.raises(ModelFileError, match="truncated"):
        inspect(tmp_path / "short.gguf")


def test_a_tokenizer_of_another_size_is_a_problem_as_it_is_when_the_model_is_opened(
    tiny_q8_0: Path, tmp_path: Path
) -> None:
    with GGUFFile(tiny_q8_0) as file:
        keys: dict[str, Any] = {"llama.vocab_size": 4096}
        for name in ("tokens", "scores", "token_type"):
            values: Any = file.metadata[f"tokenizer.ggml.{name}"]
            keys[f"tokenizer.ggml.{name}"] = [
                value if isinstance(value, str) else value.item() for value in values[:-1]
            ]
    path = rewrite(tiny_q8_0, tmp_path / "m.gguf", keys=keys)
    for call in (Mixtral, verify):
        with pytest.raises(ModelConfigError, match="expected 4096 tokens, the model's vocabulary, found 4095"):
            call(path)
    problem = inspect(path).problem
    assert problem is not None
    assert "found 4095" in problem
