"""Messages and tools: what is taken, and what is refused by its place."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pymixtral.errors import InvalidArgumentError
from pymixtral.text.messages import ToolCall, checked_messages, checked_tools, parsed

USER = {"role": "user", "content": "a"}
CALL = {"id": "x", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}


def test_messages_of_openai_are_taken() -> None:
    system, user, assistant, tool, last = checked_messages(
        [
            {"role": "developer", "content": "S"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "n"},
            {**CALLING, "refusal": None, "annotations": [], "audio": None},
            {"role": "tool", "content": "22", "tool_call_id": "x"},
            USER,
        ]
    )
    assert (system.role, system.text("\n")) == ("system", "S")
    assert (user.parts, user.text("\n"), user.name) == (("a", "b"), "a\nb", "n")
    assert (assistant.parts, assistant.tool_calls) == ((), (ToolCall("f", "{}", "x"),))
    assert (tool.tool_call_id, tool.parts) == ("x", ("22",))
    assert not last.prefix


def test_arguments_may_be_a_mapping_or_missing() -> None:
    for arguments, expected in (({"a": "\u00e9"}, '{"a": "\u00e9"}'), (None, "{}"), ("", ""), ("no JSON", "no JSON")):
        call = {"function": {"name": "f", "arguments": arguments}}
        message = checked_messages([USER, {"role": "assistant", "tool_calls": [call]}, USER])[1]
        assert message.tool_calls == (ToolCall("f", expected, "000000000"),)


def test_results_without_an_id_answer_the_calls_in_order() -> None:
    calls = [{**CALL, "id": "x"}, {**CALL, "id": "y"}, {"function": {"name": "g"}}]
    result = {"role": "tool", "content": "1"}
    messages = [USER, {**CALLING, "tool_calls": calls}, {**result, "tool_call_id": "y"}, result, result]
    assert [message.tool_call_id for message in checked_messages(messages)[2:]] == ["y", "x", "000000002"]


def test_the_last_answer_is_continued_where_asked() -> None:
    begun = {"role": "assistant", "content": "The"}
    assert checked_messages([USER, begun], True)[-1].prefix
    assert checked_messages([USER, {**begun, "prefix": True}])[-1].prefix


BAD: dict[str, tuple[Any, str]] = {
    "no list": ("hi", "expected messages to be a list of messages, found 'hi'"),
    "one message": (USER, "expected messages to be a list of messages"),
    "none": ([], "at least one message"),
    "no mapping": ([USER, 3], r"messages\[1\] to be a mapping"),
    "no role": ([{"content": "a"}], r"messages\[0\].role to be 'system' or 'developer' or .*, found None"),
    "another role": ([{"role": "function", "content": "a"}], r"messages\[0\].role .*'function'"),
    "a role that is no text": ([{"role": ["user"], "content": "a"}], r"messages\[0\].role"),
    "no content": ([{"role": "user"}], r"messages\[0\].content to be text or a list of text parts, found None"),
    "content of bytes": ([{"role": "user", "content": b"a"}], r"messages\[0\].content"),
    "content that is a number": ([{"role": "user", "content": 3}], r"messages\[0\].content"),
    "an image": (
        [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
        r"messages\[0\].content\[0\].type to be 'text'.*found 'image_url'",
    ),
    "a part without text": ([{"role": "user", "content": [{"type": "text"}]}], r"messages\[0\].content\[0\].text"),
    "a part that is no mapping": ([{"role": "user", "content": [3]}], r"messages\[0\].content\[0\] "),
    "half a surrogate pair": ([{"role": "user", "content": "ab\ud800"}], r"messages\[0\].content, character 2, "),
    "an unknown field": ([{**USER, "prefix": True}], r"messages\[0\] to have the fields .*, found 'prefix'"),
    "calls of a user": ([{**USER, "tool_calls": [CALL]}], "found 'tool_calls'"),
    "calls that are no list": ([USER, {**CALLING, "tool_calls": "f"}], r"messages\[1\].tool_calls to be a list"),
    "a call that is none": ([USER, {**CALLING, "tool_calls": [3]}], r"messages\[1\].tool_calls\[0\] "),
    "a call without a function": ([USER, {**CALLING, "tool_calls": [{"id": "x"}]}], r"tool_calls\[0\].function"),
    "a call of another type": (
        [USER, {**CALLING, "tool_calls": [{**CALL, "type": "custom"}]}],
        r"messages\[1\].tool_calls\[0\].type to be 'function'",
    ),
    "a name of a function": (
        [USER, {**CALLING, "tool_calls": [{"function": {"name": "a b"}}]}],
        r"tool_calls\[0\].function.name to be 1 to 64 letters",
    ),
    "arguments that are a number": (
        [USER, {**CALLING, "tool_calls": [{"function": {"name": "f", "arguments": 3}}]}],
        r"tool_calls\[0\].function.arguments",
    ),
    "arguments that are no JSON": (
        [USER, {**CALLING, "tool_calls": [{"function": {"name": "f", "arguments": {"a": {1}}}}]}],
        "what JSON can express",
    ),
    "an empty id": ([USER, {**CALLING, "tool_calls": [{**CALL, "id": ""}]}], r"tool_calls\[0\].id"),
    "a result first": ([{"role": "tool", "content": "1"}], r"messages\[0\] to follow an assistant's message"),
    "a result behind a user": ([USER, {"role": "tool", "content": "1"}], r"messages\[1\] to follow"),
    "one result more": ([USER, CALLING, *[{"role": "tool", "content": "1"}] * 2], r"messages\[3\] to follow"),
    "a result of another call": (
        [USER, CALLING, {"role": "tool", "content": "1", "tool_call_id": "y"}],
        r"messages\[2\].tool_call_id to be one of the calls without a result \(x\), found 'y'",
    ),
    "an answer at the end": ([USER, {"role": "assistant", "content": "a"}], r"messages\[1\] to be a message that the"),
    "a prefix in the middle": ([{"role": "assistant", "content": "a", "prefix": True}, USER], r"messages\[0\].prefix"),
    "a prefix that is a number": ([USER, {"role": "assistant", "content": "a", "prefix": 1}], "true or false"),
    "calls that are continued": ([USER, {**CALLING, "prefix": True}], r"messages\[1\].tool_calls to be none"),
}


@pytest.mark.parametrize("case", BAD)
def test_messages_that_make_no_sense_are_refused_by_their_place(case: str) -> None:
    messages, message = BAD[case]
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        checked_messages(messages)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_only_an_answer_is_continued() -> None:
    with pytest.raises(
        InvalidArgumentError, match=r"messages\[0\].role to be 'assistant', to be continued, found 'user'"
    ):
        checked_messages([USER], True)


def test_tools_of_openai_are_taken() -> None:
    (tool,) = checked_tools([TOOL])
    assert tool.to_openai() == TOOL
    assert checked_tools([{"type": "function", "function": {"name": "f", "strict": True}}])[0].to_openai() == {
        "type": "function",
        "function": {"name": "f", "description": "", "parameters": {}},
    }
    assert checked_tools(None) == []


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        (TOOL, "tools to be a list of tools"),
        ([3], r"tools\[0\] to be a mapping"),
        ([TOOL, {}], r"tools\[1\].function to be a mapping"),
        ([{"type": "web_search", "function": {}}], r"tools\[0\].type"),
        ([{"function": {}}], r"tools\[0\].function.name"),
        ([{"function": {"name": "f", "parameters": 3}}], r"tools\[0\].function.parameters to be a JSON schema"),
        ([{"function": {"name": "f", "description": 3}}], r"tools\[0\].function.description to be text"),
        ([{"function": {"name": "f", "parameters": {"a": {1}}}}], r"tools\[0\] to be what JSON can express"),
        ([{"function": {"name": "f", "parameters": {"a": "\ud800"}}}], r"tools\[0\] to be what JSON can express"),
    ],
)
def test_tools_that_make_no_sense_are_refused_by_their_place(tools: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        checked_tools(tools)


def test_json_that_is_none_is_text() -> None:
    assert parsed('{"a": [1, null]}') == {"a": [1, None]}
    for text in ("{", "", "[" * 100_000, "9" * 5000, '"\\ud800"'):
        assert parsed(text) == text


VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.text(max_size=3), st.sampled_from(["user", "tool", "text", "f"])
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "tool_calls", "function", "name", "id", "prefix"]),
            inner,
        ),
    ),
    max_leaves=20,
)


@settings(max_examples=500, deadline=None)
@given(value=VALUES)
def test_any_value_is_taken_or_refused(value: Any) -> None:
    for check in (checked_messages, checked_tools):
        with suppress(InvalidArgumentError):
            check(value)
        with suppress(InvalidArgumentError):
            check([value, {"role": "user", "content": value}])
