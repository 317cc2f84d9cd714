"""Messages of a chat and tools, checked: the shapes of OpenAI's API.

A conversation is a list of mappings with `role` and `content`. All checks are here, so that the
formats, which make token ids of a conversation, may trust it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from pymixtral.arguments import shown
from pymixtral.errors import InvalidArgumentError

SYSTEM, USER, ASSISTANT, TOOL = "system", "user", "assistant", "tool"

_ROLES = {"system": SYSTEM, "developer": SYSTEM, "user": USER, "assistant": ASSISTANT, "tool": TOOL}
_NAME = re.compile("[a-zA-Z0-9_-]{1,64}")
_FIELDS = {
    SYSTEM: {"role", "content", "name"},
    USER: {"role", "content", "name"},
    ASSISTANT: {"role", "content", "name", "tool_calls", "prefix"},
    TOOL: {"role", "content", "name", "tool_call_id"},
}


@dataclass(frozen=True)
class ToolCall:
    """A call of a function that an assistant asks for.

    Attributes:
        name: the function's name.
        arguments: its arguments, JSON text as it was given.
        id: what the result of the call refers to.
    """

    name: str
    arguments: str
    id: str


@dataclass(frozen=True)
class Message:
    """A message of a conversation.

    Attributes:
        role: SYSTEM, USER, ASSISTANT or TOOL.
        parts: the parts of its text; one part for a content that is a string, none for None.
        tool_calls: the calls that an assistant's message asks for.
        tool_call_id: the call that a tool's message answers.
        name: the name that the message gives, or None.
        prefix: whether the message is the beginning of one, which the model continues.
    """

    role: str
    parts: tuple[str, ...]
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    prefix: bool = False

    def text(self, between: str) -> str:
        """Join the parts of the text.

        Args:
            between: what stands between two parts.

        Returns:
            The text. Empty parts are left out.
        """
        return between.join(filter(None, self.parts))


@dataclass(frozen=True)
class Tool:
    """A function that the model may call.

    Attributes:
        name: its name.
        description: what it does; may be empty.
        parameters: a JSON schema of its arguments.
        given: the mapping as it was given, for templates.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    given: Mapping[str, Any]

    def to_openai(self) -> dict[str, Any]:
        """Write the tool as OpenAI's API does.

        Returns:
            The mapping, without what is not known here.
        """
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


def checked_messages(messages: Sequence[Mapping[str, Any]], continue_final: bool = False) -> list[Message]:
    """Check a conversation.

    Args:
        messages: mappings of `role` ("system", "developer", which is the same, "user", "assistant"
            or "tool") and `content`, a string or a list of parts `{"type": "text", "text": ...}`.
            An assistant's message may have `tool_calls` and, if it is the last, `prefix`: true, to
            be continued; a tool's message has the `tool_call_id` that it answers. A call without an
            id gets one, and a result without one answers the first call that has none yet. Other
            fields are refused unless they are empty.
        continue_final: as `prefix` of the last message.

    Returns:
        The messages.

    Raises:
        InvalidArgumentError: for anything else, naming the message and the field: no message, other
            types, a result without its call, a prefix that is not at the end, and a last message of
            an assistant that is not to be continued. Nothing could follow it.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise InvalidArgumentError(f"expected messages to be a list of messages, found {shown(messages)}")
    if not messages:
        raise InvalidArgumentError("expected messages to have at least one message, found none")
    checked: list[Message] = []
    open_calls: list[str] = []  # that the next results may answer
    for i, given in enumerate(messages):
        message = _message(f"messages[{i}]", given)
        if message.role == TOOL:
            message = _answered(f"messages[{i}]", message, open_calls)
        else:
            open_calls = [call.id for call in message.tool_calls]
        if message.prefix and i < len(messages) - 1:
            _fail(f"messages[{i}].prefix", "false in all messages but the last", True)
        checked.append(message)
    last = f"messages[{len(messages) - 1}]"
    if continue_final:
        if checked[-1].role != ASSISTANT:
            _fail(f"{last}.role", "'assistant', to be continued", checked[-1].role)
        checked[-1] = replace(checked[-1], prefix=True)
    elif checked[-1].role == ASSISTANT and not checked[-1].prefix:
        raise InvalidArgumentError(
            f"expected {last} to be a message that the model answers, found the assistant's: "
            "add a message, or ask to continue this one"
        )
    if checked[-1].prefix and checked[-1].tool_calls:
        _fail(f"{last}.tool_calls", "none in a message to be continued", checked[-1].tool_calls[0].name)
    return checked


def checked_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[Tool]:
    """Check the functions that the model may call.

    Args:
        tools: mappings `{"type": "function", "function": {"name": ..., "description": ...,
            "parameters": JSON schema}}`; None: none.

    Returns:
        The tools.

    Raises:
        InvalidArgumentError: for anything else, naming the tool and the field.
    """
    if tools is None:
        return []
    if isinstance(tools, (str, bytes, Mapping)) or not isinstance(tools, Sequence):
        raise InvalidArgumentError(f"expected tools to be a list of tools, found {shown(tools)}")
    return [_tool(f"tools[{i}]", given) for i, given in enumerate(tools)]


def parsed(text: str) -> Any:
    """Read JSON that may be none.

    Args:
        text: such as the arguments of a call.

    Returns:
        The value; the text itself if it is not JSON, or nested too deeply.
    """
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()  # may be too deep, or hold halves of surrogate pairs
    except (ValueError, RecursionError):  # ValueError: also an integer of thousands of digits
        return text
    return value


def _message(place: str, given: object) -> Message:
    if not isinstance(given, Mapping):
        _fail(place, "a mapping with 'role' and 'content'", given)
    role = given.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        _fail(f"{place}.role", " or ".join(map(repr, _ROLES)), role)
    role = _ROLES[role]
    for field in given:
        if field not in _FIELDS[role] and given[field]:
            raise InvalidArgumentError(
                f"expected {place} to have the fields {', '.join(sorted(_FIELDS[role]))}, found {shown(field)}: "
                f"remove it"
            )
    content = given.get("content")
    prefix = given.get("prefix", False)
    if not isinstance(prefix, bool):
        _fail(f"{place}.prefix", "true or false", prefix)
    calls = _calls(f"{place}.tool_calls", given.get("tool_calls"))
    if content is None and not (role == ASSISTANT and calls):
        _fail(f"{place}.content", "text or a list of text parts", content)
    call_id = given.get("tool_call_id")
    return Message(
        role,
        () if content is None else _parts(f"{place}.content", content),
        calls,
        None if call_id is None else _filled(f"{place}.tool_call_id", call_id),
        None if given.get("name") is None else _filled(f"{place}.name", given["name"]),
        prefix,
    )


def _parts(place: str, content: object) -> tuple[str, ...]:
    if isinstance(content, str):
        return (_text(place, content),)
    if isinstance(content, (bytes, Mapping)) or not isinstance(content, Sequence):
        _fail(place, "text or a list of text parts", content)
    parts = []
    for i, part in enumerate(content):
        if isinstance(part, str):  # Mistral's short form
            parts.append(_text(f"{place}[{i}]", part))
            continue
        if not isinstance(part, Mapping):
            _fail(f"{place}[{i}]", "a mapping with 'type' and 'text'", part)
        if part.get("type") != "text":
            _fail(f"{place}[{i}].type", "'text', the only kind that these models read", part.get("type"))
        parts.append(_text(f"{place}[{i}].text", part.get("text")))
    return tuple(parts)


def _calls(place: str, calls: object) -> tuple[ToolCall, ...]:
    if calls is None:
        return ()
    if isinstance(calls, (str, bytes, Mapping)) or not isinstance(calls, Sequence):
        _fail(place, "a list of calls", calls)
    return tuple(_call(f"{place}[{i}]", i, call) for i, call in enumerate(calls))


def _call(place: str, number: int, call: object) -> ToolCall:
    if not isinstance(call, Mapping):
        _fail(place, "a mapping with 'function'", call)
    _check_function(place, call)
    function = call["function"]
    arguments = function.get("arguments")
    if arguments is None:
        arguments = "{}"
    elif isinstance(arguments, Mapping):
        arguments = _json(f"{place}.function.arguments", arguments)
    id = call.get("id")
    return ToolCall(
        _name(f"{place}.function.name", function.get("name")),
        _text(f"{place}.function.arguments", arguments),
        f"{number:09d}" if id is None else _filled(f"{place}.id", id),
    )


def _answered(place: str, message: Message, open_calls: list[str]) -> Message:
    """The result, with the id of the call that it answers, which is taken from the open ones."""
    if not open_calls:
        raise InvalidArgumentError(
            f"expected {place} to follow an assistant's message whose calls have no results yet, found a result "
            "that answers none of its calls: remove it, or add the message that calls"
        )
    id = open_calls[0] if message.tool_call_id is None else message.tool_call_id
    if id not in open_calls:
        _fail(f"{place}.tool_call_id", f"one of the calls without a result ({', '.join(open_calls)})", id)
    open_calls.remove(id)
    return replace(message, tool_call_id=id)


def _tool(place: str, given: object) -> Tool:
    if not isinstance(given, Mapping):
        _fail(place, "a mapping with 'type' and 'function'", given)
    _check_function(place, given)
    function = given["function"]
    description = function.get("description")
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, Mapping):
        _fail(f"{place}.function.parameters", "a JSON schema", parameters)
    _json(place, given)
    return Tool(
        _name(f"{place}.function.name", function.get("name")),
        "" if description is None else _text(f"{place}.function.description", description),
        {} if parameters is None else parameters,
        given,
    )


def _check_function(place: str, given: Mapping[str, Any]) -> None:
    if given.get("type", "function") != "function":
        _fail(f"{place}.type", "'function'", given["type"])
    if not isinstance(given.get("function"), Mapping):
        _fail(f"{place}.function", "a mapping with 'name'", given.get("function"))


def _name(place: str, name: object) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        _fail(place, "1 to 64 letters, digits, '_' or '-'", name)
    return name


def _filled(place: str, text: object) -> str:
    if text == "":
        _fail(place, "text that is not empty", text)
    return _text(place, text)


def _text(place: str, text: object) -> str:
    if not isinstance(text, str):
        _fail(place, "text", text)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        _fail(f"{place}, character {error.start},", "Unicode text", text[error.start])
    return text


def _json(place: str, value: Mapping[str, Any]) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgumentError(
            f"expected {place} to be what JSON can express, found {shown(value)} ({error})"
        ) from None
    return text


def _fail(place: str, expected: str, found: object) -> NoReturn:
    raise InvalidArgumentError(f"expected {place} to be {expected}, found {shown(found)}")
