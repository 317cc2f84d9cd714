"""Published models and mixes: their sizes are those of published files."""

from __future__ import annotations

import pytest
from gguf import GGMLQuantizationType

from pymixtral.errors import InvalidArgumentError
from pymixtral.inventory import Inventory, Part
from pymixtral.mixes import MIXES, MODELS, mixed, parts

Type = GGMLQuantizationType


def inventory(model: str) -> Inventory:
    config = MODELS[model]
    return Inventory(parts(config), config.n_experts, config.n_experts_used)


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
    # The vocabularies of 8x22b differ by 768 tokens between files, some 0.01 GB.
    assert mixed(inventory(model), mix).n_bytes / 1e9 == pytest.approx(gigabytes, abs=0.06 if model == "8x7b" else 0.021)


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
