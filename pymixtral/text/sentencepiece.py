"""SentencePiece BPE: the model in a GGUF file's token lists, run by the sentencepiece library.

Source: Kudo and Richardson 2018, arXiv:1808.06226.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property

from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

from pymixtral.errors import InvalidArgumentError
from pymixtral.text.metadata import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED

SPACE = "\u2581"
"""The character that stands for a space in pieces."""

PART = 1 << 16
"""Characters that are encoded at once. The library takes some 50 bytes of memory for each, which
makes 3 MB."""

_UNKNOWN_TEXT = " \u2047 "  # what sentencepiece writes for the unknown token


class SentencePiece:
    """A SentencePiece BPE model: it encodes text and has the bytes of each id.

    Args:
        pieces: texts of the tokens, by id.
        scores: scores of the tokens, by id.
        types: kinds of the tokens, by id, as in tokenizer.ggml.token_type.
        dummy_prefix: whether a space is put before a text.

    Attributes:
        bytes: the bytes that each id stands for in a text.
        has_prefix: whether each id is text that begins with a space.
        added: names of user-defined tokens, and their ids.

    Raises:
        RuntimeError: if the library refuses the lists.
    """

    def __init__(self, pieces: list[str], scores: list[float], types: list[int], dummy_prefix: bool) -> None:
        self._lists = pieces, scores, types
        self._dummy_prefix = dummy_prefix
        self._processor = _processor(pieces, scores, types, dummy_prefix)
        self.bytes = [_piece_bytes(piece, kind) for piece, kind in zip(pieces, types, strict=True)]
        self.has_prefix = [piece.startswith(SPACE) and kind in _TEXT for piece, kind in zip(pieces, types, strict=True)]
        # A NUL is left to the library, which makes it the byte token if there are byte tokens.
        self.added = {
            piece.replace(SPACE, " "): i
            for i, piece in reversed([*enumerate(pieces)])
            if piece.strip("\0") and types[i] == USER_DEFINED
        }
        # Without byte tokens, unknown characters in a row are one token of any length.
        self._longest = max(map(len, pieces)) if BYTE in types else 0

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
        begin = 0
        while begin < len(text) or begin == 0:
            end = self._cut(text, begin)
            try:
                data = text[begin:end].encode("utf-8")
            except UnicodeEncodeError as error:
                raise InvalidArgumentError(
                    f"expected Unicode text, found bytes that are not UTF-8 at character {offset + begin + error.start}"
                ) from None
            yield (self._continued if (begin or continued) and self._dummy_prefix else self._processor).encode(data)
            if end >= len(text):
                break
            begin = end

    def fewest_tokens(self, text: str) -> int:
        """Bound the number of ids of a text from below, without encoding it.

        Args:
            text: the text.

        Returns:
            The number of ids if every token were as long as the longest piece; 0 if a token can
            have any length.
        """
        return -(-len(text) // self._longest) if self._longest else 0

    def piece(self, id: int) -> str:
        """Show a token: its piece, as the file has it.

        Args:
            id: a token id of the vocabulary.

        Returns:
            The piece.
        """
        return self._lists[0][id]

    def _cut(self, text: str, begin: int) -> int:
        """The end of the part that begins there.

        It is before a space that no piece reaches over, so that the cut does not change the ids.
        """
        end = begin + PART
        if end >= len(text) or not self._splits_at_spaces:
            return len(text)
        at = end
        while (at := text.rfind(" ", begin + 1, at)) > 0:
            if text[at - 1] not in (" ", SPACE):
                return at
        match = _BOUNDARY.search(text, end)
        return match.start() + 1 if match else len(text)

    @cached_property
    def _splits_at_spaces(self) -> bool:
        """Whether a cut before a space never changes the ids.

        No piece may have a space behind another character, and no run of unknown characters may be
        one token.
        """
        pieces, _, types = self._lists
        return BYTE in types and not any(_BOUNDARY_PIECE.search(piece) for piece in pieces)

    @cached_property
    def _continued(self) -> SentencePieceProcessor:
        """The model for parts that do not begin a text: it puts no space before them."""
        return _processor(*self._lists, False)


_TEXT = (NORMAL, USER_DEFINED, UNUSED)
_BOUNDARY = re.compile(f"[^ {SPACE}] ")
_BOUNDARY_PIECE = re.compile(f"[^{SPACE}]{SPACE}")


def _piece_bytes(piece: str, kind: int) -> bytes:
    """The bytes that a token stands for in a text."""
    if kind == CONTROL:
        return b""
    if kind == BYTE:
        return bytes([int(piece[3:5], 16)])
    return (_UNKNOWN_TEXT if kind == UNKNOWN else piece.replace(SPACE, " ")).encode("utf-8")


def _processor(pieces: list[str], scores: list[float], types: list[int], dummy_prefix: bool) -> SentencePieceProcessor:
    """The SentencePiece model whose ids are the positions in `pieces`."""
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    model.trainer_spec.model_type = model.trainer_spec.BPE
    model.trainer_spec.byte_fallback = BYTE in types
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = dummy_prefix
    model.normalizer_spec.remove_extra_whitespaces = False
    taken = set(pieces)
    used: set[str] = set()
    for i, (piece, score, kind) in enumerate(zip(pieces, scores, types, strict=True)):
        # sentencepiece refuses empty and repeated pieces, warns of a NUL that it does not use
        # beside byte tokens, and would find a control piece of one character in text. Such an id
        # gets a name of its own. As a control piece of several characters, no text can lead to it.
        if not piece or piece in used or kind == CONTROL or (piece == "\0" and BYTE in types):
            piece = f"<id {i}>"
            while piece in taken:
                piece += ">"
            kind = kind if kind == UNKNOWN else CONTROL
        used.add(piece)
        model.pieces.add(piece=piece, score=score, type=kind)
    processor = SentencePieceProcessor()
    processor.LoadFromSerializedProto(model.SerializeToString())
    return processor
