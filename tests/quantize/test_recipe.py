"""Which tensor gets which type."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, LlamaFileType

from pymixtral.errors import InvalidArgumentError
from pymixtral.files.types import bits_per_weight
from pymixtral.inspection.inventory import Inventory
from pymixtral.inspection.mixes import MIXES, mixed
from pymixtral.inspection.published import MODELS
from pymixtral.quantize.recipe import RECIPES, TENSOR_TYPES, file_type, fit, overrides, wanted_types
from pymixtral.quantize.sources.targets import Target
from support.checkpoints import ONE_TYPE

Type = GGMLQuantizationType
NORMS = [Target(name, ("x",), (64,)) for name in ("blk.0.attn_norm.weight", "output_norm.weight")]
ROUTER = Target("blk.0.ffn_gate_inp.weight", ("x",), (8, 64))


def mixtral(n_layers: int = 8, cols: int = 256) -> list[Target]:
    """The matrices that mixes treat differently."""
    layers = [
        Target(
            f"blk.{i}.{name}.weight",
            tuple("abcdefgh") if "exps" in name else ("x",),
            (256, cols),
            merged="exps" in name,
        )
        for i in range(n_layers)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate_exps", "ffn_down_exps")
    ]
    return [
        Target("token_embd.weight", ("x",), (64, cols)),
        *layers,
        ROUTER,
        *NORMS,
        Target("output.weight", ("x",), (64, cols)),
    ]


@pytest.mark.parametrize(
    "tensors", [None, 3, "*=q4_0", {"*": "q4_0"}, [None], [("*",)], ["ab"], [(1, "q4_0")], [("*", None)]]
)
def test_patterns_that_are_no_pairs_of_texts(tensors: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="of pattern and type, found"):
        overrides(mixtral(), tensors)


@pytest.mark.parametrize("text", ["x\ny", "x\u2028y", "x" * 250, "x\x1by"])
def test_patterns_and_types_are_quoted_in_one_line(text: str) -> None:
    for pair in ((text, "q4_0"), ("*", text)):
        with pytest.raises(InvalidArgumentError) as caught:
            overrides(mixtral(), [pair])
        assert str(caught.value).isprintable()
        assert text not in str(caught.value)


@pytest.mark.parametrize("recipe", [3, b"q4_0", ["q4_0"], np.zeros(2), "x" * 500])
def test_recipes_that_are_none(recipe: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="expected a type among"):
        wanted_types(mixtral(), recipe)


def test_recipes_are_in_the_order_of_their_bits() -> None:
    whole = Inventory.of_model(MODELS["8x7b"])
    bits = [
        mixed(whole, name).bits_per_weight if name in MIXES else bits_per_weight(TENSOR_TYPES[name]) for name in RECIPES
    ]
    assert bits == sorted(bits, reverse=True)
    assert set(RECIPES) == {*TENSOR_TYPES, *MIXES}


@pytest.mark.parametrize("recipe", RECIPES)
def test_norms_and_router_stay_f32(recipe: str) -> None:
    assert wanted_types([*NORMS, ROUTER], recipe) == [Type.F32] * 3


@pytest.mark.parametrize("recipe", ONE_TYPE)
def test_a_type_is_that_of_all_matrices(recipe: str) -> None:
    names = ("token_embd.weight", "output.weight", "blk.3.attn_k.weight", "blk.3.ffn_gate.weight")
    targets = [Target(name, ("x",), (8, 64)) for name in names] + [
        Target("blk.0.ffn_down_exps.weight", ("x", "y"), (8, 96), merged=True)
    ]
    assert wanted_types(targets, recipe) == [TENSOR_TYPES[recipe]] * 5


@pytest.mark.parametrize(
    ("recipe", "most", "large", "small", "ffn_down"),
    [
        ("q8_0", Type.Q8_0, Type.Q8_0, Type.Q8_0, "88888888"),
        ("q6_k", Type.Q6_K, Type.Q6_K, Type.Q6_K, "66666666"),
        ("q5_1", Type.Q5_1, Type.Q5_1, Type.Q6_K, "55555555"),
        ("q5_k_m", Type.Q5_K, Type.Q5_K, Type.Q6_K, "65565566"),
        ("q5_k_s", Type.Q5_K, Type.Q5_K, Type.Q6_K, "55555555"),
        ("q5_0", Type.Q5_0, Type.Q5_0, Type.Q6_K, "55555555"),
        ("q4_1", Type.Q4_1, Type.Q5_K, Type.Q5_K, "44444444"),
        ("q4_k_m", Type.Q4_K, Type.Q5_K, Type.Q5_K, "64464466"),
        ("q4_k_s", Type.Q4_K, Type.Q5_K, Type.Q5_K, "54444444"),
        ("q4_0", Type.Q4_0, Type.Q5_K, Type.Q5_K, "44444444"),
        ("q3_k_m", Type.Q3_K, Type.Q4_K, Type.Q5_K, "44444444"),
        ("q3_k_s", Type.Q3_K, Type.Q4_K, Type.Q5_K, "33333333"),
        ("q2_k", Type.Q2_K, Type.Q4_K, Type.Q5_K, "33333333"),
    ],
)
def test_mixes_have_mixtral_s_own_choices(recipe: str, most: Type, large: Type, small: Type, ffn_down: str) -> None:
    """attn_q and attn_output are large; attn_k, attn_v and the embedding small."""
    targets = mixtral()
    found = dict(zip([target.name for target in targets], wanted_types(targets, recipe), strict=True))
    assert found["token_embd.weight"] == small
    assert found["output.weight"] == (Type.Q8_0 if recipe == "q8_0" else Type.Q6_K)
    for i in range(8):
        assert found[f"blk.{i}.ffn_gate_exps.weight"] == most
        assert [found[f"blk.{i}.{name}.weight"] for name in ("attn_q", "attn_output")] == [large, large]
        assert [found[f"blk.{i}.{name}.weight"] for name in ("attn_k", "attn_v")] == [small, small]
    assert "".join(found[f"blk.{i}.ffn_down_exps.weight"].name[1] for i in range(8)) == ffn_down


def test_patterns_decide_and_the_last_counts() -> None:
    patterns = [("blk.*", "q8_0"), ("blk.[01].ffn_*_exps.weight", "q4_k"), ("output.weight", "f16")]
    found = overrides(mixtral(), patterns)
    assert found["blk.0.ffn_down_exps.weight"] == found["blk.1.ffn_gate_exps.weight"] == Type.Q4_K
    assert found["blk.2.ffn_down_exps.weight"] == found["blk.0.attn_q.weight"] == Type.Q8_0
    assert found["output.weight"] == Type.F16
    assert not found.keys() & {"token_embd.weight", "blk.0.ffn_gate_inp.weight", "blk.0.attn_norm.weight"}


@pytest.mark.parametrize(
    ("pattern", "kind", "words"),
    [
        ("blk.99.*", "q8_0", r"'blk\.99\.\*': .*matches no tensor"),
        ("BLK.0.*", "q8_0", "matches no tensor"),
        ("*_norm.weight", "q8_0", "norms and routers stay f32"),
        ("*.ffn_gate_inp.weight", "f16", "norms and routers stay f32"),
        ("blk.*", "q4_k_m", "expected a type among f32, .*q4_k"),
        ("blk.*", "iq1_m", "found 'iq1_m'"),
    ],
)
def test_patterns_that_do_nothing_are_refused(pattern: str, kind: str, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        overrides(mixtral(), [(pattern, kind)])


def test_a_pattern_that_would_never_end_is_refused() -> None:
    for pattern in ("[" * 10**6, "*?" * 10**5):
        with pytest.raises(InvalidArgumentError, match="expected a pattern of at most 256 characters, found"):
            overrides(mixtral(), [(pattern, "q8_0")])
    for pattern in ("*a" * 128, "[" * 256, "*[!b]" * 51):
        with pytest.raises(InvalidArgumentError, match="matches no tensor"):
            overrides(mixtral(), [(pattern, "q8_0")])


@pytest.mark.parametrize(("cols", "kind"), [(256, Type.Q4_K), (96, Type.Q5_0), (80, Type.F16), (1, Type.F16)])
def test_columns_decide_what_a_type_becomes(cols: int, kind: Type) -> None:
    assert fit(Target("blk.0.attn_output.weight", ("x",), (64, cols)), Type.Q4_K) == kind


def test_file_type_is_the_recipe_s_or_that_of_most_bytes() -> None:
    assert file_type("q4_k_m", Counter()) == LlamaFileType.MOSTLY_Q4_K_M
    assert file_type("f32", Counter()) == LlamaFileType.ALL_F32
    assert file_type(None, Counter({Type.Q4_K: 5, Type.Q8_0: 3})) == LlamaFileType.MOSTLY_Q4_K_S
    assert all(
        file_type(recipe, Counter()).name.removeprefix("MOSTLY_").lower() in (recipe, f"{recipe}_s", "all_f32")
        for recipe in RECIPES
    )


@pytest.mark.parametrize("name", ["q4", "Q8_0", "", "8"])
def test_unknown_type_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="f32, bf16, f16, q8_0, q6_k"):
        wanted_types(mixtral(1), name)
