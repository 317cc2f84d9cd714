"""Adapters that are written: what is read again is the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from safetensors import safe_open

from pymixtral import OutputError
from pymixtral.adapters import gguf_writer, peft_writer
from pymixtral.adapters.opening import open_adapter
from pymixtral.adapters.pairs import rope_rows
from pymixtral.quantize.sources.targets import rope_order
from support.adapters import ADAPTERS, case_config, deltas, difference

CASES = sorted(path.name for path in ADAPTERS.iterdir())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("form", ["gguf", "peft"])
def test_what_is_written_is_read_again_bit_for_bit(tmp_path: Path, case: str, form: str) -> None:
    config = case_config(case)
    adapter = open_adapter(ADAPTERS / case, config)
    path = tmp_path / ("a.gguf" if form == "gguf" else "a")
    write = gguf_writer.write if form == "gguf" else peft_writer.write
    write(adapter, config, path, force=False)
    again = open_adapter(path, config)
    assert set(again.pairs) == set(adapter.pairs)
    for name, (a, b) in adapter.pairs.items():
        found = again.pairs[name]
        assert np.array_equal(found.a[: len(a)], a)
        assert np.array_equal(found.b[: len(b)], b)
        assert not found.a[len(a) :].any()
        assert not found.b[len(b) :].any()
    assert difference(again, case) < 1e-6
    assert sorted(path.parent.iterdir()) == [path]


def test_the_gguf_file_is_as_llama_cpp_wants_it(tmp_path: Path) -> None:
    """Names, shapes, and an alpha that changes nothing, whatever the rank."""
    config = case_config("v4-partial")
    gguf_writer.write(open_adapter(ADAPTERS / "v4-partial", config), config, tmp_path / "a.gguf", force=False)
    reader = GGUFReader(tmp_path / "a.gguf")
    fields = {key: field.contents() for key, field in reader.fields.items()}
    assert fields["general.type"] == "adapter"
    assert fields["general.architecture"] == "llama"
    assert fields["adapter.type"] == "lora"
    assert fields["adapter.lora.alpha"] == 0.0
    shapes = {tensor.name: tensor.data.shape for tensor in reader.tensors}
    assert shapes == {
        "blk.1.attn_v.weight.lora_a": (2, 16),
        "blk.1.attn_v.weight.lora_b": (16, 2),
        "blk.1.ffn_gate_exps.weight.lora_a": (4, 2, 16),
        "blk.1.ffn_gate_exps.weight.lora_b": (4, 24, 2),
        "blk.1.ffn_down_exps.weight.lora_a": (4, 2, 24),
        "blk.1.ffn_down_exps.weight.lora_b": (4, 16, 2),
    }
    data = {tensor.name: tensor.data for tensor in reader.tensors}
    assert not data["blk.1.ffn_gate_exps.weight.lora_b"][[1, 3]].any()


def test_the_folder_is_as_peft_wants_it(tmp_path: Path) -> None:
    config = case_config("v4-all")
    peft_writer.write(open_adapter(ADAPTERS / "v4-all", config), config, tmp_path / "a", force=False)
    found = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert found["target_modules"] == ["gate", "k_proj", "o_proj", "q_proj", "v_proj", "w1", "w2", "w3"]
    assert (found["r"], found["lora_alpha"], found["rank_pattern"]) == (2, 2, {})
    with (
        safe_open(tmp_path / "a" / "adapter_model.safetensors", "numpy") as ours,
        safe_open(ADAPTERS / "v4-all" / "adapter_model.safetensors", "numpy") as theirs,
    ):
        assert set(ours.keys()) == set(theirs.keys())
        for name in ours.keys():  # noqa: SIM118 - no dict
            expected = theirs.get_tensor(name) * (2.5 if ".lora_B." in name else 1)
            assert np.allclose(ours.get_tensor(name), expected, rtol=1e-6)


def test_ranks_that_differ_are_patterns_or_filled(tmp_path: Path) -> None:
    """Of attention they are patterns; experts and router have one, as PEFT fuses them."""
    config = case_config("v4-patterns")
    peft_writer.write(open_adapter(ADAPTERS / "v4-patterns", config), config, tmp_path / "a", force=False)
    found = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert (found["r"], found["lora_alpha"]) == (3, 3)
    assert found["rank_pattern"] == found["alpha_pattern"]
    assert found["rank_pattern"]["model.layers.1.self_attn.q_proj"] == 1
    assert not any("experts" in name for name in found["rank_pattern"])
    assert found["target_modules"] == ["k_proj", "q_proj", "w1", "w2", "w3"]


def test_rows_have_the_order_of_the_quantizer() -> None:
    assert np.array_equal(rope_rows(4, 32), rope_order(4, 8))


@pytest.mark.parametrize("form", ["gguf", "peft"])
def test_row_18_and_19_destinations(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = case_config("v4-attention")
    adapter = open_adapter(ADAPTERS / "v4-attention", config)
    path = tmp_path / ("a.gguf" if form == "gguf" else "a")
    write = gguf_writer.write if form == "gguf" else peft_writer.write

    def full(*_: object) -> bytes:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OutputError, match="free some space"):
            write(adapter, config, path, force=False)
    assert not path.exists()
    write(adapter, config, path, force=False)
    before = deltas(open_adapter(path, config))
    with pytest.raises(OutputError):
        write(adapter, config, path, force=False)
    write(adapter, config, path, force=True)
    assert deltas(open_adapter(path, config)).keys() == before.keys()
    with pytest.raises(OutputError):
        write(adapter, config, tmp_path / "missing" / path.name, force=False)
