"""SentencePiece BPE: the model that a GGUF file's token lists describe, run by the library itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property

from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

from pymixtral.errors import InvalidArgumentError
from pymixtral.text.metadata import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED

SPACE = "\u2581"
"""What a piece has in place of a space."""

PART = 1 << 16
"""Characters that are encoded at once. The library takes some 50 bytes of memory for each."""

_UNKNOWN_TEXT = " \u2047 "  # what sentencepiece writes for the unknown token


class SentencePiece:
    """Encodes text, and knows the bytes of each id.

    Args:
        pieces: by id.
        scores: by id.
        types: by id, as tokenizer.ggml.token_type has them.
        dummy_prefix: whether a space is put before a text.

    Raises:
        RuntimeError: the library's own, where it refuses the lists.
    """

    def __init__(self, pieces: list[str], scores: list[float], types: list[int], dummy_prefix: bool) -> None:
        self._lists = pieces, scores, types
        self._dummy_prefix = dummy_prefix
        self._processor = _processor(pieces, scores, types, dummy_prefix)
        self.bytes = [_piece_bytes(piece, kind) for piece, kind in zip(pieces, types, strict=True)]
        self.has_prefix = [piece.startswith(SPACE) and kind in _TEXT for piece, kind in zip(pieces, types, strict=True)]

    def encode(self, text: str, offset: int = 0) -> Iterator[list[int]]:
        """The ids of a text by itself, in parts, whose memory does not grow with the text.

        Args:
            text: what to encode.
            offset: where it stands in the caller's, for messages.

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
            yield (self._continued if begin and self._dummy_prefix else self._processor).encode(data)
            if end >= len(text):
                break
            begin = end

    def _cut(self, text: str, begin: int) -> int:
        """Where the part of a text that begins there ends: before a space that no piece reaches over, so that cutting changes nothing."""
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
        """Whether no piece has a space behind another character, and no run of unknown characters is one token."""
        pieces, _, types = self._lists
        return BYTE in types and not any(_BOUNDARY_PIECE.search(piece) for piece in pieces)

    @cached_property
    def _continued(self) -> SentencePieceProcessor:
        """For what does not begin a text: no space is put before it."""
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
        # sentencepiece refuses empty and repeated pieces, warns of a NUL that it does not use beside byte tokens, and a control piece
        # of one character would match text. Such an id stays, under a name of its own: as a control piece of several characters, no
        # text can lead to it.
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
