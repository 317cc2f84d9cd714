"""The vocabulary of tekken.json, Mistral's own form of a byte-level tokenizer, as GGUF's "gpt2".

The file has the bytes of each token in the order in which they merge: a pair of tokens merges if
its bytes are a token's, the lowest rank first. GGUF has a list of pairs: all pairs that make a
token, in the order of the tokens.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from pathlib import Path
from typing import Any

from gguf import TokenType

from pymixtral.arguments import shown
from pymixtral.errors import CheckpointError, UnsupportedError
from pymixtral.text.bpe import ALPHABET
from pymixtral.text.pretokenizers import TEKKEN

from .side_files import is_text
from .vocabulary import MAX_PIECES, Vocabulary

_MAX_TOKEN_BYTES = 256
"""All cuts of a token are tried. The longest of Mistral's files have 76 bytes."""

_NAMES = (
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"),
    *("[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]"),
    *("[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
)
"""Control tokens of the first versions, whose files do not name them."""

_NAMELESS_VERSIONS = ("v3", "v7")


def read_tekken(path: Path, values: dict[str, Any]) -> Vocabulary:
    """The vocabulary of a tekken.json.

    Args:
        path: the file, for messages.
        values: the object in it.

    Returns:
        Its vocabulary. The control tokens come first, then the tokens of text.

    Raises:
        CheckpointError: it is broken.
        UnsupportedError: it cuts a text in another way than GGUF's "tekken".
    """
    config = values.get("config")
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: config: expected an object, found {shown(config)}")
    if config.get("pattern") != TEKKEN:
        raise UnsupportedError(
            f"{path}: config: pattern: expected that of GGUF's 'tekken', found {shown(config.get('pattern'))}: write a "
            "file that takes token ids only, with no_tokenizer=True"
        )
    n_vocab, n_control = _count(path, config, "default_vocab_size"), _count(path, config, "default_num_special_tokens")
    names = _control_names(path, values, config, n_control)
    tokens = _tokens(path, values, n_vocab - n_control)
    ids = {name: i for i, name in enumerate(names)}
    return Vocabulary(
        tokens=[*names, *("".join(ALPHABET[byte] for byte in token) for token in tokens)],
        scores=[0.0] * n_vocab,
        types=[int(TokenType.CONTROL)] * n_control + [int(TokenType.NORMAL)] * len(tokens),
        bos_id=ids.get("<s>"),
        eos_id=ids.get("</s>"),
        unknown_id=ids.get("<unk>"),
        add_space_prefix=False,
        chat_template=None,
        pre="tekken",
        merges=_merges(tokens),
    )


def _count(path: Path, config: dict[str, Any], key: str) -> int:
    value = config.get(key)
    if type(value) is not int or not 0 <= value <= MAX_PIECES:
        raise CheckpointError(f"{path}: config: {key}: expected a number from 0 to {MAX_PIECES}, found {shown(value)}")
    return value


def _control_names(path: Path, values: dict[str, Any], config: dict[str, Any], n: int) -> list[str]:
    """Names by id; those that the file does not have are <SPECIAL_id>."""
    listed = values.get("special_tokens")
    if listed is None and config.get("version") in _NAMELESS_VERSIONS:
        listed = [{"rank": rank, "token_str": name} for rank, name in enumerate(_NAMES)]
    if not isinstance(listed, list) or not all(isinstance(token, dict) for token in listed):
        raise CheckpointError(f"{path}: special_tokens: expected a list of objects, found {shown(listed)}")
    names = [f"<SPECIAL_{i}>" for i in range(n)]
    found = set()
    for token in listed:
        rank, name = token.get("rank"), token.get("token_str")
        if type(rank) is not int or not 0 <= rank < n or rank in found or not name or not is_text(name):
            raise CheckpointError(
                f"{path}: special_tokens: expected names with ranks from 0 to {n - 1}, each once, found {shown(name)} "
                f"with {shown(rank)}"
            )
        names[rank] = name
        found.add(rank)
    return names


def _tokens(path: Path, values: dict[str, Any], n: int) -> list[bytes]:
    """The bytes of the first n tokens; the file has more than the model."""
    listed = values.get("vocab")
    if not isinstance(listed, list) or not 256 <= n <= len(listed):
        found = f"{len(listed)} for {n}" if isinstance(listed, list) else shown(listed)
        raise CheckpointError(f"{path}: vocab: expected a list of 256 tokens or more, one for each id, found {found}")
    tokens = []
    for rank, token in enumerate(listed[:n]):
        text = token.get("token_bytes") if isinstance(token, dict) else None
        try:
            data = b64decode(text, validate=True) if isinstance(text, str) else b""
        except (binascii.Error, ValueError):
            data = b""
        if not data or token.get("rank") != rank or len(data) > _MAX_TOKEN_BYTES:
            raise CheckpointError(
                f"{path}: vocab: expected tokens of 1 to {_MAX_TOKEN_BYTES} bytes in the order of their ranks, found "
                f"{shown(token)} at {rank}"
            )
        tokens.append(data)
    if sorted(tokens[:256]) != [bytes([byte]) for byte in range(256)]:
        raise CheckpointError(f"{path}: vocab: expected the 256 bytes first, each once, found others")
    return tokens


def _merges(tokens: list[bytes]) -> list[str]:
    """All pairs of tokens that make a token, in the order of what they make, then of their ranks."""
    ranks = {token: rank for rank, token in enumerate(tokens)}
    texts = ["".join(ALPHABET[byte] for byte in token) for token in tokens]
    merges = []
    for token in tokens:
        cuts = [(ranks.get(token[:cut]), ranks.get(token[cut:])) for cut in range(1, len(token))]
        merges += [
            f"{texts[a]} {texts[b]}" for a, b in sorted((a, b) for a, b in cuts if a is not None and b is not None)
        ]
    return merges
