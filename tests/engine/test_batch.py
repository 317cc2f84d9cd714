"""The batch of a pass: texts that want rows of different kinds, and passes that fail after they were computed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pymixtral import Mixtral
from pymixtral.errors import ModelFileError
from support.texts import held, lone, same

PROMPTS = ("Once upon a time there was a king", "The wolf said", "In the forest there lived an old woman who had a cow")
OPTIONS: dict[str, Any] = {"max_tokens": 8, "seed": 3, "logprobs": 2}
KINDS: tuple[dict[str, Any], ...] = ({"prompt_logprobs": 2}, {}, {"prompt_logprobs": 0})


@pytest.fixture(scope="module")
def alone(tiny_q8_0: Path) -> Iterator[Mixtral]:
    """A model that computes one text at a time."""
    with Mixtral(tiny_q8_0, n_ctx=128, n_threads=1, max_batch=1) as model:
        yield model


@pytest.fixture
def model(tiny_q8_0: Path) -> Iterator[Mixtral]:
    with Mixtral(tiny_q8_0, n_ctx=128, n_threads=2) as model:
        yield model


def as_alone(model: Mixtral, alone: Mixtral) -> None:
    """Asks for texts of all kinds together."""
    asked = list(zip(PROMPTS, KINDS, strict=True))
    with held(model):
        streams = [model.stream(prompt, **OPTIONS, **kind) for prompt, kind in asked]
    for stream, (prompt, kind) in zip(streams, asked, strict=True):
        list(stream)
        assert stream.completion
        same(stream.completion, lone(alone, prompt, **OPTIONS, **kind))


def test_rows_that_are_read_stand_before_those_that_are_drawn(model: Mixtral, alone: Mixtral) -> None:
    as_alone(model, alone)
    assert model.stats().passes == OPTIONS["max_tokens"]  # they went together


def test_pages_of_earlier_texts_make_room_for_all_of_a_pass(model: Mixtral, alone: Mixtral) -> None:
    for i in range(model.stats().pages):
        model.generate(f"{i} wolves lived in the forest", max_tokens=1)
    before = model.stats()
    assert before.cached_pages == before.pages
    as_alone(model, alone)
    assert model.stats().passes == before.passes + OPTIONS["max_tokens"]


def test_a_pass_that_fails_after_it_was_computed(
    model: Mixtral, alone: Mixtral, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its texts are computed again, each alone, from where they were before it."""
    failing = [2, 5]  # passes that were computed by then: three texts alone are three passes

    def check_file() -> None:
        if failing and model.stats().passes == failing[0]:
            raise ModelFileError(f"touched after {failing.pop(0)} passes")

    monkeypatch.setattr(model.core.engine._loop, "_check_file", check_file)
    as_alone(model, alone)
    assert not failing
