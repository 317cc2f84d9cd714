"""Calls of tools in what a model writes: parsed, streamed, and never lost."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pymixtral.text.chat import choose
from pymixtral.text.json_scan import MAX_DEPTH, JsonScanner
from pymixtral.text.messages import ToolCall
from pymixtral.text.tool_calls import (
    HERMES,
    LLAMA3,
    MISTRAL,
    ArgumentsPiece,
    CallBegins,
    CallEnds,
    CallFails,
    Event,
    Syntax,
    TextPiece,
    ToolCallParser,
)
from support.conversations import byte_pairs, llama_with_marks, mistral_tokenizer, tekken_tokenizer

CALL = '{"name": "get_weather", "arguments": {"city": "Paris", "days": [1, 2.5e3, null]}}'
ARGUMENTS = '{"city": "Paris", "days": [1, 2.5e3, null]}'


class Answer:
    """What a parser made of an answer, with the rules that its events keep."""

    def __init__(self, parser: ToolCallParser, events: list[Event]) -> None:
        self.text, self.calls = parser.text, [(call.name, call.arguments) for call in parser.calls]
        self.ids = [call.id for call in parser.calls]
        assert "".join(event.text for event in events if isinstance(event, TextPiece)) == parser.text
        assert [event.call for event in events if isinstance(event, CallEnds)] == parser.calls
        open_calls: dict[int, tuple[str, str]] = {}
        pieces: dict[int, str] = {}
        n_begun = 0
        self.n_failed = 0
        for event in events:
            if isinstance(event, CallBegins):
                assert event.index == n_begun
                n_begun += 1
                open_calls[event.index], pieces[event.index] = (event.name, event.id), ""
            elif isinstance(event, ArgumentsPiece):
                assert event.text
                pieces[event.index] += event.text
            elif isinstance(event, CallEnds):
                call = event.call
                assert open_calls.pop(event.index) == (call.name, call.id)
                assert pieces[event.index] == call.arguments
                assert isinstance(json.loads(call.arguments), dict)
            elif isinstance(event, CallFails):
                open_calls.pop(event.index)
                self.n_failed += 1
        assert not open_calls


def parsed(syntax: Syntax | None, text: str, size: int = 1, marked: bool = False) -> Answer:
    parser = ToolCallParser(syntax, mistral_tokenizer("v3"))
    events = parser.push(5, "") if marked else []
    for i in range(0, len(text), size):
        events += parser.push_text(text[i : i + size])
    return Answer(parser, [*events, *parser.finish()])


def mistral(text: str) -> Answer:
    return parsed(MISTRAL, text, marked=True)


def test_each_syntax() -> None:
    assert mistral(f" [{CALL}]").calls == [("get_weather", ARGUMENTS)]
    assert mistral(f"[{CALL},\n {CALL}]").calls == [("get_weather", ARGUMENTS)] * 2
    assert mistral(CALL).calls == [("get_weather", ARGUMENTS)]
    answer = parsed(HERMES, f"Let me see.\n<tool_call>\n{CALL}\n</tool_call>\n<tool_call>{CALL}</tool_call>\n")
    assert (answer.text, answer.calls) == ("Let me see.", [("get_weather", ARGUMENTS)] * 2)
    written = CALL.replace("arguments", "parameters")
    assert parsed(LLAMA3, written).calls == [("get_weather", ARGUMENTS)]
    assert parsed(LLAMA3, f"{written}; {written}").calls == [("get_weather", ARGUMENTS)] * 2
    assert parsed(None, CALL).text == CALL


def test_ids_have_the_form_of_the_format() -> None:
    ids = mistral(f"[{CALL}, {CALL}]").ids
    assert all(len(id) == 9 and id.isalnum() for id in ids)
    assert ids[0] != ids[1]
    assert parsed(LLAMA3, CALL).ids[0].startswith("call_")


def test_arguments_stream_as_soon_as_the_name_is_known() -> None:
    parser = ToolCallParser(HERMES)
    assert parser.push_text("Hi ") == [TextPiece("Hi")]
    assert parser.push_text("<tool_") == []
    assert parser.push_text('call>{"name": "f", "argu') == [CallBegins(0, parser._call._id, "f")]
    assert parser.push_text('ments": {"a') == [ArgumentsPiece(0, '{"a')]
    assert parser.push_text('": 1}') == [ArgumentsPiece(0, '": 1}')]
    assert parser.push_text("}") == []
    (end,) = parser.push_text("</tool_call>")
    assert isinstance(end, CallEnds)
    assert (end.call.name, end.call.arguments) == ("f", '{"a": 1}')
    assert parser.finish() == []


def test_arguments_may_come_before_the_name_or_not_at_all_or_inside_a_string() -> None:
    assert mistral('[{"arguments": {"a": {}}, "id": "abcdefghi", "name": "f"}]').calls == [("f", '{"a": {}}')]
    assert mistral('[{"name": "f"}]').calls == [("f", "{}")]
    assert mistral('[{"name": "f", "arguments": "{\\"a\\": \\"\\u00e9\\"}"}]').calls == [("f", '{"a": "\u00e9"}')]
    assert mistral('[{"na\\u006de": "\\u0066", "arguments": {}, "n": 12}]').calls == [("f", "{}")]


def test_a_call_that_lacks_only_its_end_is_complete() -> None:
    assert mistral(f"[{CALL}").calls == [("get_weather", ARGUMENTS)]
    assert parsed(HERMES, f"<tool_call>{CALL}").calls == [("get_weather", ARGUMENTS)]
    assert parsed(HERMES, f"<tool_call>{CALL}\n</tool_").calls == [("get_weather", ARGUMENTS)]


BROKEN = [
    *("{", "{}", "[]", "x", "[{", '{"name": "f", "arguments": {"a": 1', '{"name": "f", "arguments": [1]}', '{"a": 1}'),
    *('{"name": 3, "arguments": {}}', '{"name": "a b", "arguments": {}}', '{"name": "", "arguments": {}}', "\n", "]"),
    *(
        '{"name": "f", "arguments": {"a": 01}}',
        '{"name": "f", "arguments": {"a": tru}}',
        "{'name': 'f'}",
        '{"name": "f"',
    ),
    *('{"name": "f", "arguments": "[1]"}', '{"name": "f", "arguments": "no"}', '{"name": "f", "name": "g"}', ", {}"),
    *('{"name": "f", "arguments": {"a": "\n"}}', '{"name": "f", "arguments": {,}}', '{"name": "f",}', '{"name" "f"}'),
    *('{"name": "f", "arguments": {}, "arguments": {}}', '{"name": "f", "arguments": ' + '{"a":' * 200, '{"a": 1e}'),
    *('{"name": "f", "arguments": {"a": "\\x"}}', '{"name": "f", "arguments": null}', '{"name": "f\\ud800"}', "null"),
    *('{"name": "f", "arguments": "{\\"a\\": \\"\\\\ud800\\"}"}', '{"name": "f", "arguments": {"a": 1]}', '"name"'),
]


@pytest.mark.parametrize("number", range(len(BROKEN)))
def test_what_is_no_call_is_text(number: int) -> None:
    broken = BROKEN[number]
    answer = mistral(broken)
    assert (answer.text, answer.calls) == ("[TOOL_CALLS]" + broken, [])
    answer = parsed(HERMES, f"a <tool_call>{broken}</tool_call> b")
    assert (answer.text, answer.calls) == (f"a <tool_call>{broken}</tool_call> b", [])
    answer = parsed(LLAMA3, broken)
    assert (answer.text, answer.calls) == (broken, [])


def test_good_calls_beside_bad_ones_are_kept() -> None:
    answer = mistral(f' [{CALL}, {{"name": "f", "arguments": {{"a": oops}}}}]')
    assert answer.calls == [("get_weather", ARGUMENTS)]
    assert answer.n_failed == 1
    assert answer.text.lstrip(", ") == '{"name": "f", "arguments": {"a": oops}}]'
    answer = parsed(HERMES, f"<tool_call>x</tool_call><tool_call>{CALL}</tool_call> and <tool_call><tool_call>{CALL}")
    assert answer.calls == [("get_weather", ARGUMENTS)] * 2
    assert answer.text == "<tool_call>x</tool_call>and <tool_call>"
    answer = parsed(LLAMA3, f"{CALL} and more")
    assert (answer.text, answer.calls) == ("and more", [("get_weather", ARGUMENTS)])
    answer = mistral(f"[{CALL}] and more [1]")
    assert (answer.text, answer.calls) == ("and more [1]", [("get_weather", ARGUMENTS)])


def test_text_that_names_the_mark_of_mistral_is_text() -> None:
    parser = ToolCallParser(MISTRAL, mistral_tokenizer("v3"))
    events = parser.push_text(f"[TOOL_CALLS] [{CALL}]")
    answer = Answer(parser, [*events, *parser.finish()])
    assert (answer.text, answer.calls) == (f"[TOOL_CALLS] [{CALL}]", [])


def test_long_arguments_take_time_in_proportion() -> None:
    long = json.dumps({"text": "x" * 50_000, "list": list(range(5_000))})
    assert parsed(HERMES, f'<tool_call>{{"name": "f", "arguments": {long}}}</tool_call>', 7).calls == [("f", long)]
    marks = "<tool_call>{" * 20_000
    assert parsed(HERMES, marks, 7).text == marks
    assert parsed(HERMES, " " * 20_000 + "x", 20_000).text == " " * 20_000 + "x"
    key = f'{{"{"k" * 50_000}": "{"v" * 50_000}", "name": "f"}}'
    assert mistral(key).calls == [("f", "{}")]
    assert mistral(f'{{"n": {"9" * 100_000}, "name": "f"}}').calls == []


PARTS = [
    *("<tool_call>", "</tool_call>", "<tool_", "call>", "{", "}", '"name": "f"', '"arguments": ', "{}", ",", " ", "\n"),
    *("[", "]", CALL, "text", '"', "\\", ";", "1", "true"),
]


@settings(max_examples=400, deadline=None)
@given(parts=st.lists(st.sampled_from(PARTS), max_size=15), size=st.integers(1, 9))
def test_nothing_is_lost_and_pieces_do_not_matter(parts: list[str], size: int) -> None:
    text = "".join(parts)
    for syntax, marked in ((HERMES, False), (LLAMA3, False), (MISTRAL, True), (MISTRAL, False), (None, False)):
        whole, cut = parsed(syntax, text, len(text) + 1, marked), parsed(syntax, text, size, marked)
        assert (whole.text, whole.calls, whole.n_failed) == (cut.text, cut.calls, cut.n_failed)
        shown = ("[TOOL_CALLS]" if marked else "") + text
        if not whole.calls:
            assert whole.text == shown
        kept = "".join(character for character in whole.text if not character.isspace())
        position = 0
        for character in kept:  # all that is text stands in the answer, in this order
            position = shown.index(character, position) + 1
        for word in ("text", "true"):  # no part of any call
            assert whole.text.count(word) == shown.count(word)


# --- From ids ---------------------------------------------------------------------------------------------------------

FORMATS = {
    "mistral v2": (mistral_tokenizer("v2"), "mistral-v2"),
    "mistral v3": (mistral_tokenizer("v3"), "mistral-v3"),
    "mistral v3 tekken": (tekken_tokenizer(), "mistral-v3"),
    "mistral v7": (mistral_tokenizer("v7"), "mistral-v7"),
    "chatml": (byte_pairs(), "chatml"),
    "chatml, SentencePiece": (llama_with_marks(), "chatml"),
    "llama3": (byte_pairs(), "llama3"),
    "llama3.1": (byte_pairs(), "llama3.1"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_what_a_format_writes_of_calls_is_read_again(name: str) -> None:
    tokenizer, format_name = FORMATS[name]
    format = choose(tokenizer, None, format_name)
    g = random.Random(7)
    user = {"role": "user", "content": "What is the weather?"}
    for _ in range(60):
        calls = [
            ToolCall(g.choice(["f", "get_weather"]), json.dumps(value(g), ensure_ascii=False), f"{i:09d}")
            for i in range(1 if "v2" in name else g.randint(1, 3))
        ]
        said = g.choice(["", "Let me see.", "\u4f60\u597d"])
        answer: dict[str, Any] = {
            "role": "assistant",
            "content": said,
            "tool_calls": [{"id": c.id, "function": {"name": c.name, "arguments": c.arguments}} for c in calls],
        }
        if "llama3" in name:
            answer["content"] = said = ""
        results = [{"role": "tool", "tool_call_id": call.id, "content": "1"} for call in calls]
        written = written_answer(format.ids([user]), format.ids([user, answer, *results]), format.stop_ids)
        parser = format.tool_parser()
        assert parser is not None
        stream = tokenizer.stream(begins_text=True)
        events = [event for id in written for event in parser.push(id, stream.push(id))]
        events += [*parser.push_text(stream.flush()), *parser.finish()]
        found = Answer(parser, events)
        assert found.calls == [(call.name, call.arguments) for call in calls]
        assert found.text.strip() == said


def value(g: random.Random) -> dict[str, Any]:
    texts = ["Paris", "\u00e9\U0001f600", 'a "b" \\ {', "</tool_call>", "[TOOL_CALLS]", "\n\t", "; {", "<tool_call>"]
    return {
        g.choice(["city", "\u00e9", "a b"]): g.choice(
            [g.choice(texts), 1, -2.5, None, True, [1, {"a": g.choice(texts)}], {}]
        )
        for _ in range(g.randint(0, 3))
    }


def written_answer(before: list[int], after: list[int], stop_ids: frozenset[int]) -> list[int]:
    """The ids of the answer: what stands behind the prompt, up to the end."""
    assert after[: len(before)] == before
    ids = after[len(before) :]
    return ids[: next(i for i, id in enumerate(ids) if id in stop_ids)]


def test_templates_say_which_calls_a_model_writes() -> None:
    for template, syntax in (
        ("{{ '[TOOL_CALLS]' }}", MISTRAL),
        ("{{ '<tool_call>' }}", HERMES),
        ('{{ \'{"name": ..., "parameters": \' }}{{ messages }}', LLAMA3),
        ("{{ messages }}", None),
    ):
        assert choose(mistral_tokenizer("v3"), template, "template").tool_syntax == syntax
    assert choose(mistral_tokenizer("v1")).tool_syntax is None


# --- JSON -------------------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=5)
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=4)),
    max_leaves=15,
)


def scanned(text: str) -> bool:
    """Whether a scanner takes a text as one value."""
    scanner = JsonScanner()
    return all(scanner.feed(character) for character in text) and scanner.done


@settings(max_examples=500, deadline=None)
@given(value=JSON, indent=st.sampled_from([None, 0, 2]), ascii=st.booleans())
def test_json_is_taken(value: Any, indent: int | None, ascii: bool) -> None:
    text = json.dumps([value], indent=indent, ensure_ascii=ascii)
    assert scanned(text)
    scanner = JsonScanner()
    for i, character in enumerate(text):
        assert scanner.feed(character)
        assert scanner.done == (i == len(text) - 1)


@settings(max_examples=1500, deadline=None)
@given(text=st.text('{}[],:"\\ \n0123456789-+.eEtruefalsn\tux\u00e9', max_size=12).map(lambda text: f"[{text}]"))
def test_what_is_no_json_is_refused(text: str) -> None:
    try:
        json.loads(text)
    except ValueError:
        assert not scanned(text)
    else:
        assert scanned(text)


def test_depth_is_bounded() -> None:
    assert scanned("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    assert not scanned("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))


@pytest.mark.parametrize(
    ("syntax", "text"),
    [
        (HERMES, "a" + " \n" * 500_000 + "b"),
        (HERMES, " " * 1_000_000),
        (HERMES, CALL + "\t" * 1_000_000),
        (HERMES, f"<tool_call>{CALL}" + " " * 1_000_000 + "x"),
        (MISTRAL, "a" + " " * 1_000_000 + "b"),
    ],
    ids=["between", "alone", "behind text", "behind a call", "mistral"],
)
def test_long_space_takes_no_longer_than_other_text(syntax: Syntax, text: str) -> None:
    """One step of each character that looked at all space before it would take hours here."""
    parser = ToolCallParser(syntax)
    parser.push_text(text)
    parser.finish()
    assert (parser.text, parser.calls) == (text, [])
