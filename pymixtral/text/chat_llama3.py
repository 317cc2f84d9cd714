"""The format of Llama 3: a header with the role, a text without space around it, `<|eot_id|>`.

Source: the templates of Llama 3 and 3.1 Instruct. Tools are those of 3.1, as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from pymixtral.text.chat_format import ChatFormat, Piece, begin_of_text, marks
from pymixtral.text.messages import ASSISTANT, SYSTEM, TOOL, USER, Message, Tool, parsed
from pymixtral.text.tokenizer import Tokenizer
from pymixtral.text.tool_calls import LLAMA3

BEGIN, END, TURN = "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"

_DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
"""What 3.1 puts before each system text. The day is the template's own, so that ids never change."""

_TOOLS = """\
Given the following functions, please respond with a JSON for a function call with its proper arguments \
that best answers the given prompt.

Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.\
Do not use variables.

"""


class Llama3(ChatFormat):
    """Every message is a turn of its own, whatever its role; none are merged.

    Args:
        tokenizer: the model's.
        dated: Llama 3.1, whose system text begins with dates, also where a conversation has none.

    Raises:
        UnsupportedError: if the tokenizer lacks one of the control tokens.
    """

    tool_syntax = LLAMA3

    def __init__(self, tokenizer: Tokenizer, dated: bool = False) -> None:
        super().__init__(tokenizer)
        self.name = "llama3.1" if dated else "llama3"
        self._dated = dated
        self._marks = marks(tokenizer, self.name, (BEGIN, END, TURN))
        self.marker_ids = frozenset(self._marks.values())
        self.stop_ids |= {self._marks[TURN]}

    def _pieces(self, messages: list[Message], tools: list[Tool]) -> Iterator[Piece]:
        yield begin_of_text(self.tokenizer, self.name)
        if self._dated:
            system = messages[0].text("\n").strip() if messages[0].role == SYSTEM else ""
            messages = messages[messages[0].role == SYSTEM :]
            yield from self._turn(SYSTEM, ("Environment: ipython\n" if tools else "") + _DATES + system)
        listed = _TOOLS + "".join(_json(tool.given, indent=4) + "\n\n" for tool in tools) if tools else ""
        for message in messages:
            text = message.text("\n").strip()
            if message.role == USER and listed:
                text, listed = listed + text, ""
            if message.role == TOOL:
                yield from self._turn("ipython", _json(message.text("\n")))
                continue
            if message.tool_calls:
                calls = [_call(call.name, call.arguments) for call in message.tool_calls]
                text = "\n".join(filter(None, [text, "; ".join(calls)]))
            turn = self._turn(message.role, text)
            yield from turn[:-1] if message.prefix else turn
        if not (messages and messages[-1].prefix):
            yield from self._turn(ASSISTANT, "")[:-1]

    def _turn(self, role: str, text: str) -> list[Piece]:
        return [self._marks[BEGIN], role, self._marks[END], f"\n\n{text}", self._marks[TURN]]


def _call(name: str, arguments: str) -> str:
    return f'{{"name": "{name}", "parameters": {_json(parsed(arguments))}}}'


def _json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
