"""Reads the vocabulary of a checkpoint's directory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from gguf import TokenType
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2 as sentencepiece_model

from pymixtral.arguments import shown
from pymixtral.errors import CheckpointError, UnsupportedError

from ..sources.strict_json import read_limited
from .special_tokens import completed
from .tokenizer_json import read_tokenizer_json
from .vocabulary import Vocabulary


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
    if (path := directory / "tokenizer.model").exists():
        return completed(directory, _read_sentencepiece(path))
    # Mistral's own names for the versions of its tokenizer.
    if len(paths := sorted(directory.glob("tokenizer.model.v[0-9]"))) == 1:
        return completed(directory, _read_sentencepiece(paths[0]))
    if (path := directory / "tokenizer.json").exists():
        return completed(directory, read_tokenizer_json(path))
    if (path := directory / "tekken.json").exists():
        raise UnsupportedError(
            f"{path}: expected tokenizer.model, found a tokenizer of kind tekken, which is not supported"
        )
    return None


def _read_sentencepiece(path: Path) -> Vocabulary:
    model = sentencepiece_model.ModelProto()  # type: ignore[attr-defined]  # protobuf makes it at import
    try:
        model.ParseFromString(read_limited(path))
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
    return Vocabulary(
        tokens=[piece.piece for piece in model.pieces],
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
                f"{path}: {name}: expected {shown(expected)}, which a GGUF vocabulary of kind 'llama' means, "
                f"found {shown(value)}"
            )


def _control_id(model: Any, piece: str) -> int | None:
    """SentencePiece's own rule for bos and eos: the control piece of that text."""
    found = (i for i, entry in enumerate(model.pieces) if entry.piece == piece and entry.type == TokenType.CONTROL)
    return next(found, None)
