"""The formats of Mistral's own instruct models, by the version of their tokenizer.

Source: mistral-common, whose ids the tests compare. v1 is Mixtral 8x7B Instruct, where [INST] is
ordinary text; v3 is Mixtral 8x22B Instruct; v7 has a place for system texts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby, pairwise
from typing import Any

from pymixtral.errors import InvalidArgumentError, UnsupportedError
from pymixtral.text.chat_format import ChatFormat, Piece, begin_of_text, marks
from pymixtral.text.messages import SYSTEM, TOOL, USER, Message, Tool, parsed
from pymixtral.text.tokenizer import Tokenizer
from pymixtral.text.tool_calls import MISTRAL

BETWEEN = "\n\n"
"""Stands between the parts of a text, between merged messages, and behind a system text."""

_CALL_ID = re.compile("[a-zA-Z0-9]{9}")
_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


class MistralText(ChatFormat):
    """v1: the instructions are marked by ordinary text, and there are no tools.

    The system text stands before the first user text.

    Args:
        tokenizer: the model's, of any kind.
    """

    name = "mistral-v1"
    answers_apart = True
    between = BETWEEN

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self._end = marks(tokenizer, self.name, ["</s>"])["</s>"]
        self.stop_ids |= {self._end}

    def _pieces(self, messages: list[Message], tools: list[Tool]) -> Iterator[Piece]:
        if tools or any(message.tool_calls for message in messages):
            raise UnsupportedError(
                f"expected no tools, because the chat format '{self.name}' has none, found some: "
                "ask for the answer's shape in a message"
            )
        system, turns = _with_system_apart(messages)
        yield begin_of_text(self.tokenizer, self.name)
        for i, message in enumerate(turns):
            text = message.text(BETWEEN)
            if message.role == USER:
                yield f"[INST] {system}{text} [/INST]" if i == 0 else f"[INST] {text} [/INST]"
            else:
                yield _said(text)
                if not message.prefix:
                    yield self._end


class MistralTokens(ChatFormat):
    """v2, v3 and v7: control tokens mark instructions, tools, calls and results.

    Before v7 the system text stands before the last user text. The list of tools stands before the
    last user text in all versions.

    Args:
        tokenizer: the model's, with the control tokens of its version.
        version: 2, 3 or 7.

    Raises:
        UnsupportedError: if the tokenizer lacks one of the tokens.
    """

    between = BETWEEN
    tool_syntax = MISTRAL

    def __init__(self, tokenizer: Tokenizer, version: int) -> None:
        super().__init__(tokenizer)
        self.version = version
        self.name = f"mistral-v{version}"
        names = ["</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"]
        names += ["[TOOL_RESULTS]", "[/TOOL_RESULTS]"]
        if version >= 7:
            names += ["[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"]
        self._marks = marks(tokenizer, self.name, names)
        self.marker_ids = frozenset(self._marks.values())
        self.stop_ids |= {self._marks["</s>"]}

    def _pieces(self, messages: list[Message], tools: list[Tool]) -> Iterator[Piece]:
        mark = self._marks
        system = ""
        if self.version >= 7:
            turns = _merged(messages)
        else:
            system, turns = _with_system_apart(messages)
        last_user = max((i for i, message in enumerate(turns) if message.role == USER), default=-1)
        if self.version == 2:
            turns, last_user = _without_past_tools(turns, last_user)
        yield begin_of_text(self.tokenizer, self.name)
        for i, message in enumerate(turns):
            text = message.text(BETWEEN)
            if message.role == SYSTEM:
                yield from (mark["[SYSTEM_PROMPT]"], text, mark["[/SYSTEM_PROMPT]"])
            elif message.role == USER:
                if i == last_user and tools:
                    listed = _dumped([tool.to_openai() for tool in tools])
                    yield from (mark["[AVAILABLE_TOOLS]"], listed, mark["[/AVAILABLE_TOOLS]"])
                yield from (mark["[INST]"], (system if i == last_user else "") + text, mark["[/INST]"])
            elif message.role == TOOL:
                yield from (mark["[TOOL_RESULTS]"], *self._result(message, text), mark["[/TOOL_RESULTS]"])
            else:
                if text or not message.tool_calls:
                    yield _said(text).rstrip(" ")
                if message.tool_calls:
                    yield from (mark["[TOOL_CALLS]"], _dumped([self._call(call) for call in message.tool_calls]))
                if not message.prefix:
                    yield mark["</s>"]

    def _call(self, call: Any) -> dict[str, Any]:
        written = {"name": call.name, "arguments": parsed(call.arguments) if call.arguments else {}}
        return written if self.version == 2 else {**written, "id": call_id(call.id)}

    def _result(self, message: Message, text: str) -> Iterable[Piece]:
        assert message.tool_call_id is not None
        id = call_id(message.tool_call_id)
        if self.version >= 7:
            return id, self._marks["[TOOL_CONTENT]"], text
        content = parsed(text) if text else {}
        if self.version == 2:
            return (_dumped([{"name": message.name, "content": content}]),)
        return (_dumped({"content": content, "call_id": id}),)


def call_id(id: str) -> str:
    """Make an id that Mistral's models know: 9 letters and digits.

    Args:
        id: any id, such as another model's in a conversation that goes on with this one.

    Returns:
        The id itself if it is one, else letters and digits of its SHA-256, always the same.
    """
    if _CALL_ID.fullmatch(id):
        return id
    number = int.from_bytes(hashlib.sha256(id.encode()).digest(), "big")
    return "".join(_DIGITS[number // 62**i % 62] for i in range(9))


def _merged(messages: list[Message]) -> list[Message]:
    """The conversation with neighbours of one role made one, if they are users or assistants."""
    turns: list[Message] = []
    for role, group in groupby(messages, key=lambda message: message.role):
        if role in (SYSTEM, TOOL):
            turns += group
            continue
        same = list(group)
        turns.append(
            replace(
                same[-1],
                parts=tuple(part for message in same for part in message.parts),
                tool_calls=tuple(call for message in same for call in message.tool_calls),
            )
        )
    return turns


def _with_system_apart(messages: list[Message]) -> tuple[str, list[Message]]:
    """The system text with what separates it from a user's, and the turns, of which the first is a user's.

    Messages on both sides of a system text are not merged.
    """
    system = BETWEEN.join(text for message in messages if message.role == SYSTEM and (text := message.text(BETWEEN)))
    turns = [message for message in _merged(messages) if message.role != SYSTEM]
    if not turns or turns[0].role != USER:
        turns.insert(0, Message(USER, ()))
    return system + BETWEEN if system else "", turns


def _without_past_tools(turns: list[Message], last_user: int) -> tuple[list[Message], int]:
    """v2: calls and results before the last user text are left out, and one result may follow it."""
    past = [turn for turn in turns[:last_user] if turn.role != TOOL]
    past = [replace(turn, tool_calls=()) for turn in past if turn.text(BETWEEN) or not turn.tool_calls]
    now = turns[last_user:]
    for before, after in pairwise(now):
        if before.role == after.role == TOOL:
            raise UnsupportedError(
                "expected one result of a tool for each message that calls, because the chat format 'mistral-v2' "
                "has no more, found two: join them"
            )
    return past + now, len(past)


def _said(text: str) -> str:
    """An assistant's text, which these formats cannot leave empty."""
    if not text:
        raise InvalidArgumentError(
            "expected each message of the assistant to have text or calls of tools, found an empty one: remove it"
        )
    return text


def _dumped(value: Any) -> str:
    """JSON as Mistral's models have seen it."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:
        raise InvalidArgumentError(
            "expected JSON of calls and tools with some dozens of levels, found more: nest it less"
        ) from None
