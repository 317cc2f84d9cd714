"""Mistral's formats: the ids of mistral-common, on random conversations."""

from __future__ import annotations

from typing import Any

import pytest
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from pymixtral.errors import InvalidArgumentError, UnsupportedError
from pymixtral.text.chat import choose
from pymixtral.text.chat_format import ChatFormat
from pymixtral.text.chat_mistral import call_id
from support.conversations import Writer, byte_pairs, copied, mistral_tokenizer, tekken_tokenizer

ORACLES = {
    "v1": MistralTokenizer.v1(),
    "v2": MistralTokenizer.v2(),
    "v3": MistralTokenizer.v3(),
    "v3-tekken": MistralTokenizer.v3(is_tekken=True),
    "v7": MistralTokenizer.v7(),
}
every_version = pytest.mark.parametrize("version", ORACLES)
with_tools = pytest.mark.parametrize("version", ["v2", "v3", "v3-tekken", "v7"])
N = 1500
"""Conversations of each kind, the same in each run."""


def ours(version: str) -> ChatFormat:
    tokenizer = tekken_tokenizer() if version == "v3-tekken" else mistral_tokenizer(version)
    return choose(tokenizer, None, f"mistral-{version[:2]}")


def oracle(version: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> list[int]:
    messages, tools = copied(messages), copied(tools)
    for tool in tools or []:
        tool["function"].setdefault("description", "")
    request: Any = ChatCompletionRequest.model_validate({"messages": messages, "tools": tools})
    ids: list[int] = ORACLES[version].encode_chat_completion(request).tokens
    return ids


@every_version
def test_conversations_without_tools_have_the_ids_of_mistral_common(version: str) -> None:
    format = ours(version)
    writer = Writer(1)
    for _ in range(N):
        messages = writer.messages()
        assert format.ids(messages) == oracle(version, messages), messages


@with_tools
def test_conversations_with_tools_have_the_ids_of_mistral_common(version: str) -> None:
    format = ours(version)
    writer = Writer(2, tools=True, content_and_calls=version == "v7", one_result=version == "v2")
    for _ in range(N):
        messages, tools = writer.messages(), writer.some_tools()
        assert format.ids(messages, tools) == oracle(version, messages, tools), messages


EXAMPLE = [
    {"role": "system", "content": "SYS"},
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
]
PUBLISHED = {
    "v1": [
        *(1, 733, 16289, 28793, 17121, 28735, 13, 13, 28708, 733, 28748, 16289, 28793, 287, 2),
        *(733, 16289, 28793, 277, 733, 28748, 16289, 28793),
    ],
    "v3": [1, 3, 1032, 4, 1055, 2, 3, 17889, 29503, 781, 781, 29485, 4],
    "v3-tekken": [1, 3, 1097, 4, 1098, 2, 3, 1083, 61300, 1267, 1099, 4],
    "v7": [1, 16, 17889, 29503, 17, 3, 1032, 4, 1055, 2, 3, 1045, 4],
}


@pytest.mark.parametrize("version", PUBLISHED)
def test_the_ids_of_a_short_chat(version: str) -> None:
    assert ours(version).ids(EXAMPLE) == PUBLISHED[version]


@every_version
def test_moderation_by_a_system_text(version: str) -> None:
    safe = (
        "Always assist with care, respect, and truth. Respond with utmost utility yet securely. Avoid harmful, "
        "unethical, prejudiced, or negative content. Ensure replies promote fairness and positivity."
    )
    messages = [{"role": "system", "content": safe}, *EXAMPLE]
    assert ours(version).ids(messages) == oracle(version, messages)


@every_version
def test_an_answer_that_begins_is_continued(version: str) -> None:
    messages = [*EXAMPLE, {"role": "assistant", "content": "The answer"}]
    ids = ours(version).ids(messages, continue_final=True)
    assert ids == oracle(version, [*EXAMPLE, {"role": "assistant", "content": "The answer", "prefix": True}])
    assert ids[: len(ours(version).ids(EXAMPLE))] == ours(version).ids(EXAMPLE)
    assert ids[-1] != 2


@every_version
def test_system_texts_behind_an_answer_are_taken_where_mistral_common_refuses(version: str) -> None:
    messages = [*EXAMPLE[1:3], {"role": "system", "content": "SYS"}, EXAMPLE[3]]
    if version == "v7":
        assert ours(version).ids(messages) == [1, 3, 1032, 4, 1055, 2, 16, 17889, 29503, 17, 3, 1045, 4]
    else:
        assert ours(version).ids(messages) == ours(version).ids(EXAMPLE)


def test_text_before_calls_is_kept_in_all_versions_as_v7_has_it() -> None:
    writer = Writer(4)
    messages = [EXAMPLE[1], *writer.calling()]
    messages[1]["content"] = "Let me see"
    ids = ours("v3").ids(messages)
    messages[1]["content"] = None
    silent = ours("v3").ids(messages)
    assert ids[:4] == silent[:4]
    assert [*silent[:4], *mistral_tokenizer("v3").encode("Let me see", add_bos=False), *silent[4:]] == ids


def test_ids_of_calls_from_elsewhere_become_nine_letters_and_digits() -> None:
    assert call_id("abcDEF019") == "abcDEF019"
    made = call_id("call_1234567890abcdef")
    assert made == call_id("call_1234567890abcdef") != call_id("call_1234567890abcdeg")
    assert len(made) == 9
    assert made.isalnum()
    messages = [
        EXAMPLE[1],
        {"role": "assistant", "tool_calls": [{"id": "call_1", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "1"},
    ]
    theirs = copied(messages)
    theirs[1]["tool_calls"][0]["id"] = theirs[2]["tool_call_id"] = call_id("call_1")
    for version in ("v3", "v7"):
        assert ours(version).ids(messages) == oracle(version, theirs)


def test_what_a_version_cannot_express_is_refused() -> None:
    tools = Writer(5).some_tools()
    calling = [EXAMPLE[1], *Writer(5).calling()]
    for given in ((EXAMPLE, tools), (calling, None)):
        with pytest.raises(UnsupportedError, match="'mistral-v1' has none"):
            ours("v1").ids(*given)
    two = [{"id": id, "function": {"name": "f"}} for id in ("a", "b")]
    results = [{"role": "tool", "tool_call_id": id, "content": "1"} for id in ("a", "b")]
    with pytest.raises(UnsupportedError, match="one result"):
        ours("v2").ids([EXAMPLE[1], {"role": "assistant", "tool_calls": two}, *results])
    for version in ORACLES:
        with pytest.raises(InvalidArgumentError, match="found an empty one"):
            ours(version).ids([EXAMPLE[1], {"role": "assistant", "content": ""}, EXAMPLE[3]])
    with pytest.raises(UnsupportedError, match=r"'\[SYSTEM_PROMPT\]'.*'mistral-v7'"):
        choose(mistral_tokenizer("v3"), None, "mistral-v7")
    with pytest.raises(UnsupportedError, match=r"'\[INST\]'"):
        choose(byte_pairs(), None, "mistral-v3")


def test_json_that_is_nested_without_end_is_text() -> None:
    deep = "[" * 100_000
    call = {"id": "a", "function": {"name": "f", "arguments": deep}}
    messages = [EXAMPLE[1], {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": deep}]
    assert len(ours("v3").ids(messages)) > 2000
    call["function"]["arguments"] = '{"a": ' + "9" * 5000 + "}"  # an integer that Python refuses to read
    assert len(ours("v3").ids(messages)) > 2000
