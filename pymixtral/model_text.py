"""A model's text: tokens and back, special tokens, metadata and chat format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pymixtral.arguments import text_of
from pymixtral.arrays import Ids
from pymixtral.core import Core
from pymixtral.files.header import Value
from pymixtral.text.chat_format import ChatFormat


class ModelText:
    """The part of Mixtral that needs the tokenizer alone.

    Attributes:
        metadata: the file's metadata, which cannot be changed.
    """

    metadata: Mapping[str, Value]
    core: Core

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
        return self.core.tokenizer().encode(text_of("text", text), add_bos, parse_special=parse_special)

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
        return self.core.tokenizer().encode_parts(text_of("text", text))

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
        return self.core.tokenizer().control_names(text_of("text", text))

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
        return self.core.tokenizer().token_bytes(id)

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
        return self.core.tokenizer().piece(id)

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
        return self.core.tokenizer().decode(ids)

    @property
    def bos_id(self) -> int | None:
        """The begin-of-text token; None if the file names none, or has no tokenizer."""
        return self.core.factory.tokenizer.bos_id if self.core.factory.tokenizer else None

    @property
    def eos_ids(self) -> frozenset[int]:
        """The tokens that end a text; empty if the file has no tokenizer."""
        return self.core.factory.tokenizer.eos_ids if self.core.factory.tokenizer else frozenset()

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
        return self.core.chat_format(name)
