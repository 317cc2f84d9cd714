"""Patterns of strangers: what re says of them, in little time."""

from __future__ import annotations

import re
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pymixtral.adapters.patterns import MAX_CHARACTERS, MAX_STEPS, Pattern, PatternError

NAMES = (
    "model.layers.0.self_attn.q_proj",
    "model.layers.11.mlp.experts.gate_up_proj",
    "model.layers.1.block_sparse_moe.experts.3.w1",
)


def begins(name: str) -> list[int]:
    return [0, *(i + 1 for i, character in enumerate(name) if character == ".")]


@pytest.mark.parametrize(
    "pattern",
    [
        r".*\.gate_up_proj",
        r"^model\.layers\.(0|1)\.self_attn\.q_proj",
        r"^self_attn\.q_proj",
        "layers.[0-9]+.mlp.*",
        r".*self_attn\.(q|v)_proj$",
        r"layers\.\d+?\.(?:mlp|block_sparse_moe)\.experts\.[^012]\.w[1-3]",
        "w1",
        "",
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_matches_as_peft_does(pattern: str, name: str) -> None:
    expected = re.match(rf"(.*\.)?({pattern})$", name) is not None
    assert Pattern(pattern).matches(name, begins(name)) == expected


ATOMS = st.sampled_from(["a", "b", r"\.", ".", "[ab]", "[^a]", r"\w", r"\d", "(a|b)", "(?:ab|)", "(a*|b)", "^", "$"])


@settings(deadline=None)
@given(
    st.lists(st.tuples(ATOMS, st.sampled_from(["", "", "*", "+", "?", "*?"])), max_size=5),
    st.text("ab.0", max_size=7),
)
def test_any_pattern_matches_what_re_matches(parts: list[tuple[str, str]], text: str) -> None:
    pattern = "".join(atom + ("" if atom in "^$" else repeat) for atom, repeat in parts)
    assert Pattern(pattern).matches(text) == (re.fullmatch(pattern, text) is not None)


@settings(deadline=None)
@given(st.text(r"ab.*+?()[]{}|\^$-d", max_size=12), st.text("ab.-", max_size=6))
def test_any_text_is_matched_as_by_re_or_refused(pattern: str, text: str) -> None:
    try:
        found = Pattern(pattern).matches(text)
    except PatternError:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of signs in brackets that may mean something one day
        expected = re.fullmatch(pattern, text) is not None
    assert found == expected


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*b", "(a|a)" * 60, "(.*.*)*x", "((a*)*)*b", ".*" * 100 + "x"])
def test_what_takes_re_for_ever_takes_no_time(pattern: str) -> None:
    assert not Pattern(pattern).matches("a" * 59 + "c")


def mixtral(n_layers: int) -> list[str]:
    """The names of a model's experts."""
    names = [f"block_sparse_moe.experts.{e}.w{w}" for e in range(8) for w in (1, 2, 3)]
    return [f"model.layers.{layer}.{name}" for layer in range(n_layers) for name in names]


@pytest.mark.parametrize("text", [".*" * 499 + "x", "(" * 20 + ".*" * 470 + ")*" * 19 + ")y", "(?:.*|.*)*" * 90 + "y"])
def test_all_names_of_a_model_take_a_pattern_no_time_either(text: str) -> None:
    pattern = Pattern(text)
    with pytest.raises(PatternError, match=f"{MAX_STEPS} steps"):
        any(pattern.matches(name) for name in mixtral(100))
    plain = Pattern(r".*\.experts\.\d+\.w[13]")
    assert sum(plain.matches(name, begins(name)) for name in mixtral(56)) == 56 * 8 * 2


@pytest.mark.parametrize(
    "pattern",
    [
        "(",
        ")",
        "a)",
        "[",
        "[]",
        "*",
        "a**",
        "a{2}",
        r"\b",
        r"\1",
        "^*",
        r"[\d-z]",
        r"[\.-z]",
        "(?=a)",
        "(?P<n>a)",
        "\\",
        "[z-a]",
        "(" * 30,
        "[[a]",
    ],
)
def test_what_is_no_plain_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(PatternError, match="expected"):
        Pattern(pattern)


def test_long_patterns_are_refused() -> None:
    with pytest.raises(PatternError, match=str(MAX_CHARACTERS)):
        Pattern("a" * (MAX_CHARACTERS + 1))
