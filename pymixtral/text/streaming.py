"""The decoding of token ids one by one."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence


def _replace_one_byte(error: UnicodeError) -> tuple[str, int]:
    """U+FFFD for each invalid byte, as sentencepiece has it.

    Python's "replace" makes one of all bytes of a truncated character.
    """
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\ufffd", error.start + 1


codecs.register_error("pymixtral.byte", _replace_one_byte)
_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class StreamDecoder:
    """A decoder that takes one id at a time; made by Tokenizer.stream().

    push() never returns a part of a character: it holds the bytes until the character is complete,
    or until they cannot become one, and each of them is U+FFFD. The texts of all pushes and of the
    flush together are decode() of all ids.

    Args:
        token_bytes: gives the bytes of an id; a control token has none.
        has_prefix: whether the bytes of each id begin with the space that may be dropped.
        drop_space: whether the first id with text loses that space.
    """

    def __init__(self, token_bytes: Callable[[int], bytes], has_prefix: Sequence[bool], drop_space: bool) -> None:
        self._token_bytes = token_bytes
        self._has_prefix = has_prefix
        self._drop_space = drop_space
        self._utf8 = _Utf8Decoder("pymixtral.byte")

    def push(self, id: int) -> str:
        """Take the next id.

        Args:
            id: a token id.

        Returns:
            The text that is now complete, often "".

        Raises:
            InvalidArgumentError: for an id outside the vocabulary.
        """
        data = self._token_bytes(id)
        if not data:  # a control token, which ends an incomplete character
            return self.flush()
        if self._drop_space:
            self._drop_space = False
            if self._has_prefix[id]:
                data = data[1:]
        return self._utf8.decode(data)

    def flush(self) -> str:
        """End the text.

        Returns:
            U+FFFD for each byte of an incomplete character, if one was held.
        """
        return self._utf8.decode(b"", final=True)
