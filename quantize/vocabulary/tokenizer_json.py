"""The vocabulary of a tokenizer.json (of the package tokenizers) as SentencePiece has it.

A BPE with byte fallback of the Llama family merges the pair of symbols whose rule stands first;
SentencePiece merges the pair whose union has the highest score. Both do the same if every pair of
pieces whose union is a piece has a rule, and the rules of a piece follow one another: then a
piece's score is minus the rank of its rules. What is not so is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from gguf import TokenType

from pymixtral.arguments import shown
from pymixtral.errors import CheckpointError, UnsupportedError

from .side_files import is_text
from .vocabulary import MAX_CHARACTERS, MAX_PIECES, Vocabulary

_SPACE = "\u2581"
_DOUBLED = {"type": "Replace", "pattern": {"Regex": rf"\A{_SPACE}"}, "content": 2 * _SPACE}
"""transformers 5 writes it beside a Metaspace, which puts no space before a text that begins with
one: together they put one before every text."""
_MAX_PIECE = 256
"""What merges could make of a piece is looked up for each of its characters."""

_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))


def read_tokenizer_json(path: Path, values: dict[str, Any]) -> Vocabulary:
    """The vocabulary of a tokenizer.json.

    Args:
        path: the file, for messages.
        values: the object in it.

    Returns:
        Its vocabulary, without what other files say.

    Raises:
        CheckpointError: it is broken.
        UnsupportedError: SentencePiece's lists cannot express the tokenizer.
    """
    model = values.get("model")
    if not isinstance(model, dict):
        raise CheckpointError(f"{path}: model: expected an object, found {shown(model)}")
    for key, expected in (
        ("type", ("BPE",)),
        ("byte_fallback", (True,)),
        ("dropout", (None, 0)),
        ("continuing_subword_prefix", (None, "")),
        ("end_of_word_suffix", (None, "")),
        ("ignore_merges", (None, False)),
    ):
        # Files from before the key "type" have none for BPE.
        if (value := model.get(key, "BPE" if key == "type" else None)) not in expected:
            raise UnsupportedError(
                f"{path}: model: {key}: expected {shown(expected[0])}, which a vocabulary of kind "
                f"'llama' means, found {shown(value)}"
            )
    pieces = pieces_of(path, model, _MAX_PIECE)
    # No text becomes this token, as bytes take its place, so some writers leave it out.
    unknown = model.get("unk_token") or "<unk>"
    if not isinstance(unknown, str) or unknown not in pieces:
        raise CheckpointError(f"{path}: model: unk_token: expected a piece of the vocabulary, found {shown(unknown)}")
    if missing := [piece for piece in _BYTES if piece not in pieces]:
        raise UnsupportedError(f"{path}: model: byte_fallback: expected all 256 byte pieces, found no {missing[0]}")
    special = _special(path, values) | {unknown}
    normal = pieces.keys() - special - set(_BYTES)
    ranks = _ranks(path, merges_of(path, model), normal)
    tokens = list(pieces)
    never_merged = len(ranks)
    scores = []
    for token in tokens:
        # Single characters are never the result of a merge: they come after all that are, in the
        # order of their ids.
        scores.append(-float(ranks[token]) if token in ranks else -float(never_merged) if token in normal else 0.0)
        never_merged += token in normal and token not in ranks
    kinds = (
        dict.fromkeys(special, TokenType.CONTROL) | dict.fromkeys(_BYTES, TokenType.BYTE) | {unknown: TokenType.UNKNOWN}
    )
    return Vocabulary(
        tokens=tokens,
        scores=scores,
        types=[int(kinds.get(token, TokenType.NORMAL)) for token in tokens],
        bos_id=None,
        eos_id=None,
        unknown_id=pieces[unknown],
        add_space_prefix=_space_prefix(path, values),
        chat_template=None,
    )


def pieces_of(path: Path, model: dict[str, Any], max_piece: int) -> dict[str, int]:
    """The pieces of a model.

    Args:
        path: the file, for messages.
        model: its object "model".
        max_piece: characters of a piece, at most.

    Returns:
        Pieces and ids, in the order of their ids, which are 0 to n - 1.

    Raises:
        CheckpointError: they are not that.
    """
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, dict) or not vocabulary:
        raise CheckpointError(f"{path}: model: vocab: expected an object of pieces and ids, found {shown(vocabulary)}")
    n = len(vocabulary)
    if n > MAX_PIECES:
        raise CheckpointError(f"{path}: model: vocab: expected at most {MAX_PIECES} pieces, found {n}")
    if (longest := max(map(len, vocabulary))) > max_piece:
        raise CheckpointError(
            f"{path}: model: vocab: expected pieces of at most {max_piece} characters, found one of {longest}"
        )
    if (total := sum(map(len, vocabulary))) > MAX_CHARACTERS:
        raise CheckpointError(
            f"{path}: model: vocab: expected at most {MAX_CHARACTERS} characters in all pieces, found {total}"
        )
    by_id: dict[int, str] = {}
    for piece, token in vocabulary.items():
        good = type(token) is int and 0 <= token < n and token not in by_id
        if not good or not piece or not is_text(piece):
            raise CheckpointError(
                f"{path}: model: vocab: expected texts with each of the ids 0 to {n - 1} once, found "
                f"{shown(piece)} with {shown(token)}"
            )
        by_id[token] = piece
    return {by_id[token]: token for token in range(n)}


def merges_of(path: Path, model: dict[str, Any]) -> list[tuple[str, str]]:
    """The merges of a model.

    Args:
        path: the file, for messages.
        model: its object "model".

    Returns:
        Pairs of pieces: the file has lists of two, or, if it is older, both joined by a space.

    Raises:
        CheckpointError: they are not that.
    """
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise CheckpointError(f"{path}: model: merges: expected a list of pairs, found {shown(merges)}")
    pairs = []
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) and part for part in pair):
            raise CheckpointError(f"{path}: model: merges: expected pairs of pieces, found {shown(merge)}")
        pairs.append((pair[0], pair[1]))
    return pairs


def _ranks(path: Path, merges: Sequence[tuple[str, str]], normal: set[str]) -> dict[str, int]:
    """The rank of each piece that merges lead to, from 0."""
    ranks: dict[str, int] = {}
    rules = set(merges)
    results = [left + right for left, right in merges]
    for (left, right), result in zip(merges, results, strict=True):
        if left in normal and right in normal and result not in normal:
            raise CheckpointError(
                f"{path}: model: merges: expected pairs that make pieces of the vocabulary, found "
                f"{shown(left)} and {shown(right)}"
            )
    for result in results:
        ranks.setdefault(result, len(ranks))
    for before, after in pairwise(results):
        if ranks[after] < ranks[before]:
            raise UnsupportedError(
                f"{path}: model: merges: expected those of a piece to follow one another, as SentencePiece's do, "
                f"found that those of {shown(after)} do not"
            )
    for piece in normal:
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in normal and right in normal and (left, right) not in rules:
                raise UnsupportedError(
                    f"{path}: model: merges: expected {shown(left)} and {shown(right)}, which SentencePiece would make "
                    f"{shown(piece)} of, found no such merge"
                )
    return {piece: rank for piece, rank in ranks.items() if piece in normal}


def _special(path: Path, values: dict[str, Any]) -> set[str]:
    entries = values.get("added_tokens") or []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise CheckpointError(f"{path}: added_tokens: expected a list of objects, found {shown(entries)}")
    special = (entry.get("content") for entry in entries if entry.get("special") is True)
    return {content for content in special if isinstance(content, str)}


def _space_prefix(path: Path, values: dict[str, Any]) -> bool:
    """Whether a text gets a space before it.

    Raises UnsupportedError unless spaces become U+2581 and nothing else is done to a text.
    """
    prefix = escaped = doubled = False
    for step in steps_of(path, values, "normalizer", "normalizers"):
        if step == {"type": "Prepend", "prepend": _SPACE}:
            prefix = True
        elif step == {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}:
            escaped = True
        elif step == _DOUBLED and escaped:
            doubled = True
        else:
            raise UnsupportedError(
                f"{path}: normalizer: expected one that SentencePiece's lists express, found {shown(step)}"
            )
    for step in steps_of(path, values, "pre_tokenizer", "pretokenizers"):
        if step.get("type") != "Metaspace" or step.get("replacement") != _SPACE or step.get("split", True) is not False:
            raise UnsupportedError(
                f"{path}: pre_tokenizer: expected one that SentencePiece's lists express, found {shown(step)}"
            )
        if (scheme := _scheme(step)) not in ("always", "first", "never"):
            raise UnsupportedError(
                f"{path}: pre_tokenizer: prepend_scheme: expected 'always', 'first' or 'never', found {shown(scheme)}"
            )
        prefix, escaped = prefix or scheme != "never", True
        doubled = doubled and scheme != "always"
    if doubled:
        raise UnsupportedError(
            f"{path}: normalizer: expected a Metaspace that always puts a space before a text "
            f"together with {shown(_DOUBLED)}, found none"
        )
    if not escaped:
        raise UnsupportedError(
            f"{path}: expected a normalizer or pre_tokenizer that writes spaces as U+2581, found none"
        )
    return prefix


def _scheme(step: dict[str, Any]) -> Any:
    return step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")


def space_notes(path: Path, values: dict[str, Any]) -> tuple[str, ...]:
    """In which texts the spaces of a tokenizer.json differ from those that GGUF can mean.

    GGUF's readers put a space before a text and before each part of it that follows a special
    token, or never.

    Args:
        path: the file, for messages.
        values: the object in it.

    Returns:
        Notes, a sentence each.
    """
    notes = []
    doubled = _DOUBLED in steps_of(path, values, "normalizer", "normalizers")
    for step in steps_of(path, values, "pre_tokenizer", "pretokenizers"):
        if step.get("type") == "Metaspace" and _scheme(step) == "first":
            notes.append(
                "tokenizer.json puts a space before the first part of a text alone (prepend_scheme 'first'): after "
                "special tokens inside a text the file has one too, as llama.cpp reads it"
            )
        if step.get("type") == "Metaspace" and _scheme(step) in ("always", "first") and not doubled:
            notes.append(
                "tokenizer.json puts no space before a text that begins with one: the file does, as SentencePiece does"
            )
    return tuple(notes)


def steps_of(path: Path, values: dict[str, Any], key: str, inner: str) -> list[dict[str, Any]]:
    """The steps of a part of a tokenizer.json, such as its normalizer.

    Args:
        path: the file, for messages.
        values: the object in it.
        key: the part.
        inner: its key of the steps, if it is a sequence of them.

    Returns:
        The steps; none if there is no such part.

    Raises:
        CheckpointError: they are no objects.
    """
    step = values.get(key)
    if step is None:
        return []
    steps = step.get(inner) if isinstance(step, dict) and step.get("type") == "Sequence" else [step]
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise CheckpointError(f"{path}: {key}: expected an object or a sequence of them, found {shown(step)}")
    return steps
