"""Adapters of texts of one batch: each text has the bits that it has alone."""

from __future__ import annotations

import math
import struct
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pymixtral import Adapter, Mixtral
from pymixtral.engine.adapters import Adapters, identity
from pymixtral.errors import SessionFileError
from pymixtral.model.forward import Model
from support.adapter_files import write_adapter
from support.low_rank import bound
from support.texts import held, lone, same

PROMPT = "Once upon a time there was a king who had three daughters"
LONG = PROMPT * 12
CHOICES: list[Any] = [None, "a", "b", {"a": 0.5}, {"a": 1, "b": -0.5}, {}]
OPTIONS: dict[str, Any] = {"max_tokens": 10, "seed": 4, "logprobs": 2, "prompt_logprobs": 1}


# --- Bits ---------------------------------------------------------------------------------------------------------


def test_adapters_of_one_batch_are_each_as_alone(model: Mixtral, alone: Mixtral) -> None:
    model.forget()
    before = model.stats()
    with held(model):
        streams = [model.stream(prompt, adapter=choice, **OPTIONS) for choice in CHOICES for prompt in (PROMPT, LONG)]
    for stream in streams:
        list(stream)
    after = model.stats()
    assert (after.passes - before.passes) * 3 < len(streams) * OPTIONS["max_tokens"]  # they went together
    texts = set()
    for i, (choice, prompt) in enumerate((choice, prompt) for choice in CHOICES for prompt in (PROMPT, LONG)):
        completion = streams[i].completion
        assert completion
        same(completion, lone(alone, prompt, adapter=choice, **OPTIONS))
        texts.add((prompt, completion.text))
    assert len(texts) == 2 * (len(CHOICES) - 1)  # None and {} are both none


def test_an_adapter_is_more_than_a_change_of_the_choice_of_tokens(model: Mixtral, alone: Mixtral) -> None:
    """Logits, scores, vectors and experts depend on it, too."""
    ids = model.tokenize(LONG)
    for choice in CHOICES:
        model.forget()
        alone.forget()
        assert np.array_equal(model.logits(ids, adapter=choice), alone.logits(ids, adapter=choice))
        assert model.score(PROMPT, [" and", " the"], adapter=choice) == alone.score(
            PROMPT, [" and", " the"], adapter=choice
        )
        assert np.array_equal(model.embed([LONG], adapter=choice), alone.embed([LONG], adapter=choice))
        one, other = model.routing(LONG, full=True, adapter=choice), alone.routing(LONG, full=True, adapter=choice)
        assert np.array_equal(one.experts, other.experts)
        assert np.array_equal(one.probabilities, other.probabilities)
        if choice:
            assert not np.array_equal(model.logits(ids, adapter=choice), model.logits(ids))
            assert not np.array_equal(one.probabilities, model.routing(LONG, full=True).probabilities)


def test_several_texts_drafts_and_forms_have_their_adapter(model: Mixtral, alone: Mixtral) -> None:
    repeating = "the wolf and the fox and the wolf and the fox and the"
    for options in (
        {"n": 3, "seed": 2},
        {"prompt_lookup": 4, "temperature": 0},
        {"choice": ["yes", "no", "perhaps"], "seed": 5},
        {"routing": True, "seed": 1},
    ):
        found, expected = (one.generate(repeating, max_tokens=12, adapter="b", **options) for one in (model, alone))
        for a, b in zip(found.choices, expected.choices, strict=True):
            same(a, b)
        assert (found.routing is None) == ("routing" not in options)
        if found.routing and expected.routing:
            assert np.array_equal(found.routing.experts, expected.routing.experts)


def test_the_order_and_the_names_of_adapters_change_nothing(model: Mixtral, alone: Mixtral, of: Any) -> None:
    expected = model.generate(PROMPT, adapter={"a": 1, "b": 0.5}, **OPTIONS)
    same(expected, model.generate(PROMPT, adapter={"b": 0.5, "a": 1.0}, **OPTIONS))
    model.load_adapter("other", of["a"])
    try:
        same(expected, model.generate(PROMPT, adapter={"b": 0.5, "other": 0.25, "a": 0.75}, **OPTIONS))
        same(lone(alone, PROMPT, **OPTIONS), model.generate(PROMPT, adapter={"a": 1, "other": -1}, **OPTIONS))
    finally:
        model.unload_adapter("other")


def test_a_preempted_text_keeps_its_adapter(tiny_q8_0: Path, of: dict[str, Adapter], alone: Mixtral) -> None:
    page = 64 * 2 * alone.config.n_layers * alone.config.n_kv_heads * alone.config.head_dim * 2
    options: dict[str, Any] = {"max_tokens": 150, "ignore_eos": True, "seed": 1}
    choices: list[Any] = [None, *of, {"a": 0.5}]
    with Mixtral(tiny_q8_0, n_ctx=256, cache_bytes=7 * page, n_threads=2, adapters=of) as model:
        streams = [model.stream(LONG[:300], adapter=choice, **options) for choice in choices]
        for stream in streams:
            list(stream)
        assert model.stats().preempted > 0
        assert bound(model) == 3
    for stream, choice in zip(streams, choices, strict=True):
        assert stream.completion
        same(stream.completion, lone(alone, LONG[:300], adapter=choice, **options))


def test_the_cache_of_prefixes_never_goes_from_one_to_another(model: Mixtral) -> None:
    model.forget()
    n = len(model.tokenize(LONG))
    for choice in (None, "a", "b", {"a": 0.5}, {"a": 1, "b": 1}):
        for salt in (None, "x"):
            cached = [
                model.generate(LONG, max_tokens=1, adapter=choice, cache_salt=salt).stats.cached_tokens
                for _ in range(2)
            ]
            assert cached == [0, n - 1]
    for equal in ({}, {"a": 0}, {"b": 0.0}):
        assert model.generate(LONG, max_tokens=1, adapter=equal).stats.cached_tokens == n - 1


def test_an_adapter_that_is_loaded_again_finds_its_prefixes(model: Mixtral, tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "a.gguf", model.config, 9)
    model.load_adapter("file", path)
    text = model.generate(LONG, max_tokens=3, seed=1, adapter="file").text
    model.unload_adapter("file")
    model.load_adapter("again", path)
    try:
        found = model.generate(LONG, max_tokens=3, seed=1, adapter="again")
        assert found.text == text
        assert found.stats.cached_tokens == len(model.tokenize(LONG)) - 1
    finally:
        model.unload_adapter("again")


def test_a_pass_without_adapters_is_given_none(model: Mixtral, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    before = Model.forward

    def forward(self: Model, *args: Any, **options: Any) -> Any:
        given.append(options["adapters"])
        return before(self, *args, **options)

    monkeypatch.setattr(Model, "forward", forward)
    model.generate(PROMPT, max_tokens=2)
    assert given
    assert given == [None] * len(given)
    model.generate(PROMPT, max_tokens=2, adapter="a")
    assert given[-1] == [{model.adapters["a"]: 1.0}] or given[-1] == [{}]
    assert [scales for scales in given if scales] != []


# --- Sessions -----------------------------------------------------------------------------------------------------


def test_a_session_is_of_its_adapters(model: Mixtral, of: dict[str, Adapter], tmp_path: Path) -> None:
    ids = model.tokenize(LONG)
    files: dict[str, Any] = {"none": {}, "a": "a", "half": {"a": 0.5}, "both": {"a": 1, "b": 1}}
    expected = {}
    for name, choice in files.items():
        model.save_session(tmp_path / name, ids, adapter=choice)
        expected[name] = model.generate([*ids, 5], adapter=choice, **OPTIONS)
    assert struct.unpack_from("<I", (tmp_path / "none").read_bytes(), 8) == (1,)
    assert struct.unpack_from("<I", (tmp_path / "a").read_bytes(), 8) == (2,)
    for name, choice in files.items():
        for other, asked in files.items():
            model.forget()
            if name == other:
                assert model.load_session(tmp_path / name, adapter=asked) == ids
                assert model.generate([*ids, 5], max_tokens=1, adapter=choice).stats.cached_tokens == len(ids)
                same(model.generate([*ids, 5], adapter=choice, **OPTIONS), expected[name])
            else:
                with pytest.raises(SessionFileError, match="adapter"):
                    model.load_session(tmp_path / name, adapter=asked)
                assert model.stats().cached_pages == 0
    model.load_adapter("by another name", of["a"])
    try:
        assert model.load_session(tmp_path / "a", adapter="by another name") == ids
    finally:
        model.unload_adapter("by another name")


def test_the_words_of_a_session_of_another_adapter(model: Mixtral, tmp_path: Path) -> None:
    model.save_session(tmp_path / "a", PROMPT, adapter="a")
    model.save_session(tmp_path / "none", PROMPT)
    for path, asked, words in (
        ("a", None, "expected a session without adapters, found one with some"),
        ("a", "b", "expected a session with the adapter 'b' of scale 1, found one with other adapters or scales"),
        ("none", {"b": 2}, "expected a session with the adapter 'b' of scale 2, found one without adapters"),
    ):
        with pytest.raises(SessionFileError, match=words):
            model.load_session(tmp_path / path, adapter=asked)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 159), bits=st.integers(1, 255))
@example(at=85, bits=2)  # more ids than a context holds
def test_a_damaged_header_of_a_session_with_adapters(at: int, bits: int, model: Mixtral, tmp_path: Path) -> None:
    path = tmp_path / "a.session"
    if not path.exists():
        model.save_session(path, PROMPT, adapter="a")
    data = bytearray(path.read_bytes())
    data[at] ^= bits
    damaged = tmp_path / "damaged.session"
    damaged.write_bytes(data)
    with pytest.raises(SessionFileError):
        model.load_session(damaged, adapter="a")


def test_a_session_of_an_adapter_that_the_cache_no_longer_has(model: Mixtral, tmp_path: Path) -> None:
    model.forget()
    ids = model.tokenize(LONG)
    model.save_session(tmp_path / "a", ids, adapter="a")  # computed for it
    first = (tmp_path / "a").read_bytes()
    model.save_session(tmp_path / "a", ids, adapter="a", force=True)  # found in the cache
    assert (tmp_path / "a").read_bytes() == first


# --- The table of names -------------------------------------------------------------------------------------------


def test_identities_are_of_content_and_scale(of: dict[str, Adapter]) -> None:
    again = Adapter(of["a"].pairs, "elsewhere")
    table = Adapters({"a": of["a"], "again": again, "b": of["b"]})
    assert identity(table.chosen("a")) == identity(table.chosen("again")) == ((of["a"].digest.hex(), 1.0),)
    assert identity(table.chosen({"a": 0.25, "again": 0.5})) == ((of["a"].digest.hex(), 0.75),)
    assert identity(table.chosen({"a": 2, "b": 1})) == identity(table.chosen({"b": 1, "a": 2}))
    assert identity(table.chosen({"a": 1, "again": -1})) == identity(table.chosen(None)) == ()
    named = {name: Adapter(of["a"].pairs, name) for name in "wxyz"}
    few = {"w": 1.0, "x": 2.0**-60, "y": -1.0, "z": 0.1}
    for order in permutations(few):  # additions of two would differ in their last bits
        assert identity(Adapters(named).chosen({name: few[name] for name in order})) == (
            (of["a"].digest.hex(), math.fsum(few.values())),
        )
    assert not table.has(Adapter(of["c"].pairs, "c"))
