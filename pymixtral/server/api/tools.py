"""Tools of a chat: which the model may call, and calls that a request insists on.

A call that a request insists on is written under a grammar, also by models whose format has no calls.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from pymixtral.server.api.bodies import Part
from pymixtral.server.api.forms import Schema
from pymixtral.server.errors import APIError
from pymixtral.text.tool_calls import ArgumentsPiece, CallBegins, Event, Syntax, TextPiece, ToolCallParser

MAX_TOOLS = 128
"""Tools of one request."""

_LISTED = Syntax("", listed=True)
"""How forced calls are written: [{"name": ..., "arguments": {...}}, ...]"""

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class Function(Part):
    """A function that the model may call."""

    name: FunctionName
    description: Annotated[str, Field(max_length=1 << 16)] | None = None
    parameters: Schema | None = None
    strict: bool | None = None


class Tool(Part):
    """A tool."""

    type: Literal["function"] = "function"
    function: Function

    def plain(self) -> dict[str, Any]:
        """Write it as pymixtral takes it."""
        function = self.function.model_dump(exclude_none=True, exclude={"strict"})
        return {"type": "function", "function": function}


class Named(Part):
    """The name of a function."""

    name: FunctionName


class NamedTool(Part):
    """A tool, by its name."""

    type: Literal["function"]
    function: Named


class Allowed(Part):
    """Some of the tools."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)]


class AllowedTools(Part):
    """Some of the tools, and whether one of them must be called."""

    type: Literal["allowed_tools"]
    allowed_tools: Allowed


Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)]
ToolChoice = Literal["none", "auto", "required"] | NamedTool | AllowedTools


@dataclass(frozen=True)
class ToolPlan:
    """What a request wants of tools. tool_plan() makes it.

    Attributes:
        tools: those that the model may call.
        forced: whether it must call one.
        name: the one that it must call; None: any.
        parallel: whether it may call several at once.
    """

    tools: list[Tool] = field(default_factory=list)
    forced: bool = False
    name: str | None = None
    parallel: bool = True

    def plain(self) -> list[dict[str, Any]]:
        """Write the tools as pymixtral takes them."""
        return [tool.plain() for tool in self.tools]

    def schema(self) -> Schema:
        """Make the schema of a forced answer: the arguments of a named function, else a list of calls."""
        if self.name is not None:
            return _parameters(self.tools[0])
        calls = [
            {
                "type": "object",
                "properties": {
                    "name": {"const": tool.function.name},
                    "arguments": _moved(_parameters(tool), f"#/items/anyOf/{i}/properties/arguments"),
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for i, tool in enumerate(self.tools)
        ]
        most = {} if self.parallel else {"maxItems": 1}
        return {"type": "array", "minItems": 1, **most, "items": {"anyOf": calls}}

    def instructions(self) -> str:
        """Write what a model reads of forced calls, if its format has no place for tools."""
        listed = json.dumps([tool.plain()["function"] for tool in self.tools], ensure_ascii=False)
        if self.name is not None:
            return f"Answer with the arguments of a call of this function, as JSON: {listed}"
        return (
            f"These functions can be called: {listed}\n"
            'Answer with the calls, as JSON: [{"name": "...", "arguments": {...}}]'
        )


def tool_plan(tools: Sequence[Tool] | None, choice: Any, parallel: bool | None) -> ToolPlan:
    """Find out what a request wants of tools.

    Args:
        tools: its tools.
        choice: its tool_choice; None: "auto".
        parallel: its parallel_tool_calls; None: true.

    Returns:
        The plan.

    Raises:
        APIError: for a choice of tools that are not there.
    """
    chosen = list(tools or [])
    names = [tool.function.name for tool in chosen]
    for one in names:
        if names.count(one) > 1:
            raise APIError(400, f"expected each tool once, found {one!r} twice", param="tools", code="invalid_value")
    if choice == "none":
        return ToolPlan()
    forced = choice == "required"
    name: str | None = None
    if isinstance(choice, AllowedTools):
        wanted = [one.function.name for one in choice.allowed_tools.tools]
        forced = choice.allowed_tools.mode == "required"
    elif isinstance(choice, NamedTool):
        wanted, forced, name = [choice.function.name], True, choice.function.name
    else:
        wanted = names
    missing = [one for one in wanted if one not in names]
    if missing or (forced and not chosen):
        raise APIError(
            400,
            f"expected tool_choice to be of the request's tools ({', '.join(names) or 'it has none'}), found "
            f"{missing[0] if missing else choice!r}",
            param="tool_choice",
            code="invalid_value",
        )
    return ToolPlan([tool for tool in chosen if tool.function.name in wanted], forced, name, parallel is not False)


def _parameters(tool: Tool) -> Schema:
    """The schema of a tool's arguments. Arguments that it does not name are left out: it does not need them."""
    given = tool.function.parameters or {}
    return {"type": "object", **({"additionalProperties": False} if "properties" in given else {}), **given}


def _moved(schema: Any, to: str) -> Any:
    """A schema at another place of a document: its references lead there, too."""
    if isinstance(schema, dict):
        return {
            key: to + value[1:]
            if key == "$ref" and isinstance(value, str) and value.startswith("#")
            else _moved(value, to)
            for key, value in schema.items()
        }
    return [_moved(value, to) for value in schema] if isinstance(schema, list) else schema


class ForcedCalls:
    """Reads the text of an answer that is forced to be calls.

    A call that is cut short stays a call, with the arguments as far as they go. Only of a text in
    which no call has begun, the text is given.

    Args:
        plan: with `forced`.

    Attributes:
        calls: the calls so far, as OpenAI's interface has them.
        content: the text, if no call has begun at the end.
    """

    def __init__(self, plan: ToolPlan) -> None:
        self._plan = plan
        self._parser = ToolCallParser(_LISTED)
        self._raw = ""
        self.calls: list[dict[str, Any]] = []
        self.content = ""

    def push(self, text: str) -> list[Event]:
        """Take a piece of the text.

        Args:
            text: the piece.

        Returns:
            What is certain with it: CallBegins and ArgumentsPiece.
        """
        if not self._raw and self._plan.name is not None:
            text = f'[{{"name": {json.dumps(self._plan.name)}, "arguments": {text}'
        self._raw += text
        return self._known(self._parser.push_text(text))

    def finish(self) -> list[Event]:
        """End the text.

        Returns:
            The last events.
        """
        events = self._known(self._parser.finish())
        if not self.calls and self._raw:
            self.content = self._raw
            return [TextPiece(self.content)]
        return events if not self._parser.calls else []

    def _known(self, events: list[Event]) -> list[Event]:
        kept: list[Event] = []
        for event in events:
            if isinstance(event, CallBegins):
                self.calls.append(call_of(event.id, event.name))
            elif isinstance(event, ArgumentsPiece):
                self.calls[event.index]["function"]["arguments"] += event.text
            else:
                continue
            kept.append(event)
        return kept


def call_of(id: str, name: str, arguments: str = "") -> dict[str, Any]:
    """Write a call as OpenAI's interface has it.

    Args:
        id: its id.
        name: the function's.
        arguments: its arguments, JSON.
    """
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
