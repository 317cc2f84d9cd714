"""Tokens that were added to a tokenizer's own.

Three files name them. Whether one is special, tokenizer_config.json says before tokenizer.json, as
transformers reads them; added_tokens.json, the oldest form, does not say it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gguf import TokenType

from pymixtral.arguments import shown
from pymixtral.errors import CheckpointError

from .side_files import SideFiles, content, is_text
from .vocabulary import Vocabulary

_MAX_HOLE = 1 << 16
"""Ids between the vocabulary and an added token, at most: they are filled with padding. Published
models have holes of some hundred."""


@dataclass(frozen=True)
class _Added:
    """What one file says of a token; special: None where it does not say."""

    path: Path
    id: Any
    text: Any
    special: bool | None


def with_added(files: SideFiles, vocabulary: Vocabulary) -> Vocabulary:
    """The vocabulary with added tokens.

    Special ones become control tokens, whose names in a text are text; the others are found by
    their names in every text.

    Args:
        files: those of the checkpoint.
        vocabulary: the tokenizer's own.

    Returns:
        The vocabulary. Ids that nothing names become padding.

    Raises:
        CheckpointError: a file is broken, or contradicts another.
    """
    n = len(vocabulary.tokens)
    texts: dict[int, str] = {}
    said: dict[int, bool] = {}
    for added in _added(files):
        token, text = added.id, added.text
        if type(token) is not int or not 0 <= token < n + _MAX_HOLE or not text or not is_text(text):
            raise CheckpointError(
                f"{added.path}: added tokens: expected texts and ids of the vocabulary, found "
                f"{shown(text)} with {shown(token)}"
            )
        if texts.setdefault(token, text) != text:
            raise CheckpointError(
                f"{added.path}: added token {token}: expected {shown(texts[token])}, as another file "
                f"says, found {shown(text)}"
            )
        if added.special is not None:
            said[token] = added.special
    named = _named_special(files)
    listed = files.object("added_tokens.json")
    end = max([n, *(token + 1 for token in texts)])
    tokens = [*vocabulary.tokens, *(f"[PAD{token}]" for token in range(n, end))]
    scores = [*vocabulary.scores, *[0.0] * (end - n)]
    types = [*vocabulary.types, *[int(TokenType.CONTROL)] * (end - n)]
    for token, text in texts.items():
        special = said.get(token, text in named or (text in listed and _looks_special(text)))
        tokens[token] = text if special or vocabulary.pre else text.replace(" ", "\u2581")
        if types[token] in (TokenType.NORMAL, TokenType.CONTROL):
            types[token] = int(TokenType.CONTROL if special else TokenType.USER_DEFINED)
    return replace(vocabulary, tokens=tokens, scores=scores, types=types, n_added=end - n)


def _added(files: SideFiles) -> Iterator[_Added]:
    """What the files say, in the order in which the later one counts."""
    path = files.path("tokenizer.json")
    entries = files.object("tokenizer.json").get("added_tokens") or []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise CheckpointError(f"{path}: added_tokens: expected a list of objects, found {shown(entries)}")
    for entry in entries:
        yield _Added(path, entry.get("id"), entry.get("content"), _special(path, entry))
    path = files.path("tokenizer_config.json")
    decoder = files.object("tokenizer_config.json").get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict) or not all(isinstance(entry, dict) for entry in decoder.values()):
        raise CheckpointError(f"{path}: added_tokens_decoder: expected an object of objects, found {shown(decoder)}")
    for token, entry in decoder.items():
        number = int(token) if token.isdecimal() and token.isascii() and len(token) < 10 else token
        yield _Added(path, number, entry.get("content"), _special(path, entry))
    path = files.path("added_tokens.json")
    for text, token in files.object("added_tokens.json").items():
        yield _Added(path, token, text, None)


def _special(path: Path, entry: dict[str, Any]) -> bool | None:
    special = entry.get("special")
    if special is not None and not isinstance(special, bool):
        raise CheckpointError(
            f"{path}: added token {shown(entry.get('content'))}: special: expected true or false, "
            f"found {shown(special)}"
        )
    return special


def _named_special(files: SideFiles) -> set[str]:
    """Texts of tokens that have a role, such as eos_token, or are listed as special."""
    named: set[str | None] = set()
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        for key, value in files.object(name).items():
            if key.endswith("_token"):
                named.add(content(value))
            elif key in ("additional_special_tokens", "extra_special_tokens"):
                some = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
                named.update(map(content, some))
    return {text for text in named if text}


def _looks_special(text: str) -> bool:
    """What is in brackets is not for people to read."""
    return text[:1] + text[-1:] in ("<>", "[]")
