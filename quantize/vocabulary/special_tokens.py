"""What the files beside a tokenizer say.

They have added tokens, tokens that begin and end a text, and the chat template.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from gguf import TokenType

from pymixtral.arguments import shown
from pymixtral.errors import CheckpointError

from ..sources.strict_json import read_limited, read_object
from .vocabulary import Vocabulary

_MAX_HOLE = 1 << 16
"""Ids between the vocabulary and an added token, at most: they are filled with padding. Published
models have holes of some hundred."""


def completed(directory: Path, vocabulary: Vocabulary) -> Vocabulary:
    """Completes a vocabulary.

    Args:
        directory: where added_tokens.json, tokenizer.json, tokenizer_config.json,
            generation_config.json, config.json and chat_template.jinja may be.
        vocabulary: the tokenizer's own.

    Returns:
        The vocabulary with what these files say.

    Raises:
        CheckpointError: a file says what makes no sense.
    """
    vocabulary = _with_added(directory, vocabulary)
    settings = _object(directory / "tokenizer_config.json")
    ids = {token: i for i, token in reversed(list(enumerate(vocabulary.tokens)))}
    bos = _named(settings, "bos_token", ids, vocabulary.bos_id)
    own_eos = _named(settings, "eos_token", ids, vocabulary.eos_id)
    ends = _ends(directory, len(ids)) or ([own_eos] if own_eos is not None else [])
    if own_eos is not None and own_eos not in ends:
        # A chat model ends its turns with another token; after the end of a text nothing follows.
        ends.append(own_eos)
    add_bos = settings.get("add_bos_token")
    return replace(
        vocabulary,
        bos_id=bos,
        eos_id=ends[0] if ends else None,
        eot_id=ends[1] if len(ends) > 1 else None,
        add_bos=add_bos if isinstance(add_bos, bool) else True,
        chat_template=_chat_template(directory, settings),
    )


def _object(path: Path) -> dict[str, Any]:
    return read_object(path) if path.exists() else {}


def _with_added(directory: Path, vocabulary: Vocabulary) -> Vocabulary:
    added: dict[int, tuple[str, bool]] = {}
    for path, token, content, special in _added(directory):
        if type(token) is not int or not 0 <= token < len(vocabulary.tokens) + _MAX_HOLE or not _is_text(content):
            raise CheckpointError(
                f"{path}: added tokens: expected texts and ids of the vocabulary, found {shown(content)} with "
                f"{shown(token)}"
            )
        if token in added and added[token][0] != content:
            raise CheckpointError(
                f"{path}: added token {token}: expected {shown(added[token][0])}, as another file says, "
                f"found {shown(content)}"
            )
        added[token] = content, special or added.get(token, ("", False))[1]
    n = len(vocabulary.tokens)
    end = max([n, *(token + 1 for token in added)])
    tokens = [*vocabulary.tokens, *(f"[PAD{token}]" for token in range(n, end))]
    scores = [*vocabulary.scores, *[0.0] * (end - n)]
    types = [*vocabulary.types, *[int(TokenType.CONTROL)] * (end - n)]
    for token, (content, special) in added.items():
        tokens[token] = content if special else content.replace(" ", "\u2581")
        if types[token] in (TokenType.NORMAL, TokenType.CONTROL):
            types[token] = int(TokenType.CONTROL if special else TokenType.USER_DEFINED)
    return replace(vocabulary, tokens=tokens, scores=scores, types=types, n_added=end - n)


def _added(directory: Path) -> Iterator[tuple[Path, Any, Any, bool]]:
    """File, id, content, and whether the token is special."""
    path = directory / "tokenizer.json"
    entries = _object(path).get("added_tokens") or []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise CheckpointError(f"{path}: added_tokens: expected a list of objects, found {shown(entries)}")
    for entry in entries:
        yield path, entry.get("id"), entry.get("content"), entry.get("special") is True
    path = directory / "tokenizer_config.json"
    decoder = _object(path).get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict) or not all(isinstance(entry, dict) for entry in decoder.values()):
        raise CheckpointError(f"{path}: added_tokens_decoder: expected an object of objects, found {shown(decoder)}")
    for token, entry in decoder.items():
        number = int(token) if token.isdecimal() and token.isascii() and len(token) < 10 else token
        yield path, number, entry.get("content"), entry.get("special") is True
    path = directory / "added_tokens.json"
    for content, token in _object(path).items():
        yield path, token, content, _looks_special(content)


def _looks_special(content: str) -> bool:
    """Whether a token of added_tokens.json is special: this oldest form does not say it.

    What is in brackets is not for people to read.
    """
    return content[:1] + content[-1:] in ("<>", "[]")


def _is_text(content: object) -> bool:
    return isinstance(content, str) and bool(content) and not _has_surrogates(content)


def _has_surrogates(text: str) -> bool:
    """Whether UTF-8 cannot express it; JSON can escape halves of surrogate pairs."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def _named(settings: dict[str, Any], key: str, ids: dict[str, int], default: int | None) -> int | None:
    """The id of a token that tokenizer_config.json names, by text or by an object with content."""
    token = settings.get(key)
    content = token.get("content") if isinstance(token, dict) else token
    return ids.get(content, default) if isinstance(content, str) else default


def _ends(directory: Path, n: int) -> list[int]:
    """The ids that end a text: of generation_config.json, else of config.json."""
    for name in ("generation_config.json", "config.json"):
        found = _object(directory / name).get("eos_token_id")
        if found is None:
            continue
        ends = found if isinstance(found, list) else [found]
        for token in ends:
            if type(token) is not int or not 0 <= token < 1 << 31:
                raise CheckpointError(
                    f"{directory / name}: eos_token_id: expected a token id or a list of them, found {shown(found)}"
                )
        return [token for token in ends if token < n]
    return []


def _chat_template(directory: Path, settings: dict[str, Any]) -> str | None:
    """chat_template.jinja, else what tokenizer_config.json has.

    That is a string, or the one named "default" of a list of {name, template}.
    """
    path = directory / "chat_template.jinja"
    if path.exists():
        template: Any = read_limited(path).decode("utf-8", "surrogateescape")
    else:
        path, template = directory / "tokenizer_config.json", settings.get("chat_template")
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[0].get("template") if named else None
    if template is None:
        return None
    if not isinstance(template, str) or "\0" in template or _has_surrogates(template):
        raise CheckpointError(f"{path}: chat_template: expected text, found {shown(template)}")
    return template
