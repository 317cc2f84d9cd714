"""Which tensor gets which type."""

from __future__ import annotations

import pytest
from gguf import GGMLQuantizationType
from pymixtral.quantize.layout import Target
from pymixtral.quantize.recipe import TYPES, parse_type, row_bytes, tensor_type

from pymixtral.errors import InvalidArgumentError


@pytest.mark.parametrize("asked", TYPES.values(), ids=TYPES)
def test_norms_and_router_stay_f32(asked: GGMLQuantizationType) -> None:
    for name, shape in (("blk.0.attn_norm.weight", (64,)), ("output_norm.weight", (64,)), ("blk.0.ffn_gate_inp.weight", (8, 64))):
        assert tensor_type(Target(name, ("x",), shape), asked) == GGMLQuantizationType.F32


@pytest.mark.parametrize("asked", TYPES.values(), ids=TYPES)
def test_matrices_get_the_asked_type(asked: GGMLQuantizationType) -> None:
    for name in ("token_embd.weight", "output.weight", "blk.3.attn_k.weight", "blk.3.ffn_gate.weight"):
        assert tensor_type(Target(name, ("x",), (8, 64)), asked) == asked
    assert tensor_type(Target("blk.0.ffn_down_exps.weight", ("x", "y"), (8, 96), merged=True), asked) == asked


@pytest.mark.parametrize("cols", [1, 31, 33, 80])
def test_rows_that_do_not_divide_into_blocks_become_f16(cols: int) -> None:
    target = Target("blk.0.attn_output.weight", ("x",), (64, cols))
    assert tensor_type(target, GGMLQuantizationType.Q8_0) == GGMLQuantizationType.F16
    assert tensor_type(target, GGMLQuantizationType.Q4_0) == GGMLQuantizationType.F16
    assert tensor_type(target, GGMLQuantizationType.F32) == GGMLQuantizationType.F32


def test_row_bytes() -> None:
    assert {name: row_bytes(kind, 64) for name, kind in TYPES.items()} == {"f32": 256, "bf16": 128, "f16": 128, "q8_0": 68, "q4_0": 36}


@pytest.mark.parametrize("name", ["q4_k", "Q8_0", "", "8"])
def test_unknown_type_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="f32, bf16, f16, q8_0, q4_0"):
        parse_type(name)
