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
from pymixtral.text.tokenizer import Tokenizer

from ..sources.places import reading
from ..sources.strict_json import read_limited
from .side_files import SideFiles
from .special_tokens import completed
from .tokenizer_json import read_tokenizer_json, space_notes
from .vocabulary import MAX_CHARACTERS, MAX_PIECES, Vocabulary

_MAX_MODEL_BYTES = 1 << 23
"""Of a SentencePiece model. That of 262144 pieces has 4 MB."""


def read_vocabulary(directory: Path) -> Vocabulary | None:
    """Reads the vocabulary of a checkpoint.

    Args:
        directory: where tokenizer.model is, or else tokenizer.json.

    Returns:
        The vocabulary, with added tokens, special tokens and the chat template of the files beside
        it; None where neither file is there.

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
        raise CheckpointError(f"{files.directory}: expected at most {MAX_CHARACTERS} characters in all tokens, found {total}")
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
        return read_tokenizer_json(path, files.object(path.name))
    if (path := directory / "tekken.json").exists():
        raise UnsupportedError(
            f"{path}: expected tokenizer.model, found a tokenizer of kind tekken, which is not supported: write a file "
            "that takes token ids only, with no_tokenizer=True"
        )
    return None


def _read_sentencepiece(path: Path) -> Vocabulary:
    model = sentencepiece_model.ModelProto()  # type: ignore[attr-defined]  # protobuf makes it at import
    try:
        model.ParseFromString(read_limited(path, _MAX_MODEL_BYTES))
    except DecodeError:
        raise CheckpointError(f"{path}: expected a SentencePiece model, found no protocol buffer that is one") from None
    if not model.pieces:
        raise CheckpointError(f"{path}: expected pieces, found none: is it a SentencePiece model?")
    if len(model.pieces) > MAX_PIECES:
        raise CheckpointError(f"{path}: expected at most {MAX_PIECES} pieces, found {len(model.pieces)}")
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
