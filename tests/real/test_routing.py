"""Routing of a real model: its experts go by what the prompts of their router's rows were about."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pymixtral import Mixtral, UnsupportedError
from pymixtral.evaluation.routing import Usage, chance, distance, trace, usage
from support.paths import DATA, ROOT

pytestmark = pytest.mark.real

PYTHON, TALES, QUESTIONS = 0, 1, 2
"""The experts, by the prompts that the router's rows were made of; see support.frankenmoe.PROMPTS."""

DEEP = slice(13, None)
"""Layers whose hidden rows tell kinds of text apart."""


@pytest.fixture(scope="module")
def model(of_type: Callable[[str], Path]) -> Iterator[Mixtral]:
    with Mixtral(of_type("q8_0"), n_ctx=512) as model:
        yield model


@pytest.fixture(scope="module")
def usages(model: Mixtral) -> dict[str, Usage]:
    paths = {name: DATA / "texts" / f"{name}.txt" for name in ("tale", "program")} | {"C": ROOT / "csrc" / "moe.c"}
    texts = [(name, path.read_text(encoding="utf-8")) for name, path in paths.items()]
    return {domain.name: usage(domain) for domain in trace(model, texts, n_windows=4)}


def test_kinds_of_text_go_to_their_experts(usages: dict[str, Usage]) -> None:
    tale, program, c = (usages[name].either[DEEP].mean(axis=0) for name in ("tale", "program", "C"))
    assert tale[TALES] > 2 * program[TALES]
    assert program[PYTHON] > 3 * tale[PYTHON]
    assert c[PYTHON] > 3 * tale[PYTHON]
    assert max(program[QUESTIONS], c[QUESTIONS]) < 0.1


def test_two_programming_languages_are_near_and_tales_are_far(usages: dict[str, Usage]) -> None:
    tale, program, c = (usages[name] for name in ("tale", "program", "C"))
    assert distance(program, c)[DEEP].mean() < 0.1
    assert min(distance(tale, program)[DEEP].mean(), distance(tale, c)[DEEP].mean()) > 0.25


def test_neighbours_share_experts_beyond_chance(usages: dict[str, Usage]) -> None:
    lot = chance(4, 2)
    for used in usages.values():
        assert used.repeats_first[DEEP].min() > 2 * lot["repeats_first"]
        assert used.repeats_any[DEEP].min() > lot["repeats_any"]
        assert (used.hits[DEEP, 2] > lot["hits"][2]).all()


def test_a_text_has_the_same_trace_as_a_prompt_and_as_it_is_written(model: Mixtral) -> None:
    options: dict[str, Any] = {"max_tokens": 24, "temperature": 0, "ignore_eos": True}
    prompt = "Once upon a time there was a king"
    plain, traced = model.generate(prompt, **options), model.generate(prompt, routing="full", **options)
    assert traced.text == plain.text
    assert traced.routing is not None
    again = model.routing(traced.routing.ids, full=True)
    for name in ("ids", "experts", "weights", "probabilities"):
        assert np.array_equal(getattr(again, name), getattr(traced.routing, name))


def test_the_dense_model_has_none(smollm2: Path) -> None:
    with Mixtral(smollm2, n_ctx=64) as model, pytest.raises(UnsupportedError, match="a dense one"):
        model.routing("Once upon a time")
