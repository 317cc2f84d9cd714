"""A SentencePiece vocabulary as GGUF's token lists (tokenizer.ggml.model = "llama")."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gguf import TokenType
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2 as sentencepiece_model

from pymixtral.errors import CheckpointError, UnsupportedError

from .strict_json import read_limited, read_object, shown


@dataclass(frozen=True)
class Vocabulary:
    """Pieces by token id. `tokens` are raw pieces, with U+2581 for a space; `types` are GGUF's, which equal SentencePiece's."""

    tokens: Sequence[str]
    scores: Sequence[float]
    types: Sequence[int]
    bos_id: int | None
    eos_id: int | None
    unknown_id: int
    add_space_prefix: bool
    chat_template: str | None
    n_padding: int = 0
    eot_id: int | None = None
    add_bos: bool = True

    def padded(self, n_vocab: int) -> Vocabulary:
        """With unused control pieces `[PADn]` up to n_vocab. Raises CheckpointError when there are more pieces already."""
        n_tokens = len(self.tokens)
        if n_tokens > n_vocab:
            raise CheckpointError(
                f"tokenizer.model has {n_tokens} pieces, config.json a vocab_size of {n_vocab}: they do not belong together"
            )
        n_padding = n_vocab - n_tokens
        return replace(
            self,
            tokens=[*self.tokens, *(f"[PAD{token}]" for token in range(n_tokens, n_vocab))],
            scores=[*self.scores, *[0.0] * n_padding],
            types=[*self.types, *[int(TokenType.CONTROL)] * n_padding],
            n_padding=n_padding,
        )


def read_vocabulary(directory: Path) -> Vocabulary | None:
    """tokenizer.model and the chat template of tokenizer_config.json; None without tokenizer.model.

    Raises CheckpointError for a broken file, UnsupportedError for a SentencePiece model that GGUF's lists cannot express.
    """
    path = directory / "tokenizer.model"
    if not path.exists():
        return None
    model = sentencepiece_model.ModelProto()  # type: ignore[attr-defined]  # protobuf makes it at import
    try:
        model.ParseFromString(read_limited(path))
    except DecodeError:
        raise CheckpointError(f"{path}: no SentencePiece model (its protocol buffer cannot be parsed)") from None
    if not model.pieces:
        raise CheckpointError(f"{path}: no pieces; is this a SentencePiece model?")
    _refuse_inexpressible(path, model)
    unknown = [token for token, piece in enumerate(model.pieces) if piece.type == TokenType.UNKNOWN]
    if len(unknown) != 1:
        raise CheckpointError(f"{path}: {len(unknown)} unknown pieces; expected one")
    if bad := [token for token, piece in enumerate(model.pieces) if not math.isfinite(piece.score)]:
        raise CheckpointError(f"{path}: piece {bad[0]} has the score {model.pieces[bad[0]].score}; expected a finite number")
    return Vocabulary(
        tokens=[piece.piece for piece in model.pieces],
        scores=[piece.score for piece in model.pieces],
        types=[piece.type for piece in model.pieces],
        bos_id=_control_id(model, model.trainer_spec.bos_piece),
        eos_id=_control_id(model, model.trainer_spec.eos_piece),
        unknown_id=unknown[0],
        add_space_prefix=model.normalizer_spec.add_dummy_prefix,
        chat_template=_read_chat_template(directory / "tokenizer_config.json"),
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
            raise UnsupportedError(f"{path}: {name} is {shown(value)}; a GGUF vocabulary of kind 'llama' means {shown(expected)}")


def _control_id(model: Any, piece: str) -> int | None:
    """SentencePiece's own rule for bos and eos: the control piece of that text."""
    return next((i for i, entry in enumerate(model.pieces) if entry.piece == piece and entry.type == TokenType.CONTROL), None)


def _read_chat_template(path: Path) -> str | None:
    """A string, or the one named "default" of a list of {name, template}."""
    if not path.exists():
        return None
    template = read_object(path).get("chat_template")
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[0].get("template") if named else None
    if template is None:
        return None
    if not isinstance(template, str) or "\0" in template or any("\ud800" <= character <= "\udfff" for character in template):
        raise CheckpointError(f"{path}: chat_template is {shown(template)}; expected text")
    return template
