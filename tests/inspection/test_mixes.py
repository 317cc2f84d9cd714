"""Published models and mixes: their sizes are those of published files, or close to them."""

from __future__ import annotations

import pytest
from gguf import GGMLQuantizationType

from pymixtral.errors import InvalidArgumentError
from pymixtral.inspection.inventory import Inventory, Part
from pymixtral.inspection.mixes import MIXES, mixed
from pymixtral.inspection.published import MODELS

Type = GGMLQuantizationType


def inventory(model: str) -> Inventory:
    config = MODELS[model]
    return Inventory.of_model(config)


# Sizes that model cards of published files state, in units of 10^9 bytes.
@pytest.mark.parametrize(
    ("model", "mix", "gigabytes"),
    [
        ("8x7b", "f16", 93.4),
        ("8x7b", "q8_0", 49.6),
        ("8x7b", "q6_k", 38.4),
        ("8x7b", "q5_k_m", 33.2),
        ("8x7b", "q5_0", 32.2),
        ("8x7b", "q4_k_m", 28.4),
        ("8x7b", "q4_0", 26.4),
        ("8x7b", "q3_k_m", 22.5),
        ("8x7b", "q2_k", 17.3),
        ("8x22b", "q5_k_m", 99.96),
        ("8x22b", "q5_k_s", 96.97),
        ("8x22b", "q4_k_m", 85.58),
        ("8x22b", "q4_k_s", 80.47),
        ("8x22b", "iq4_nl", 80.47),
        ("8x22b", "iq4_xs", 76.35),
        ("8x22b", "q3_k_l", 72.57),
        ("8x22b", "q3_k_m", 67.78),
        ("8x22b", "q3_k_s", 61.49),
        ("8x22b", "q2_k", 52.10),
        ("7b", "q4_k_m", 4.37),
        ("7b", "q8_0", 7.70),
        ("7b", "q5_k_m", 5.13),
    ],
)
def test_mixes_have_the_sizes_of_published_files(model: str, mix: str, gigabytes: float) -> None:
    """Of Mixtrals closely: what every token passes has other types than llama.cpp's."""
    close = {"abs": 0.021} if model == "7b" else {"rel": 0.006}
    assert mixed(inventory(model), mix).n_bytes / 1e9 == pytest.approx(gigabytes, **close)


# Bits per weight of 8x7b by llama.cpp's rules, and how much larger ours may be.
@pytest.mark.parametrize(
    ("mix", "bits", "more"),
    [
        *[
            ("q8_0", 8.5007, 0),
            ("q6_k", 6.5744, 0),
            ("q5_1", 6.0167, 0),
            ("q5_k_m", 5.6920, 0),
            ("q5_k_s", 5.5210, 0),
            ("q5_0", 5.5210, 0),
        ],
        *[
            ("q4_1", 5.0253, 0),
            ("q4_k_m", 4.8730, 0),
            ("q4_k_s", 4.5813, 0),
            ("iq4_nl", 4.5813, 0),
            ("q4_0", 4.5296, 0.002),
        ],
        *[
            ("iq4_xs", 4.3464, 0.0003),
            ("q3_k_l", 4.1400, 0.0032),
            ("q3_k_m", 3.8620, 0),
            ("q3_k_s", 3.4999, 0),
            ("q2_k", 2.9652, 0.0004),
        ],
    ],
)
def test_mixtral_is_hardly_larger_than_by_the_rules_of_llama_cpp(mix: str, bits: float, more: float) -> None:
    assert 0.996 * bits < mixed(inventory("8x7b"), mix).bits_per_weight < (1 + more) * bits + 5e-5


def test_what_every_token_passes_is_treated_alike_in_mixtures_of_more_experts_alone() -> None:
    few, eight, many = (
        {part.name: part.type for part in mixed(Inventory(inventory("8x7b").parts, n, [2]), "q2_k").parts}
        for n in (4, 8, 16)
    )
    assert eight == many
    assert (few["token_embd.weight"], eight["token_embd.weight"]) == (Type.Q2_K, Type.Q5_K)
    assert (few["blk.1.attn_v.weight"], eight["blk.1.attn_v.weight"]) == (Type.Q4_K, Type.Q5_K)


@pytest.mark.parametrize(
    ("mix", "first", "third", "second"),
    [
        ("iq2_xxs", Type.IQ2_S, Type.IQ2_XXS, Type.IQ2_XXS),
        ("iq2_xs", Type.IQ2_S, Type.IQ2_XS, Type.IQ2_XS),
        ("iq2_s", Type.IQ2_S, Type.IQ2_S, Type.IQ2_S),
        ("iq2_m", Type.IQ3_S, Type.IQ2_S, Type.IQ2_S),
        ("iq3_xxs", Type.IQ3_S, Type.IQ3_XXS, Type.IQ3_XXS),
        ("iq3_s", Type.IQ3_S, Type.IQ3_S, Type.IQ3_S),
        ("iq3_m", Type.Q4_K, Type.Q4_K, Type.IQ3_S),
    ],
)
def test_mixes_of_lattices_spend_bits_on_the_first_ffn_down(mix: str, first: Type, third: Type, second: Type) -> None:
    of = {part.name: part.type for part in mixed(inventory("8x7b"), mix).parts}
    down = [of[f"blk.{i}.ffn_down_exps.weight"] for i in range(8)]
    assert down[:4] == [first] * 4  # an eighth of the layers
    assert (down[6], down[5]) == (third, second)
    assert {of[f"blk.{i}.ffn_{name}_exps.weight"] for i in range(8) for name in ("gate", "up")} == {MIXES[mix]}
    assert (of["blk.9.attn_q.weight"], of["blk.9.attn_v.weight"]) == (Type.Q4_K, Type.Q5_K)
    assert of["output.weight"] == Type.Q6_K


def test_a_dense_model_has_more_bits_where_values_are_made() -> None:
    of = {part.name: part.type for part in mixed(inventory("7b"), "iq2_m").parts}
    assert (of["blk.9.attn_v.weight"], of["blk.9.attn_output.weight"]) == (Type.Q4_K, Type.IQ3_S)
    assert of["blk.9.attn_q.weight"] == Type.IQ2_S


def test_mixes_are_listed_from_the_largest_to_the_smallest() -> None:
    sizes = [mixed(inventory("8x7b"), mix).n_bytes for mix in MIXES]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    ("mix", "cols", "kind"),
    [
        ("q4_k_m", 256, Type.Q4_K),
        ("q4_k_m", 96, Type.Q5_0),
        ("q5_k_m", 96, Type.Q5_1),
        ("q6_k", 96, Type.Q8_0),
        ("q3_k_s", 96, Type.IQ4_NL),
        ("q2_k", 96, Type.IQ4_NL),
        ("iq4_xs", 96, Type.IQ4_NL),
        ("iq3_m", 96, Type.IQ4_NL),
        ("iq2_xxs", 96, Type.IQ4_NL),
        ("q4_0", 96, Type.Q4_0),
        ("q4_k_m", 80, Type.F16),
        ("q4_0", 80, Type.F16),
    ],
)
def test_rows_that_do_not_divide_into_blocks(mix: str, cols: int, kind: GGMLQuantizationType) -> None:
    parts = [Part("blk.0.attn_q.weight", Type.F32, (64, cols)), Part("output_norm.weight", Type.F32, (cols,))]
    assert [part.type for part in mixed(Inventory(parts), mix).parts] == [kind, Type.F32]


def test_an_unknown_mix_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"q4_k_m.*found 'q4_k_x'"):
        mixed(inventory("7b"), "q4_k_x")
