"""Where prompts begin, and which replica they go to."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pymixtral.cluster.prefixes import LENGTH, LOOKED_AT, chosen, prefix_of, ranked

NAMES = st.lists(st.text("abcdef0123456789", min_size=1, max_size=8), min_size=1, max_size=9, unique=True)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "text"]), inner),
)


def chat(*contents: Any, **more: Any) -> str:
    roles = ["system", *["user", "assistant"] * 9]
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return prefix_of("/v1/chat/completions", json.dumps({"messages": messages, **more}).encode())


def prompt(value: Any, path: str = "/v1/completions", **form: Any) -> str:
    return prefix_of(path, json.dumps({"prompt": value}, **form).encode())


def test_a_conversation_begins_as_its_first_turn() -> None:
    first = chat("Be kind.", "Who are you?")
    assert first
    assert first == chat("Be kind.", "Who are you?", "I am a fox.", "Really?")
    assert first == chat([{"type": "text", "text": "Be kind."}], "Who are you?")
    assert first != chat("Be kind.", "Who is he?")
    assert first != chat("Be kind.", "Who are you?", model="tales")
    scaled = chat("Be kind.", "Who are you?", adapter={"a": 0.5, "b": 1})
    assert scaled == chat("Be kind.", "Who are you?", adapter={"b": 1, "a": 0.5})
    assert len({first, scaled, chat("Be kind.", "Who are you?", adapter={"a": 0.5})}) == 3
    assert first == chat("Be kind.", "Who are you?", adapter={}) == chat("Be kind.", "Who are you?", adapter=None)
    assert chat("x" * LENGTH, "one") == chat("x" * LENGTH, "two")


def test_prompts_begin_as_their_first_characters_or_tokens() -> None:
    assert prompt("a" * LENGTH + "b") == prompt("a" * LENGTH + "c") != prompt("a" * (LENGTH - 1) + "b")
    assert prompt(["one", "two"]) == prompt("one")
    assert prompt([1, 2, 3]) == prompt([[1, 2, 3], [4]]) != prompt([1, 2, 4])


def test_responses_begin_with_their_instructions() -> None:
    def of(**fields: Any) -> str:
        return prefix_of("/v1/responses", json.dumps(fields).encode())

    assert of(instructions="a", input="b") != of(instructions="a", input="c")
    turn = {"role": "user", "content": "b"}
    assert of(input=[turn]) == of(input=[turn, {"role": "assistant", "content": "x"}]) != ""


@pytest.mark.parametrize("form", [{}, {"ensure_ascii": False}, {"indent": 1, "ensure_ascii": False}])
@pytest.mark.parametrize("length", range(LOOKED_AT - 9, LOOKED_AT + 9))
def test_a_body_that_is_cut_begins_as_the_whole_one(length: int, form: dict[str, Any]) -> None:
    """Wherever the cut is: within a letter, a pair of surrogates, a name."""
    talk = [{"role": "system", "content": "Be kind \u00e4\U0001f98a"}, {"role": "user", "content": "Who are you?"}]
    short = json.dumps({"messages": talk, "model": "t\u00e4les"}, **form).encode()
    long = [
        *talk,
        {"role": "assistant", "content": length * "x" + 9 * "\U0001f98a"},
        {"role": "user", "content": "And?"},
    ]
    for more in ({}, {"tools": [{"a": i} for i in range(9)]}):
        body = json.dumps({"messages": long, **more, "model": "t\u00e4les"}, **form).encode()
        assert len(body) > LOOKED_AT
        for path in ("/v1/chat/completions", "/v1/completions"):
            assert prefix_of(path, body) == prefix_of(path, short) != prefix_of(path, short.replace(b"les", b"lks"))
    text = length * "\U0001f98a"
    assert prompt(text, **form) == prompt(text + "x", **form) == "\0" + text[:LENGTH]


def test_what_is_read_of_a_long_body_is_limited() -> None:
    """However long a body is, the event loop waits for no more than its two ends."""

    class Counted(bytes):
        n = 0

        def __getitem__(self, part: Any) -> Any:
            found = super().__getitem__(part)
            Counted.n += len(found)
            return found

    for body in (
        b"[" + b"[[[[]]]]," * (1 << 20),
        b'{"a":' + b'"model":' * (1 << 20),
        b'{"prompt":"' + b"x" * (1 << 23),
    ):
        Counted.n = 0
        prefix_of("/v1/completions", Counted(body))
        assert Counted.n <= 2 * LOOKED_AT


def test_what_has_no_prompt_has_no_beginning() -> None:
    for body in (b"", b"{", b"[]", b"1", b"[" * 100_000, b"9" * 5000, b"\xff", b'{"prompt": ""}', b'{"messages": []}'):
        assert prefix_of("/v1/completions", body) == ""
    assert prefix_of("/v1/embeddings", b'{"input": "text"}') == ""


def test_each_part_of_a_beginning_is_cut() -> None:
    long = 9 * LENGTH * "x"
    for adapter in (long, {long: 1}):
        body = json.dumps({"instructions": long, "input": long, "model": long, "adapter": adapter}).encode()
        assert prefix_of("/v1/responses", body) == 2 * LENGTH * "x" + "\0" + LENGTH * "x"


def test_a_model_within_another_field_is_not_the_request_s() -> None:
    body = json.dumps({"prompt": "Once", "metadata": {"model": "tales"}}).encode()
    assert prefix_of("/v1/completions", body) == "\0Once"
    long = {"prompt": "x" * LOOKED_AT, "metadata": {"model": "tales"}, "model": "own"}
    assert prefix_of("/v1/completions", json.dumps(long).encode()) == "own\0" + LENGTH * "x"


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(["messages", "prompt", "input", "instructions", "model", "adapter"]), VALUES))
def test_any_json_has_a_beginning_of_limited_length(fields: dict[str, Any]) -> None:
    for path in ("/v1/completions", "/v1/responses"):
        found = prefix_of(path, json.dumps(fields).encode())
        assert len(found) <= 3 * LENGTH + 1
        ranked(found, ["a", "b"])


@given(st.text(), NAMES, st.data())
def test_only_the_texts_of_a_replica_that_goes_move(prefix: str, names: list[str], data: st.DataObject) -> None:
    order = ranked(prefix, names)
    assert sorted(order) == sorted(names)
    gone = data.draw(st.sampled_from(names))
    assert ranked(prefix, [name for name in names if name != gone]) == [name for name in order if name != gone]


def test_replicas_have_like_numbers_of_beginnings() -> None:
    counts = dict.fromkeys("abc", 0)
    for i in range(3000):
        counts[ranked(f"text {i}", list(counts))[0]] += 1
    assert all(900 < n < 1100 for n in counts.values())


@given(st.text(), st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 40), min_size=1), st.integers(0, 20))
def test_the_owner_takes_a_text_unless_it_has_too_much(prefix: str, loads: dict[str, int], slack: int) -> None:
    groups = chosen(prefix, loads, slack, random.Random(1))
    assert sorted(groups[-1]) == sorted(loads)
    owner = ranked(prefix, list(loads))[0]
    if prefix and loads[owner] - min(loads.values()) <= slack:
        assert groups[0] == [owner]
    else:
        assert len(set(groups[0])) == min(2, len(loads))
