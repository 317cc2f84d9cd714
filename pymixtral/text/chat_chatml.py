"""ChatML: `<|im_start|>role`, a line each, and `<|im_end|>`. Its tools are those of Hermes.

Source: OpenAI's chatml.md; NousResearch's Hermes-Function-Calling for tools.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby

from pymixtral.text.chat_format import ChatFormat, Piece
from pymixtral.text.messages import ASSISTANT, SYSTEM, TOOL, Message, Tool, parsed
from pymixtral.text.tokenizer import Tokenizer
from pymixtral.text.tool_calls import HERMES

START, END = "<|im_start|>", "<|im_end|>"

_TOOLS = """\
You may call functions to help with the request. Their signatures are within <tools></tools>:
<tools>
{tools}
</tools>
For each call, write a JSON object with the function's name and arguments within <tool_call></tool_call>:
<tool_call>
{{"name": <function-name>, "arguments": <arguments-object>}}
</tool_call>"""


class ChatML(ChatFormat):
    """Every message is a turn of its own, whatever its role; none are merged.

    Args:
        tokenizer: the model's. Where it has no tokens <|im_start|> and <|im_end|>, they are
            ordinary text, and <|im_end|> is a stop string.
        default_system: the system text of a conversation that does not begin with one; "": none.
    """

    name = "chatml"
    tool_syntax = HERMES

    def __init__(self, tokenizer: Tokenizer, default_system: str = "") -> None:
        super().__init__(tokenizer)
        self._default_system = default_system
        start, end = tokenizer.special_id(START), tokenizer.special_id(END)
        self._start: Piece = START if start is None else start
        self._end: Piece = END if end is None else end
        self.marker_ids = frozenset(id for id in (start, end) if id is not None)
        if end is None:
            self.stops = (END,)
        else:
            self.stop_ids |= {end}

    def _pieces(self, messages: list[Message], tools: list[Tool]) -> Iterator[Piece]:
        yield from self.tokenizer.encode("")  # begin of text, if the model wants one
        text = ""  # pieces of text that follow each other are one
        for piece in self._marked(messages, tools):
            if isinstance(piece, str):
                text += piece
                continue
            if text:
                yield text
            yield piece
            text = ""
        if text:
            yield text

    def _marked(self, messages: list[Message], tools: list[Tool]) -> list[Piece]:
        if messages[0].role != SYSTEM and (self._default_system or tools):
            messages = [Message(SYSTEM, (self._default_system,)), *messages]
        if tools:
            listed = _TOOLS.format(tools="\n".join(_json(tool.to_openai()) for tool in tools))
            system = "\n\n".join(filter(None, [messages[0].text("\n"), listed]))
            messages = [Message(SYSTEM, (system,)), *messages[1:]]
        marked: list[Piece] = []
        for role, group in groupby(messages, key=lambda message: message.role):
            # The results of one message's calls are one turn.
            for text in ["\n".join(map(_result, group))] if role == TOOL else map(_said, group):
                marked += [self._start, f"{role}\n{text}", self._end, "\n"]
        return marked[:-2] if messages[-1].prefix else [*marked, self._start, f"{ASSISTANT}\n"]


def _said(message: Message) -> str:
    calls = [f"<tool_call>\n{_call(call.name, call.arguments)}\n</tool_call>" for call in message.tool_calls]
    return "\n".join(filter(None, [message.text("\n"), *calls]))


def _call(name: str, arguments: str) -> str:
    return _json({"name": name, "arguments": parsed(arguments)})


def _result(message: Message) -> str:
    text = message.text("\n")
    return f"<tool_response>\n{text}\n</tool_response>"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
