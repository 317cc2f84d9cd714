"""What /v1/chat/completions takes, and the arguments of Mixtral.chat() that it becomes."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pymixtral.mixtral import Mixtral
from pymixtral.server.api.bodies import Part, Text
from pymixtral.server.api.sampling import WritingBody
from pymixtral.server.api.tools import ToolChoice, ToolPlan, Tools, tool_plan
from pymixtral.server.errors import APIError
from pymixtral.server.service import Service

MAX_MESSAGES = 4096
"""Messages of a conversation."""


class TextPart(Part):
    """A part of a message's text, the only kind that the model reads."""

    type: Literal["text"]
    text: Text


class CalledFunction(Part):
    """A function and its arguments, JSON."""

    name: Annotated[str, Field(max_length=64)]
    arguments: Text


class Call(Part):
    """A call of a tool that the model has asked for."""

    id: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None


_Content = Text | Annotated[list[TextPart], Field(min_length=1, max_length=1024, fail_fast=True)]
_Name = Annotated[str, Field(min_length=1, max_length=256)]


class MessagePart(Part):
    """A message of a conversation. Fields of answers that are empty may stay in it."""

    name: _Name | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_empty_fields(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in data.items() if key in cls.model_fields or value not in (None, "", [], {})}

    def plain(self) -> dict[str, Any]:
        """Write it as pymixtral takes it."""
        message = self.model_dump(exclude_none=True)
        for call in message.get("tool_calls", ()):
            call.pop("index", None)
        return message


class GivenMessage(MessagePart):
    """What the model is told."""

    role: Literal["system", "developer", "user"]
    content: _Content


class AssistantMessage(MessagePart):
    """What the model has answered."""

    role: Literal["assistant"]
    content: _Content | None = None
    tool_calls: Annotated[list[Call], Field(max_length=128, fail_fast=True)] | None = None
    prefix: bool | None = None


class ToolMessage(MessagePart):
    """What a call has given."""

    role: Literal["tool"]
    content: _Content
    tool_call_id: _Name | None = None


Message = Annotated[GivenMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]
Messages = Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]


class TemplateFields(Part):
    """The fields that say how a conversation becomes a prompt."""

    messages: Messages
    tools: Tools | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def plan(self) -> ToolPlan:
        """Find out what is wanted of tools.

        Raises:
            APIError: for tools that are not right.
        """
        return tool_plan(self.tools, None, None)

    def conversation(self, model: Mixtral) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Make the messages and the options that say how they are written.

        Args:
            model: has the chat format.

        Returns:
            Messages, and tools, template_variables and continue_final of pymixtral.ChatOptions.

        Raises:
            APIError: for fields that contradict each other.
            UnsupportedError: if the model has no chat format.
        """
        continues = bool(self.continue_final_message)
        if continues and self.add_generation_prompt:
            raise APIError(
                400,
                "expected one of add_generation_prompt and continue_final_message, found both",
                param="continue_final_message",
                code="invalid_value",
            )
        if self.add_generation_prompt is False and not continues:
            raise APIError(
                400,
                "expected add_generation_prompt without continue_final_message, found neither: nothing would say who "
                "speaks next",
                param="add_generation_prompt",
                code="invalid_value",
            )
        messages = [message.plain() for message in self.messages]
        options: dict[str, Any] = {"continue_final": continues}
        if self.chat_template_kwargs:
            options["template_variables"] = self.chat_template_kwargs
        plan = self.plan()
        if plan.forced and model.chat_format().tool_syntax is None:
            messages = with_instructions(messages, plan.instructions())
        elif plan.tools:
            options["tools"] = plan.plain()
        return messages, options

    def prompt_ids(self, model: Mixtral) -> list[int]:
        """Make what the model reads.

        Args:
            model: has the chat format.

        Raises:
            PymixtralError: as Mixtral.chat().
            APIError: for fields that contradict each other.
        """
        messages, options = self.conversation(model)
        format = model.chat_format().with_variables(options.get("template_variables") or {})
        return format.ids(messages, options.get("tools"), options["continue_final"])

    async def awaited_ids(self, model: Mixtral) -> list[int]:
        """Make what the model reads as prompt_ids() does, in a thread, so that a long conversation delays nobody.

        Args:
            model: has the chat format.

        Raises:
            PymixtralError: as prompt_ids().
            APIError: as prompt_ids().
        """
        return await asyncio.to_thread(self.prompt_ids, model)


def with_instructions(messages: list[dict[str, Any]], instructions: str) -> list[dict[str, Any]]:
    """Put instructions before a conversation, into its system message if it begins with one.

    Args:
        messages: the conversation.
        instructions: a text.
    """
    first = messages[0]
    if first["role"] not in ("system", "developer"):
        return [{"role": "system", "content": instructions}, *messages]
    content = first.get("content") or ""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return [{**first, "content": [*parts, {"type": "text", "text": instructions}]}, *messages[1:]]


class ChatRequest(TemplateFields, WritingBody):
    """What /v1/chat/completions takes."""

    ignored = (
        *("user", "metadata", "store", "service_tier", "prompt_cache_key", "prompt_cache_options"),
        *("prompt_cache_retention", "safety_identifier", "moderation", "reasoning_effort", "verbosity"),
        *("prediction", "cache_prompt", "skip_special_tokens", "spaces_between_special_tokens"),
    )
    refused = (
        *("chat_template", "functions", "function_call", "audio", "web_search_options", "documents"),
        *("guided_json", "guided_regex", "guided_choice", "guided_grammar", "grammar"),
        *("use_beam_search", "length_penalty", "logits_processors", "lora"),
    )

    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    max_tokens: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = None

    def plan(self) -> ToolPlan:
        """Find out what is wanted of tools.

        Raises:
            APIError: for tools that are not right.
        """
        plan = tool_plan(self.tools, self.tool_choice, self.parallel_tool_calls)
        form = "response_format" if self.response_format is not None else "structured_outputs"
        if plan.tools and (self.structured_outputs or getattr(self.response_format, "type", "text") != "text"):
            raise APIError(
                400,
                f"expected tools or {form}, found both: a text of that form holds no calls",
                param=form,
                code="invalid_value",
            )
        return plan

    def check(self) -> None:
        """Refuse fields that contradict each other.

        Raises:
            APIError: for the first of them.
        """
        refusals = {
            "top_logprobs": bool(self.top_logprobs) and not self.logprobs,
            "stream_options": self.stream_options is not None and not self.stream,
            "prompt_logprobs": self.prompt_logprobs is not None and bool(self.stream),
        }
        needs = {
            "top_logprobs": "logprobs to be true where top_logprobs says how many",
            "stream_options": "stream to be true where there are stream_options",
            "prompt_logprobs": "no prompt_logprobs in a stream",
        }
        found = {
            "top_logprobs": "no logprobs",
            "stream_options": "no stream",
            "prompt_logprobs": f"{self.prompt_logprobs}: leave out one of them",
        }
        for name, refused in refusals.items():
            if refused:
                raise APIError(400, f"expected {needs[name]}, found {found[name]}", param=name, code="invalid_value")

    def arguments(self, service: Service) -> tuple[list[dict[str, Any]], Any]:
        """Turn the request into the arguments of Mixtral.chat().

        Args:
            service: the application's.

        Returns:
            Messages and options.

        Raises:
            APIError: for fields that contradict each other.
            UnsupportedError: if the model has no chat format.
        """
        messages, options = self.conversation(service.model.model)
        options |= self.common_options(service)
        plan = self.plan()
        if plan.forced:
            options["json_schema"] = plan.schema()
        most = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        if most is not None:
            options["max_tokens"] = most
        if self.logprobs:
            options["logprobs"] = self.top_logprobs or 0
        return messages, options
