"""Mistral's formats: the ids of mistral-common, on random conversations."""

from __future__ import annotations

from typing import Any

import pytest
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from pymixtral.text.chat import choose
from pymixtral.text.chat_format import ChatFormat
from support.conversations import Writer, copied, mistral_tokenizer

ORACLES = {
    "v1": MistralTokenizer.v1(),
    "v2": MistralTokenizer.v2(),
    "v3": MistralTokenizer.v3(),
    "v7": MistralTokenizer.v7(),
}
every_version = pytest.mark.parametrize("version", ORACLES)
with_tools = pytest.mark.parametrize("version", ["v2", "v3", "v7"])
N = 1500
"""Conversations of each kind, the same in each run."""


def ours(version: str) -> ChatFormat:
    return choose(mistral_tokenizer(version), None, f"mistral-{version}")


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
