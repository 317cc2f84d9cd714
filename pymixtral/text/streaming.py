"""Ids to text, one by one."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence


def _replace_one_byte(error: UnicodeError) -> tuple[str, int]:
    """U+FFFD for each invalid byte, as sentencepiece has it; Python's "replace" joins the bytes of a truncated character."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\ufffd", error.start + 1


codecs.register_error("pymixtral.byte", _replace_one_byte)
_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class StreamDecoder:
    """Decodes ids as they come; made by Tokenizer.stream().

    What push() returns never ends inside a UTF-8 sequence: the bytes of a character are held until it is
    complete, or until they are known not to become one (each is then U+FFFD). All pushes and the flush
    joined equal decode() of all ids.

    Args:
        token_bytes: the bytes of an id, none of a control token.
        has_prefix: by id, whether its bytes begin with the space that may be dropped.
        drop_space: whether the first id with text loses that space.
    """

    def __init__(self, token_bytes: Callable[[int], bytes], has_prefix: Sequence[bool], drop_space: bool) -> None:
        self._token_bytes = token_bytes
        self._has_prefix = has_prefix
        self._drop_space = drop_space
        self._utf8 = _Utf8Decoder("pymixtral.byte")

    def push(self, id: int) -> str:
        """The text that is complete after one more id, often "". Raises InvalidArgumentError for an id outside the vocabulary."""
        data = self._token_bytes(id)
        if not data:  # a control token: no character goes on beyond it
            return self.flush()
        if self._drop_space:
            self._drop_space = False
            if self._has_prefix[id]:
                data = data[1:]
        return self._utf8.decode(data)

    def flush(self) -> str:
        """The text of what is still held: U+FFFD for each byte of an incomplete character."""
        return self._utf8.decode(b"", final=True)
