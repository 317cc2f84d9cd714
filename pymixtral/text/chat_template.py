"""The file's own template as a chat format."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from copy import copy as copy_of
from typing import Any

from pymixtral.arguments import shown
from pymixtral.errors import InvalidArgumentError, UnsupportedError
from pymixtral.text.chat_format import ChatFormat, Piece
from pymixtral.text.messages import Message, Tool, parsed
from pymixtral.text.template_values import Text, cut, own_runs
from pymixtral.text.templates import Template
from pymixtral.text.tokenizer import Tokenizer
from pymixtral.text.tool_calls import HERMES, LLAMA3, MISTRAL

_END = "\udfff"
"""Stands behind the text that is continued. No message can hold it: it is half of a surrogate pair."""


_SYNTAXES = {MISTRAL.begin: MISTRAL, HERMES.begin: HERMES, '"parameters": ': LLAMA3}
"""What a template that knows calls of tools writes of them."""


_GIVEN = ("messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token")
"""The variables of all templates."""


class TemplateFormat(ChatFormat):
    """A Jinja template, as transformers runs it.

    A name of a token is that token only where the template wrote all of it. Roles count as the
    template's; names that tools and messages spell out are ordinary text.

    Args:
        tokenizer: the model's.
        source: the template.

    Raises:
        UnsupportedError: if jinja2 is not installed, or for what templates of chats do not use.
        ModelConfigError: for text that is no template.
    """

    name = "template"

    def __init__(self, tokenizer: Tokenizer, source: str) -> None:
        self._template = Template(source)
        super().__init__(tokenizer)
        self._variables: dict[str, Any] = {}
        self.tool_syntax = next((syntax for mark, syntax in _SYNTAXES.items() if mark in source), None)
        self.marker_ids = frozenset(id for _, _, id in tokenizer.specials(source))

    def with_variables(self, variables: Mapping[str, Any]) -> TemplateFormat:
        """Give the template variables of its own; see ChatFormat.with_variables()."""
        try:
            values = json.loads(json.dumps(dict(variables)))
            json.dumps(values, ensure_ascii=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidArgumentError(
                f"expected variables that JSON can express, found {shown(variables)} ({error})"
            ) from None
        for name in values:
            if name in _GIVEN:
                raise InvalidArgumentError(
                    f"expected variables of other names than {', '.join(_GIVEN)}, found '{name}'"
                )
        copy = copy_of(self)
        copy._variables = values
        return copy

    def _pieces(self, messages: list[Message], tools: list[Tool]) -> Iterator[Piece]:
        tokenizer = self.tokenizer
        continued = messages[-1].prefix
        given = [_openai(message, message.prefix) for message in messages]
        listed = json.loads(json.dumps([tool.given for tool in tools])) if tools else None  # plain types
        text = self._template.render(
            {
                **self._variables,
                "messages": given,
                "tools": listed,
                "documents": None,
                "add_generation_prompt": not continued,
                "bos_token": Text.of(tokenizer.special_name(tokenizer.bos_id)),
                "eos_token": Text.of(tokenizer.special_name(tokenizer.eos_id)),
            },
            n_characters=len(json.dumps([given, listed, self._variables], ensure_ascii=False)),
        )
        if continued:
            end = text.rfind(_END)
            if end < 0:
                raise UnsupportedError(
                    "expected a chat template that writes the last message as it is, to be continued, found that it "
                    "changes it: choose a built-in chat format"
                )
            text = cut(text, 0, end)
        pieces = list(self._marked(text))
        wanted = tokenizer.encode("")
        if pieces[:1] != wanted:
            yield from wanted
        yield from pieces

    def _marked(self, text: str) -> Iterator[Piece]:
        """The tokens that the template wrote, and the text between them."""
        at = 0
        plain = str(text)
        for begin, end in own_runs(text):
            for first, last, id in self.tokenizer.specials(plain[begin:end]):
                if at < begin + first:
                    yield plain[at : begin + first]
                yield id
                at = begin + last
        if at < len(plain):
            yield plain[at:]


def _openai(message: Message, continued: bool) -> dict[str, Any]:
    """A message as templates expect it: arguments of calls are values, not text."""
    content = message.text("\n") if message.parts else None
    written: dict[str, Any] = {"role": Text.of(message.role), "content": content}
    if continued:
        written["content"] = (content or "") + _END
    if message.tool_calls:
        written["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": parsed(call.arguments)},
            }
            for call in message.tool_calls
        ]
    for key, value in (("tool_call_id", message.tool_call_id), ("name", message.name)):
        if value is not None:
            written[key] = value
    return written
