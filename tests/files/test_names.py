"""The names of tensors: taken apart and put together, merged experts and single ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymixtral.files.names import CLASSES, TensorName, expert_name, merged_name, tensor_class


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("token_embd.weight", TensorName("token_embd")),
        ("output.weight", TensorName("output")),
        ("rope_freqs.weight", TensorName("rope_freqs")),
        ("blk.0.attn_output.weight", TensorName("attn_output", 0)),
        ("blk.31.ffn_gate_inp.weight", TensorName("ffn_gate_inp", 31)),
        ("blk.31.ffn_gate.weight", TensorName("ffn_gate", 31)),
        ("blk.3.ffn_gate_exps.weight", TensorName("ffn_gate", 3, merged=True)),
        ("blk.3.ffn_gate_up_exps.weight", TensorName("ffn_gate_up", 3, merged=True)),
        ("blk.3.ffn_down.63.weight", TensorName("ffn_down", 3, expert=63)),
    ],
)
def test_names_of_models(name: str, parsed: TensorName) -> None:
    assert TensorName.parse(name) == parsed
    assert str(parsed) == name
    assert tensor_class(name) == parsed.tensor_class


@pytest.mark.parametrize(
    "name",
    [
        *("", "weight", ".weight", "output", "output.weight\n", "\noutput.weight", "blk.0.rope_freqs.weight"),
        *("attn_q.weight", "blk.1.output.weight", "blk..attn_q.weight", "blk.-1.attn_q.weight", "blk.x.attn_q.weight"),
        *("blk.0.attn_q.bias", "blk.0.attn_q.1.weight", "blk.0.attn_q_exps.weight", "blk.0.ffn_gate_inp_exps.weight"),
        *("blk.0.ffn_gate_up.weight", "blk.0.ffn_gate_up.3.weight"),
        *("blk.00.ffn_up.weight", "blk.0.ffn_up.01.weight", "blk.0.ffn_up.1.1.weight", "blk.\u0663.attn_q.weight"),
    ],
)
def test_other_names_are_nobody_s(name: str) -> None:
    assert TensorName.parse(name) is None
    assert (tensor_class(name), merged_name(name)) == ("other", name)


def test_one_expert_s_name_and_that_of_all() -> None:
    one, merged = "blk.12.ffn_up.7.weight", "blk.12.ffn_up_exps.weight"
    assert merged_name(one) == merged
    assert expert_name(merged, 7) == one
    parsed = TensorName.parse(one)
    assert parsed
    assert (str(parsed.of_all_experts()), str(parsed.of_all_experts().of_expert(7))) == (merged, one)
    for name in (merged, "blk.12.ffn_up.weight", "blk.12.attn_q.weight", "output.weight"):
        assert merged_name(name) == name


words = st.sampled_from(["blk", "0", "12", "ffn_up", "ffn_up_exps", "_exps", "attn_q", "output", "weight", "bias", ""])


@given(st.lists(words, max_size=6).map(".".join) | st.text(max_size=30))
def test_what_is_parsed_is_put_together_again(name: str) -> None:
    parsed = TensorName.parse(name)
    if parsed is not None:
        assert str(parsed) == name
    assert tensor_class(name) in CLASSES
