"""What the kinds of tokenizers have in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol


class Model(Protocol):
    """What encodes text that has no names of tokens in it.

    Attributes:
        bytes: the bytes that each id stands for in a text; none for a control token.
        has_prefix: whether the bytes of each id begin with a space that a text may have got before
            it.
        added: names of user-defined tokens, and their ids.
    """

    bytes: list[bytes]
    has_prefix: list[bool]
    added: dict[str, int]

    def encode(self, text: str, offset: int = 0, continued: bool = False) -> Iterator[list[int]]:
        """Encode a text part by part, in memory that does not grow with the text.

        Args:
            text: what to encode.
            offset: where it begins in the caller's text, for messages.
            continued: whether it follows other text, so that no space is put before it.

        Yields:
            The ids of one part.

        Raises:
            InvalidArgumentError: for a str that is not Unicode text (lone surrogates).
        """
        ...

    def fewest_tokens(self, text: str) -> int:
        """Bound the number of ids of a text from below, without encoding it.

        Args:
            text: the text.

        Returns:
            The number of ids if every token were as long as the longest; 0 if a token can have any
            length.
        """
        ...

    def piece(self, id: int) -> str:
        """Show a token.

        Args:
            id: a token id of the vocabulary.

        Returns:
            Its name if it has no text; else its text, with U+2581 for a space.
        """
        ...
