"""What /v1/responses takes, and the conversation that it becomes."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pymixtral.server.api.bodies import ModelBody, Part, Text
from pymixtral.server.api.chat_requests import MAX_MESSAGES, ChatRequest
from pymixtral.server.api.forms import Schema
from pymixtral.server.api.sampling import StopTexts
from pymixtral.server.api.tools import MAX_TOOLS, FunctionName


class InputText(Part):
    """A part of a message."""

    type: Literal["input_text", "output_text", "text"]
    text: Text
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    logprobs: list[Any] | None = None


class _Earlier(Part):
    """What an earlier answer may have had: fields that are null may stay in it."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in data.items() if key in cls.model_fields or value is not None}


class InputMessage(_Earlier):
    """A message of the conversation: one that is given, or an earlier answer."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[InputText], Field(min_length=1, max_length=1024, fail_fast=True)]
    id: Annotated[str, Field(max_length=256)] | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None


class FunctionCall(_Earlier):
    """A call that an earlier answer asked for."""

    type: Literal["function_call"]
    call_id: Annotated[str, Field(min_length=1, max_length=256)]
    name: FunctionName
    arguments: Text
    id: Annotated[str, Field(max_length=256)] | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None


class FunctionCallOutput(Part):
    """The result of a call."""

    type: Literal["function_call_output"]
    call_id: Annotated[str, Field(min_length=1, max_length=256)]
    output: Text
    id: Annotated[str, Field(max_length=256)] | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None


class ResponseTool(Part):
    """A function that the model may call."""

    type: Literal["function"]
    name: FunctionName
    description: Annotated[str, Field(max_length=1 << 16)] | None = None
    parameters: Schema | None = None
    strict: bool | None = None


class ResponseNamedTool(Part):
    """A function that the model must call."""

    type: Literal["function"]
    name: FunctionName


class PlainFormat(Part):
    """Any text, or a JSON object."""

    type: Literal["text", "json_object"]


class SchemaFormat(Part):
    """JSON that a schema describes."""

    type: Literal["json_schema"]
    name: Annotated[str, Field(max_length=64)] | None = None
    description: Annotated[str, Field(max_length=1 << 16)] | None = None
    schema_: Schema = Field(alias="schema")
    strict: bool | None = None


class TextOptions(Part):
    """The form of the text."""

    format: Annotated[PlainFormat | SchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ResponseStreamOptions(Part):
    """There is nothing to choose."""

    include_obfuscation: bool | None = None


class ResponseRequest(ModelBody):
    """What /v1/responses takes: the part that needs nothing that is kept between requests."""

    ignored = (
        *("user", "metadata", "store", "service_tier", "prompt_cache_key", "prompt_cache_options"),
        *("prompt_cache_retention", "safety_identifier", "moderation", "reasoning"),
    )
    refused = (
        *("previous_response_id", "conversation", "background", "include", "prompt", "max_tool_calls"),
        *("context_management", "adapter"),
    )

    input: (
        Text
        | Annotated[
            list[InputMessage | FunctionCall | FunctionCallOutput],
            Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True),
        ]
    )
    instructions: Text | None = None
    max_output_tokens: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=1e9)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=1 << 31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    stop: StopTexts | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    text: TextOptions | None = None
    tools: Annotated[list[ResponseTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ResponseNamedTool | None = None
    parallel_tool_calls: bool | None = None
    truncation: Literal["disabled"] | None = None
    timeout: Annotated[float, Field(ge=0, le=1e9)] | None = None

    def chat(self) -> ChatRequest:
        """Make the request for a chat that asks for the same.

        Raises:
            APIError: for what a chat refuses.
        """
        given: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("temperature", "top_p", "top_k", "min_p", "seed", "stop", "parallel_tool_calls", "timeout")
        }
        given["model"] = self.model
        given["max_completion_tokens"] = self.max_output_tokens
        given["messages"] = self._messages()
        if self.tools:
            given["tools"] = [
                {"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_none=True)}
                for tool in self.tools
            ]
        if isinstance(self.tool_choice, ResponseNamedTool):
            given["tool_choice"] = {"type": "function", "function": {"name": self.tool_choice.name}}
        else:
            given["tool_choice"] = self.tool_choice
        format = self.text.format if self.text else None
        if isinstance(format, SchemaFormat):
            given["response_format"] = {"type": "json_schema", "json_schema": {"schema": format.schema_}}
        elif format is not None:
            given["response_format"] = {"type": format.type}
        return ChatRequest.read({name: value for name, value in given.items() if value is not None})

    def _messages(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        if self.instructions is not None:
            messages.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            return [*messages, {"role": "user", "content": self.input}]
        for item in self.input:
            if isinstance(item, InputMessage):
                content: Any = item.content
                if not isinstance(content, str):
                    content = [{"type": "text", "text": part.text} for part in content]
                messages.append({"role": item.role, "content": content})
            elif isinstance(item, FunctionCall):
                if not (messages and messages[-1]["role"] == "assistant"):
                    messages.append({"role": "assistant", "content": None})
                function = {"name": item.name, "arguments": item.arguments}
                messages[-1].setdefault("tool_calls", []).append({"id": item.call_id, "function": function})
            else:
                messages.append({"role": "tool", "tool_call_id": item.call_id, "content": item.output})
        return messages

    def echoed(self) -> dict[str, Any]:
        """Write the fields that an answer repeats."""
        format = self.text.format if self.text else None
        written = {"type": "text"} if format is None else format.model_dump(by_alias=True, exclude_none=True)
        choice = self.tool_choice or "auto"
        return {
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "text": {"format": written},
            "tools": [json.loads(tool.model_dump_json()) for tool in self.tools or []],
            "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "truncation": "disabled",
            "previous_response_id": None,
            "metadata": {},
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "background": False,
        }
