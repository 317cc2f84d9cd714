"""What a chat format is: conversations to token ids."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pymixtral.arguments import shown
from pymixtral.errors import UnsupportedError
from pymixtral.text.messages import Message, Tool, checked_messages, checked_tools
from pymixtral.text.tokenizer import Tokenizer
from pymixtral.text.tool_calls import Syntax, ToolCallParser

Piece = int | str
"""A part of a prompt: the id of a token, or text that is encoded by itself, in which no control
token is found."""


@dataclass(frozen=True)
class Prompt:
    """What a model reads of a conversation.

    Attributes:
        ids: the token ids.
        begins_text: whether the answer begins a text, so that the space that a tokenizer may put
            before a text is none of the answer's: what Tokenizer.stream() wants to know.
        continued: the text that the answer continues, if it continues the last message.
    """

    ids: list[int]
    begins_text: bool
    continued: str = ""


class ChatFormat(ABC):
    """A format of chats, for one tokenizer. It is immutable and may be used from many threads.

    Args:
        tokenizer: the model's.

    Attributes:
        name: the format's name, one of pymixtral.text.chat.NAMES.
        tokenizer: the model's.
        stop_ids: the tokens that end an answer.
        stops: strings that end an answer, for markers that are no tokens of the model.
        marker_ids: the tokens that the format puts between texts. No text of a message becomes one
            or ends an answer, also where the file has them as user-defined tokens, which other
            texts may spell out.
        answers_apart: whether an answer is a text of its own also where no token stands before it.
        between: what stands between the parts of one text.
        tool_syntax: how the model writes calls of tools; None: it does not.
    """

    name: str
    answers_apart = False
    between = "\n"
    tool_syntax: Syntax | None = None
    stops: tuple[str, ...] = ()

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.stop_ids = tokenizer.eos_ids
        self.marker_ids: frozenset[int] = frozenset()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} '{self.name}'>"

    def ids(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_final: bool = False,
    ) -> list[int]:
        """Turn a conversation into the ids of the prompt of its next message: prompt() without more.

        Args:
            messages: as for prompt().
            tools: as for prompt().
            continue_final: as for prompt().

        Returns:
            The ids.

        Raises:
            InvalidArgumentError: as prompt() does.
            UnsupportedError: as prompt() does.
        """
        return self.prompt(messages, tools, continue_final).ids

    def prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_final: bool = False,
    ) -> Prompt:
        """Turn a conversation into the prompt of its next message.

        Args:
            messages: the conversation, as pymixtral.text.messages.checked_messages() takes it.
            tools: the functions that the model may call, as checked_tools() takes them; None or
                empty: none.
            continue_final: the last message is an assistant's, and the model continues it.

        Returns:
            The prompt, whose ids have the begin-of-text token if the model wants one, and never
            two.

        Raises:
            InvalidArgumentError: for messages and tools that make no sense.
            UnsupportedError: for tools, if the format has none.
        """
        ids: list[int] = []
        bos_id = self.tokenizer.bos_id
        without = self.marker_ids | self.stop_ids | (frozenset() if bos_id is None else {bos_id})
        piece: Piece = ""
        checked = checked_messages(messages, continue_final)
        for piece in self._pieces(checked, checked_tools(tools)):
            if isinstance(piece, int):
                ids.append(piece)
            else:
                ids += self.tokenizer.encode(piece, add_bos=False, without=without)
        last = checked[-1]
        begins_text = not last.prefix and (self.answers_apart or isinstance(piece, int))
        return Prompt(ids, begins_text, last.text(self.between) if last.prefix else "")

    def with_variables(self, variables: Mapping[str, Any]) -> ChatFormat:
        """Give a template variables of its own, such as {"enable_thinking": False}.

        Args:
            variables: names and values that JSON can express.

        Returns:
            The format with them; this one stays as it is.

        Raises:
            UnsupportedError: for a built-in format, which has none.
            InvalidArgumentError: for values that JSON cannot express, and for names that every
                template has, such as "messages".
        """
        if not variables:
            return self
        raise UnsupportedError(
            f"expected no variables, because the chat format '{self.name}' has none, found "
            f"{shown(next(iter(variables)))}: choose the file's own template"
        )

    def tool_parser(self) -> ToolCallParser:
        """Make what finds the calls of tools in one answer.

        Returns:
            The parser. An answer to a prompt without tools needs none: all of it is text.
        """
        return ToolCallParser(self.tool_syntax, self.tokenizer)

    @abstractmethod
    def _pieces(self, messages: list[Message], tools: list[Tool]) -> Iterable[Piece]:
        """The prompt of a checked conversation, from the begin-of-text token on."""


def marks(tokenizer: Tokenizer, format: str, names: Iterable[str]) -> dict[str, int]:
    """Look up the tokens that a format puts between texts.

    Args:
        tokenizer: the model's.
        format: the format's name.
        names: the tokens' names.

    Returns:
        Their ids.

    Raises:
        UnsupportedError: if one is missing.
    """
    found = {}
    for name in names:
        id = tokenizer.special_id(name)
        if id is None:
            raise UnsupportedError(
                f"expected the token '{name}' of the chat format '{format}' in the vocabulary, found none: "
                "choose another format"
            )
        found[name] = id
    return found


def begin_of_text(tokenizer: Tokenizer, format: str) -> int:
    """Look up the begin-of-text token, which a format needs.

    Args:
        tokenizer: the model's.
        format: the format's name.

    Returns:
        Its id.

    Raises:
        UnsupportedError: if the model has none.
    """
    if tokenizer.bos_id is None:
        raise UnsupportedError(
            f"expected a begin-of-text token for the chat format '{format}', found none in the file: "
            "choose another format"
        )
    return tokenizer.bos_id
