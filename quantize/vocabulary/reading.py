"""Reads the vocabulary of a checkpoint's directory."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from gguf import TokenType
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2 as sentencepiece_model

from pymixtral.arguments import shown
from pymixtral.errors import CheckpointError, ModelConfigError, UnsupportedError
from pymixtral.files.places import reading
from pymixtral.files.strict_json import read_limited
from pymixtral.text.tokenizer import Tokenizer

from .byte_level import is_byte_level, read_byte_level
from .side_files import SideFiles
from .special_tokens import completed
from .tekken import read_tekken
from .tokenizer_json import read_tokenizer_json, space_notes
from .vocabulary import MAX_CHARACTERS, MAX_PIECES, Vocabulary

_MAX_MODEL_BYTES = 1 << 23
"""Of a SentencePiece model. That of 262144 pieces has 4 MB."""


_PIECE = 1 << 3 | 2
"""The tag of a piece in a SentencePiece model: field 1, of a length and bytes."""


def read_vocabulary(directory: Path) -> Vocabulary | None:
    """Reads the vocabulary of a checkpoint.

    Args:
        directory: where tokenizer.model is, or else tokenizer.json, or else tekken.json.

    Returns:
        The vocabulary, with added tokens, special tokens and the chat template of the files beside
        it; None where none of these files is there.

    Raises:
        CheckpointError: a file is broken.
        UnsupportedError: GGUF's lists cannot express the tokenizer.
    """
    with reading(directory):
        return _read_completed(SideFiles(directory))


def _read_completed(files: SideFiles) -> Vocabulary | None:
    vocabulary = _read(files)
    if vocabulary is None:
        return None
    vocabulary = completed(files, vocabulary)
    if vocabulary.add_space_prefix:
        notes = space_notes(files.path("tokenizer.json"), files.object("tokenizer.json"))
        vocabulary = replace(vocabulary, notes=(*vocabulary.notes, *notes))
    if (total := sum(map(len, vocabulary.tokens))) > MAX_CHARACTERS:
        raise CheckpointError(
            f"{files.directory}: expected at most {MAX_CHARACTERS} characters in all tokens, found {total}"
        )
    try:
        Tokenizer.from_metadata(vocabulary.to_gguf(), "its keys in GGUF")  # type: ignore[arg-type]  # lists, not arrays
    except ModelConfigError as error:
        raise CheckpointError(
            f"{files.directory}: expected a tokenizer that runs, found one that does not: {error}"
        ) from None
    return vocabulary


def _read(files: SideFiles) -> Vocabulary | None:
    """The tokenizer's own vocabulary."""
    directory = files.directory
    if (path := directory / "tokenizer.model").exists():
        return _read_sentencepiece(path)
    # Mistral's own names for the versions of its tokenizer.
    if len(paths := sorted(directory.glob("tokenizer.model.v[0-9]"))) == 1:
        return _read_sentencepiece(paths[0])
    if (path := directory / "tokenizer.json").exists():
        values = files.object(path.name)
        return read_byte_level(path, values) if is_byte_level(values) else read_tokenizer_json(path, values)
    if (path := directory / "tekken.json").exists():
        return read_tekken(path, files.object(path.name))
    return None


def _read_sentencepiece(path: Path) -> Vocabulary:
    data = read_limited(path, _MAX_MODEL_BYTES)
    if (n_pieces := _count_pieces(data)) > MAX_PIECES:
        raise CheckpointError(f"{path}: expected at most {MAX_PIECES} pieces, found {n_pieces}")
    model = sentencepiece_model.ModelProto()  # type: ignore[attr-defined]  # protobuf makes it at import
    try:
        model.ParseFromString(data)
    except DecodeError:
        raise CheckpointError(f"{path}: expected a SentencePiece model, found no protocol buffer that is one") from None
    if not model.pieces:
        raise CheckpointError(f"{path}: expected pieces, found none: is it a SentencePiece model?")
    _refuse_inexpressible(path, model)
    unknown = [token for token, piece in enumerate(model.pieces) if piece.type == TokenType.UNKNOWN]
    if len(unknown) != 1:
        raise CheckpointError(f"{path}: expected one unknown piece, found {len(unknown)}")
    if bad := [token for token, piece in enumerate(model.pieces) if not math.isfinite(piece.score)]:
        raise CheckpointError(
            f"{path}: score of piece {bad[0]}: expected a finite number, found {model.pieces[bad[0]].score}"
        )
    tokens = []
    for i, piece in enumerate(model.pieces):
        try:
            text = piece.piece  # where it is no UTF-8, protobuf gives bytes or raises, by its version
        except UnicodeDecodeError as error:
            text = error.object
        if not isinstance(text, str):
            raise CheckpointError(f"{path}: piece {i}: expected UTF-8, found {shown(text[:20])}")
        tokens.append(text)
    return Vocabulary(
        tokens=tokens,
        scores=[piece.score for piece in model.pieces],
        types=[piece.type for piece in model.pieces],
        bos_id=_control_id(model, model.trainer_spec.bos_piece),
        eos_id=_control_id(model, model.trainer_spec.eos_piece),
        unknown_id=unknown[0],
        add_space_prefix=model.normalizer_spec.add_dummy_prefix,
        chat_template=None,
    )


def _count_pieces(data: bytes) -> int:
    """Counts the pieces of a model before it is parsed: one of two bytes takes 50 of memory.

    A piece is field 1 of the model, with a length in front of its bytes. The count ends where the
    data is no protocol buffer, which parsing will say.
    """
    n_pieces = pos = 0
    try:
        while pos < len(data):
            tag, pos = _varint(data, pos)
            n_pieces += tag == _PIECE
            kind = tag & 7
            if kind == 0:
                _, pos = _varint(data, pos)
            elif kind == 2:
                n_bytes, pos = _varint(data, pos)
                pos += n_bytes
            elif kind in (1, 5):
                pos += 8 if kind == 1 else 4
            elif kind not in (3, 4):  # the ends of a group have no bytes of their own
                break
    except IndexError:
        pass
    return n_pieces


def _varint(data: bytes, pos: int) -> tuple[int, int]:
    """A number of protocol buffers, seven bits a byte, lowest first; and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[pos]
        pos += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, pos
    raise IndexError


def _refuse_inexpressible(path: Path, model: Any) -> None:
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    for name, value, expected in (
        ("model_type", trainer.model_type, trainer.BPE),
        ("treat_whitespace_as_suffix", trainer.treat_whitespace_as_suffix, False),
        ("precompiled_charsmap", normalizer.precompiled_charsmap, b""),
        ("remove_extra_whitespaces", normalizer.remove_extra_whitespaces, False),
        ("escape_whitespaces", normalizer.escape_whitespaces, True),
    ):
        if value != expected:
            raise UnsupportedError(
                f"{path}: {name}: expected {shown(expected)}, which a GGUF vocabulary of kind 'llama' "
                f"means, found {shown(value)}"
            )


def _control_id(model: Any, piece: str) -> int | None:
    """SentencePiece's own rule for bos and eos: the control piece of that text."""
    found = (i for i, entry in enumerate(model.pieces) if entry.piece == piece and entry.type == TokenType.CONTROL)
    return next(found, None)
