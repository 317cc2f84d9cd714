"""A model's text: tokens and back, special tokens, metadata and chat format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from pymixtral.arguments import refuse_unknown, text_of
from pymixtral.arrays import I32, Ids
from pymixtral.chatting import Conversation, Messages
from pymixtral.engine.engine import Engine
from pymixtral.files.header import Value
from pymixtral.options import CHAT_OPTIONS, ChatOptions, Options
from pymixtral.request_factory import RequestFactory
from pymixtral.text.chat import choose
from pymixtral.text.chat_format import ChatFormat
from pymixtral.text.tokenizer import Tokenizer

_ADVICE = "put instructions in a system message; pymixtral.Options lists the options"


class ModelText:
    """The part of Mixtral that needs the tokenizer alone.

    Attributes:
        metadata: the file's metadata, which cannot be changed.
    """

    metadata: Mapping[str, Value]
    _engine: Engine
    _factory: RequestFactory

    def tokenize(self, text: str, add_bos: bool = True, *, parse_special: bool = False) -> list[int]:
        """Turn text into token ids.

        Args:
            text: what to encode.
            add_bos: begin with the begin-of-text id, if the model wants one.
            parse_special: names of control tokens, such as "</s>", become those tokens. This is for
                text from a trusted template; by default they are ordinary text.

        Returns:
            The ids; an empty list for an empty text without a begin-of-text id.

        Raises:
            UnsupportedError: if the file has no tokenizer.
            InvalidArgumentError: for anything but a str, and for a str with lone surrogates.
            ClosedError: after close().
        """
        return self._text_tokenizer().encode(text_of("text", text), add_bos, parse_special=parse_special)

    def tokenize_parts(self, text: str) -> Iterator[list[int]]:
        """Turn a long text into token ids part by part, in little memory.

        Args:
            text: what to encode, of many megabytes perhaps.

        Returns:
            An iterator of lists, which together are the ids of tokenize(text).

        Raises:
            UnsupportedError: if the file has no tokenizer.
            InvalidArgumentError: for anything but a str, and for a str with lone surrogates.
            ClosedError: after close().
        """
        return self._text_tokenizer().encode_parts(text_of("text", text))

    def control_names(self, text: str) -> list[str]:
        """Find the names of control tokens, such as "</s>", that a text spells out.

        Without parse_special they are ordinary text.

        Args:
            text: what to search.

        Returns:
            The names, each once, in the order of the text.

        Raises:
            UnsupportedError: if the file has no tokenizer.
            InvalidArgumentError: for anything but a str.
            ClosedError: after close().
        """
        return self._text_tokenizer().control_names(text_of("text", text))

    def token_bytes(self, id: int) -> bytes:
        """Look up the bytes of one token, such as a grammar needs; for text see detokenize().

        Args:
            id: a token id, 0 to n_vocab - 1.

        Returns:
            The bytes, with the space that some tokens begin with. They need not be valid UTF-8 by
            themselves. A control token has none.

        Raises:
            UnsupportedError: if the file has no tokenizer.
            InvalidArgumentError: for an id outside the vocabulary.
            ClosedError: after close().
        """
        return self._text_tokenizer().token_bytes(id)

    def token_piece(self, id: int) -> str:
        """Show one token to a person.

        Args:
            id: a token id, 0 to n_vocab - 1.

        Returns:
            Its name, such as "</s>", if it has no text. Else its text, in which U+2581 stands for a
            space, and \\xNN or, in a SentencePiece model, <0xNN> for a byte.

        Raises:
            UnsupportedError: if the file has no tokenizer.
            InvalidArgumentError: for an id outside the vocabulary.
            ClosedError: after close().
        """
        return self._text_tokenizer().piece(id)

    def detokenize(self, ids: Ids) -> str:
        """Turn token ids into text.

        Args:
            ids: what to decode; may be empty.

        Returns:
            The text, without the space that tokenize() puts before a text. Control tokens have no
            text.

        Raises:
            UnsupportedError: if the file has no tokenizer.
            InvalidArgumentError: for an id outside the vocabulary.
            ClosedError: after close().
        """
        return self._text_tokenizer().decode(ids)

    @property
    def bos_id(self) -> int | None:
        """The begin-of-text token; None if the file names none, or has no tokenizer."""
        return self._factory.tokenizer.bos_id if self._factory.tokenizer else None

    @property
    def eos_ids(self) -> frozenset[int]:
        """The tokens that end a text; empty if the file has no tokenizer."""
        return self._factory.tokenizer.eos_ids if self._factory.tokenizer else frozenset()

    @property
    def chat_template(self) -> str | None:
        """The chat template of the file, for Jinja; None if it has none."""
        template = self.metadata.get("tokenizer.chat_template")
        return template if isinstance(template, str) else None

    def chat_format(self, name: str | None = None) -> ChatFormat:
        """Choose the format of the model's conversations.

        Args:
            name: one of pymixtral.text.chat.NAMES; None: the one that fits.

        Returns:
            The format; its prompt() makes token ids of messages.

        Raises:
            InvalidArgumentError: for another name.
            UnsupportedError: if no format fits, or the named one does not, or there is no tokenizer.
            ModelConfigError: if the file's template cannot be read.
            ClosedError: after close().
        """
        if name is not None:
            text_of("chat_format", name)
        if name not in self._formats:
            self._formats[name] = choose(self._text_tokenizer(), self.chat_template, name)
        return self._formats[name]

    _formats: dict[str | None, ChatFormat]

    def _ids_of(self, text: str | Ids | Messages) -> str | Ids:
        """A text or ids as they are; the ids of a conversation's messages."""
        if isinstance(text, (list, tuple)) and text and isinstance(text[0], Mapping):
            return self._conversation(text, {}, "routing()").prompt.ids
        return cast("str | Ids", text)

    def _conversation(self, messages: Messages, options: ChatOptions, call: str) -> Conversation:
        """The conversation of a call, whose unknown arguments are refused in its name."""
        refuse_unknown(options, CHAT_OPTIONS, call, _ADVICE)
        given: dict[str, Any] = dict(options)
        variables = given.pop("template_variables", None) or {}
        format = self.chat_format(given.pop("chat_format", None)).with_variables(variables)
        tools, continue_final = given.pop("tools", None) or None, given.pop("continue_final", False)
        return Conversation(self._factory, format, messages, tools, continue_final, cast("Options", given))

    def _text_tokenizer(self) -> Tokenizer:
        self._engine.check_open()
        return self._factory.text_tokenizer()

    def _checked_ids(self, name: str, tokens: Ids) -> I32:
        self._engine.check_open()
        return self._factory.checked_ids(name, tokens)
