"""Calls of tools in what a model writes: found while it is written, and never lost.

What looks like a call and is none, because its JSON breaks off or has no name, is text.
"""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass

from pymixtral.text.json_scan import JsonScanner
from pymixtral.text.messages import ToolCall, parsed
from pymixtral.text.tokenizer import Tokenizer

_NAME = re.compile("[a-zA-Z0-9_.-]{1,64}")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


@dataclass(frozen=True)
class Syntax:
    """How a format writes calls.

    Attributes:
        begin: what stands before them; "": calls begin the answer.
        end: what stands behind each; "": nothing.
        token: whether `begin` counts only as the token of this name, and never as text.
        listed: whether the calls are an array.
        separators: characters, beside spaces, between calls.
        id_length: letters and digits of a new id.
        id_prefix: what an id begins with.
    """

    begin: str
    end: str = ""
    token: bool = False
    listed: bool = False
    separators: str = ""
    id_length: int = 24
    id_prefix: str = "call_"

    def new_id(self) -> str:
        """Make an id for a call."""
        return self.id_prefix + "".join(secrets.choice(_LETTERS) for _ in range(self.id_length))


MISTRAL = Syntax("[TOOL_CALLS]", token=True, listed=True, id_length=9, id_prefix="")
"""`[TOOL_CALLS] [{"name": ..., "arguments": {...}}, ...]`"""

HERMES = Syntax("<tool_call>", "</tool_call>")
"""`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, any number of them."""

LLAMA3 = Syntax("", separators=";")
"""`{"name": ..., "parameters": {...}}` instead of an answer."""


@dataclass(frozen=True)
class TextPiece:
    """A piece of the answer's text, none of them empty.

    Attributes:
        text: the piece.
    """

    text: str


@dataclass(frozen=True)
class CallBegins:
    """A call whose name is known; its arguments follow.

    Attributes:
        index: the number of the call, from 0.
        id: its id.
        name: the function's name.
    """

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class ArgumentsPiece:
    """A piece of a call's arguments. All of them together are the arguments.

    Attributes:
        index: the number of the call.
        text: a piece of JSON.
    """

    index: int
    text: str


@dataclass(frozen=True)
class CallEnds:
    """A call that is complete.

    Attributes:
        index: the number of the call.
        call: the call, whose arguments are a JSON object.
    """

    index: int
    call: ToolCall


@dataclass(frozen=True)
class CallFails:
    """A call that began and turned out to be none. All that was written of it follows as text.

    Attributes:
        index: the number of the call.
    """

    index: int


Event = TextPiece | CallBegins | ArgumentsPiece | CallEnds | CallFails


class ToolCallParser:
    """Finds the calls in an answer.

    The events do not depend on how the answer is cut into pieces, but for the cuts of texts and of
    arguments. Space beside calls is left out.

    Args:
        syntax: how the format writes calls; None: there are none, and everything is text.
        tokenizer: the model's, for the names of tokens that have no text.

    Attributes:
        text: the text so far.
        calls: the complete calls so far.
    """

    def __init__(self, syntax: Syntax | None, tokenizer: Tokenizer | None = None) -> None:
        self._syntax = syntax
        self._tokens: dict[int, str] = {}
        if syntax and tokenizer:
            ids = {name: tokenizer.special_id(name) for name in (syntax.begin, syntax.end) if name}
            self._tokens = {id: name for name, id in ids.items() if id is not None}
        self._mark = syntax.begin if syntax and not syntax.token else ""  # that text may spell out
        self._take_one = self._between if syntax and not syntax.begin else self._in_text
        self._part = ""  # text that may begin the mark
        self._space: list[str] = []  # what stands before that and may stand before a call
        self._raw = ""  # what was written since the mark, or since the last call
        self._behind = ""  # what was written since the object of a call, from the first that is no space on
        self._call: _Call | None = None
        self._n_begun = 0
        self._after_call = False
        self._events: list[Event] = []
        self.text = ""
        self.calls: list[ToolCall] = []

    def push(self, id: int, text: str) -> list[Event]:
        """Take the next token.

        Args:
            id: the token.
            text: what the decoder makes of it, often "".

        Returns:
            What is certain with it.
        """
        name = self._tokens.get(id)
        if name is None:
            self._take(text)
        else:
            self._take(text.removesuffix(name))  # of an incomplete character before it; control tokens have no text
            if self._syntax and self._syntax.token:
                self._begin()
            else:
                self._take(name)
        return self._flushed()

    def push_text(self, text: str) -> list[Event]:
        """Take text of which the tokens are not known.

        Args:
            text: the next piece.

        Returns:
            What is certain with it.
        """
        self._take(text)
        return self._flushed()

    def finish(self) -> list[Event]:
        """End the answer.

        Returns:
            What was held back: a call that lacks only its mark at the end is complete, any other is
            text.
        """
        call = self._call
        if call and call.ended():
            self._complete()
        elif self._take_one != self._in_text:
            self._fail()
        self._write(self._held())
        return self._flushed()

    def _take(self, text: str) -> None:
        for character in text:
            self._take_one(character)

    # --- Text -------------------------------------------------------------------------------------

    def _in_text(self, character: str) -> None:
        self._part += character
        if self._mark and self._part == self._mark:
            self._part = ""
            self._begin()
            return
        longest = min(len(self._part), max(len(self._mark) - 1, 0))
        kept = next((n for n in range(longest, 0, -1) if self._mark.startswith(self._part[-n:])), 0)
        at = len(self._part) - kept
        certain, self._part = self._part[:at], self._part[at:]
        text = certain.rstrip() if self._syntax and self._syntax.begin else certain  # a call may follow space
        if text:
            self._write("".join(self._space) + text)
            self._space = []
        if len(text) < len(certain):
            self._space.append(certain[len(text) :])

    def _held(self) -> str:
        """Takes what is held back."""
        text = "".join(self._space) + self._part
        self._space, self._part = [], ""
        return text

    def _begin(self) -> None:
        """The mark of calls was found."""
        assert self._syntax
        if self._take_one != self._in_text:  # a second one
            self._fail()
        self._raw = self._held() + self._syntax.begin
        self._take_one = self._between

    # --- Calls ------------------------------------------------------------------------------------

    def _between(self, character: str) -> None:
        """Before the first call, and between calls."""
        assert self._syntax
        self._raw += character
        if character == "{":
            self._call, self._behind, self._take_one = _Call(self._syntax, self._n_begun), "", self._in_call
            self._call.feed(character)
        elif self._syntax.listed and character == "]" and self.calls:
            self._raw, self._take_one = "", self._in_text
        elif not (
            character.isspace()
            or (self._syntax.listed and character in ("," if self.calls else "["))
            or (character in self._syntax.separators and self.calls)
        ):
            self._fail(character)

    def _in_call(self, character: str) -> None:
        call = self._call
        assert call
        self._raw += character
        if call.ended():
            if self._behind or not character.isspace():
                self._behind += character
            if self._behind == call.syntax.end:
                self._complete()
            elif not call.syntax.end.startswith(self._behind):
                self._fail(character)
            return
        events = call.feed(character)
        if events is None:
            self._fail(character)
            return
        self._events += events
        if call.begun:
            self._n_begun = call.index + 1
        if call.ended() and not call.syntax.end:
            self._complete()

    def _complete(self) -> None:
        assert self._call
        call = self._call.call()
        self._events.append(CallEnds(self._call.index, call))
        self.calls.append(call)
        self._after_call = True
        self._take_one = self._in_text if self._call.syntax.end else self._between
        self._call, self._raw = None, ""

    def _fail(self, character: str = "") -> None:
        """What was written is no call but text. Its last character may begin the next mark."""
        if self._call and self._call.begun:
            self._events.append(CallFails(self._call.index))
        raw, self._raw, self._call, self._take_one = self._raw, "", None, self._in_text
        if character or not self.calls or raw.strip(" \t\r\n,;]"):  # not only what stands behind the last call
            self._write(raw[: len(raw) - len(character)])
            self._take(character)

    # --- Events -----------------------------------------------------------------------------------

    def _write(self, text: str) -> None:
        if self._after_call:
            text = text.lstrip()
        if text:
            self._after_call = False
            self._events.append(TextPiece(text))
            self.text += text

    def _flushed(self) -> list[Event]:
        """The events since the last, neighbours of one kind as one."""
        events: list[Event] = []
        for event in self._events:
            last = events[-1] if events else None
            if isinstance(event, TextPiece) and isinstance(last, TextPiece):
                events[-1] = TextPiece(last.text + event.text)
            elif isinstance(event, ArgumentsPiece) and isinstance(last, ArgumentsPiece):
                events[-1] = ArgumentsPiece(event.index, last.text + event.text)
            else:
                events.append(event)
        self._events = []
        return events


class _Call:
    """The object of one call, read character by character."""

    def __init__(self, syntax: Syntax, index: int) -> None:
        self.syntax = syntax
        self.index = index
        self.begun = False
        self._id = syntax.new_id()
        self._name = ""
        self._sent: list[str] = []  # of the arguments
        self._unsent = ""
        self._scanner = JsonScanner()
        self._key = ""  # of the value that is read; while the key itself is read, as it is written
        self._value: str | None = None  # of the object, as it is written so far; "" for arguments
        self._in_object = False  # whether the arguments are an object, as they should be

    def ended(self) -> bool:
        """Whether the object has ended."""
        return self._scanner.done

    def feed(self, character: str) -> list[Event] | None:
        """Take the next character.

        Args:
            character: the character.

        Returns:
            What is certain with it; None: this is no call.
        """
        scanner = self._scanner
        in_key, in_word = scanner.at_key, scanner.in_word and scanner.depth == 1
        begins = scanner.depth == 1 and scanner.wants_value and not character.isspace()
        if not scanner.feed(character):
            return None
        if scanner.depth == 1 and scanner.at_key:
            self._key = self._key + character if in_key else ""
        if begins:
            self._key, self._value = json.loads(f'"{self._key}"'), ""
        ends_word = in_word and not scanner.in_word  # the character is behind a number
        written = "" if self._value is None or ends_word else character
        is_arguments = self._value is not None and self._key in ("arguments", "parameters")
        if begins and is_arguments:
            if self._sent or self._unsent or character not in '{"':
                return None
            self._in_object = character == "{"
        if is_arguments and self._in_object:
            self._unsent += written
        elif self._value is not None:
            self._value += written
        if self._value is not None and scanner.depth <= 1 and not scanner.in_string and not scanner.in_word:
            value, self._value = self._value, None
            if self._key == "name" and not self._named(value):
                return None
            if is_arguments and not self._in_object and not self._unpacked(value):
                return None
        return self._certain()

    def _named(self, value: str) -> bool:
        """Takes the function's name, and says whether it is one."""
        name = json.loads(value) if value[:1] == '"' else ""
        is_name = not self._name and bool(_NAME.fullmatch(name))
        self._name = name
        return is_name

    def _unpacked(self, value: str) -> bool:
        """Takes arguments that are JSON inside a string, and says whether they are an object."""
        self._unsent = json.loads(value)
        return isinstance(parsed(self._unsent), dict)

    def _certain(self) -> list[Event] | None:
        events: list[Event] = []
        if self.ended():
            if not self._name:
                return None
            if not self._sent and not self._unsent:
                self._unsent = "{}"
        if self._name and not self.begun:
            self.begun = True
            events.append(CallBegins(self.index, self._id, self._name))
        if self._name and self._unsent:
            events.append(ArgumentsPiece(self.index, self._unsent))
            self._sent.append(self._unsent)
            self._unsent = ""
        return events

    def call(self) -> ToolCall:
        """The complete call."""
        return ToolCall(self._name, "".join(self._sent), self._id)
