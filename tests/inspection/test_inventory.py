"""Tensors by class and their sums."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf import GGMLQuantizationType

from pymixtral.files.gguf import GGUFFile
from pymixtral.inspection.inventory import Inventory, Part
from pymixtral.inspection.mixes import mixed
from pymixtral.inspection.published import MODELS
from pymixtral.model.config import ModelConfig
from pymixtral.model.weights import load_weights
from support.holes import split

Type = GGMLQuantizationType


def inventory(model: str) -> Inventory:
    config = MODELS[model]
    return Inventory.of_model(config)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("token_embd.weight", "embedding"),
        ("output.weight", "output"),
        ("output_norm.weight", "norms"),
        ("blk.0.attn_norm.weight", "norms"),
        ("blk.31.ffn_norm.weight", "norms"),
        ("blk.10.attn_k.weight", "attention"),
        ("blk.10.attn_output.weight", "attention"),
        ("blk.10.ffn_gate_inp.weight", "router"),
        ("blk.10.ffn_gate_exps.weight", "experts"),
        ("blk.10.ffn_down.63.weight", "experts"),
        ("blk.10.ffn_down.weight", "feed-forward"),
        ("blk.10.attn_q.bias", "other"),
        ("rope_freqs.weight", "rope"),
        ("output.weight\n", "other"),
    ],
)
def test_classes(name: str, kind: str) -> None:
    assert Part(name, Type.F32, (8,)).tensor_class == kind


@pytest.mark.parametrize(
    ("model", "total", "active"),
    # Mistral's own figures: 46.7B and 12.9B, 141B and 39B, 7.3B (7.24 where the numbers are
    # counted)
    [
        ("8x7b", 46_702_792_704, 12_879_925_248),
        ("8x22b", 140_630_071_296, 39_161_468_928),
        ("7b", 7_241_732_096, 7_241_732_096),
    ],
)
def test_parameters_are_those_published(model: str, total: int, active: int) -> None:
    found = inventory(model)
    assert (found.n_weights, found.active_weights) == (total, active)


def test_split_experts_count_as_merged_ones() -> None:
    merged = mixed(inventory("8x7b"), "q4_k_m")
    apart = Inventory(split(merged.parts, 8), 8, [2])
    assert len(apart.parts) == 995  # as in the files of that time
    assert (apart.n_bytes, apart.active_bytes, apart.active_weights) == (
        merged.n_bytes,
        merged.active_bytes,
        merged.active_weights,
    )
    assert mixed(inventory("8x7b"), "q3_k_m").types == mixed(apart, "q3_k_m").types


def test_active_bytes_are_those_that_the_engine_reads(tiny_q8_0: Path, tiny_q4_0: Path, tiny_f32: Path) -> None:
    for path in (tiny_q8_0, tiny_q4_0, tiny_f32):
        with GGUFFile(path) as file:
            config = ModelConfig.from_gguf(file)
            found = Inventory(
                (Part(t.name, t.type, t.shape) for t in file.tensors.values()), config.n_experts, config.experts_used
            )
            assert found.n_bytes == sum(tensor.data.nbytes for tensor in file.tensors.values())
            assert found.active_bytes == load_weights(file, config).active_bytes(config.n_experts_used)


def test_a_tied_embedding_is_read_whole() -> None:
    untied = inventory("7b")
    tied = Inventory(part for part in untied.parts if part.name != "output.weight")
    assert tied.tied
    row = 4 * 4096
    assert untied.active_bytes - tied.active_bytes == row
    assert mixed(tied, "q4_0").classes["embedding"].types.keys() == {Type.Q6_K}  # the output matrix's type


def test_totals_of_a_class() -> None:
    found = mixed(inventory("8x7b"), "q3_k_m")
    attention = found.classes["attention"]
    assert (attention.n_tensors, attention.n_weights) == (128, 32 * (2 * 4096 * 4096 + 2 * 1024 * 4096))
    assert list(attention.types) == [Type.Q4_K, Type.Q5_K]
    assert sum(attention.types.values()) == attention.n_bytes
    assert attention.bits_per_weight == pytest.approx((4.5 * 32 + 5.5 * 8) / 40)
    assert found.classes["router"].types.keys() == {Type.F32}
    assert sum(total.n_bytes for total in found.classes.values()) == found.n_bytes == sum(found.types.values())


def test_an_empty_file_has_an_inventory() -> None:
    found = Inventory([])
    assert (found.n_weights, found.n_bytes, found.active_bytes, found.bits_per_weight) == (0, 0, 0, 0.0)
