"""The keys `tokenizer.ggml.*` of a GGUF file, checked before use.

Format: the GGUF specification in ggml, docs/gguf.md.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from pymixtral.arrays import I32
from pymixtral.errors import ModelConfigError, UnsupportedError
from pymixtral.files.header import Value, quoted
from pymixtral.text.pretokenizers import PRE_TOKENIZERS, PreTokenizer

# The kinds of tokenizer.ggml.token_type. SentencePiece's own format has the same numbers.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

_BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")


class Keys:
    """Checked access to `tokenizer.ggml.*`. Keys are named without this prefix.

    Args:
        metadata: the file's metadata.
        source: the file's name in messages.

    Attributes:
        metadata: the file's metadata.
        source: the file's name in messages.
    """

    def __init__(self, metadata: Mapping[str, Value], source: str) -> None:
        self.metadata = metadata
        self.source = source

    def fail(self, key: str, expected: str, found: object) -> NoReturn:
        """Raise the error of a key.

        Args:
            key: the key.
            expected: what it should hold.
            found: its value.

        Raises:
            ModelConfigError: always.
        """
        raise ModelConfigError(
            f"{self.source}: metadata key 'tokenizer.ggml.{key}': expected {expected}, found {quoted(found)}"
        )

    def get(self, key: str) -> Value | None:
        """Look up a key.

        Args:
            key: the key.

        Returns:
            Its value; None if it is missing.
        """
        return self.metadata.get(f"tokenizer.ggml.{key}")

    def pieces(self) -> list[str]:
        """Read the texts of the tokens.

        Returns:
            At least one, by id.

        Raises:
            ModelConfigError: for anything but a list of strings.
        """
        pieces = self.get("tokens")
        if not isinstance(pieces, list) or not pieces or not all(isinstance(piece, str) for piece in pieces):
            self.fail("tokens", "a list of strings", "nothing" if pieces is None else pieces)
        return pieces

    def numbers(self, key: str, n: int, kinds: str) -> NDArray[Any]:
        """Read a list that has a number for each token.

        Args:
            key: the key.
            n: the number of tokens.
            kinds: the NumPy kinds allowed: "f" for floating-point numbers, "iu" for integers.

        Returns:
            The numbers [n].

        Raises:
            ModelConfigError: for anything else.
        """
        values = self.get(key)
        expected = f"{n} {'floating-point numbers' if kinds == 'f' else 'integers'}, one for each token"
        if not isinstance(values, (list, np.ndarray)):
            self.fail(key, expected, "nothing" if values is None else values)
        array = np.asarray(values)
        if array.dtype.kind not in kinds:
            self.fail(key, expected, f"a list of {array.dtype}")
        if array.shape != (n,):
            self.fail(key, expected, len(array))
        return array

    def types(self, n: int) -> list[int]:
        """Read the kind of each token.

        Args:
            n: the number of tokens.

        Returns:
            The kinds, by id, NORMAL to BYTE.

        Raises:
            ModelConfigError: for missing or wrong kinds.
        """
        types: list[int] = self.numbers("token_type", n, "iu").tolist()
        for kind in set(types):
            if not NORMAL <= kind <= BYTE:
                self.fail("token_type", f"numbers from {NORMAL} to {BYTE}", kind)
        return types

    def sentencepiece_types(self, pieces: list[str]) -> list[int]:
        """Read the kind of each token of a SentencePiece model.

        Args:
            pieces: the texts of the tokens, by id.

        Returns:
            The kinds, by id, NORMAL to BYTE. Exactly one token is UNKNOWN.

        Raises:
            ModelConfigError: for missing or wrong kinds, and for a set of byte tokens that is not
                complete.
        """
        types = self.types(len(pieces))
        self.check_bytes(pieces, types)
        unknown = [i for i, kind in enumerate(types) if kind == UNKNOWN]
        if len(unknown) > 1:
            self.fail("token_type", f"at most one unknown token (type {UNKNOWN})", unknown)
        if not unknown:
            types[self.id("unknown_token_id", len(pieces), 0)] = UNKNOWN
        return types

    def pre_tokenizer(self) -> PreTokenizer:
        """Read how a byte-level tokenizer cuts a text into pieces.

        Returns:
            What the name under "pre" means; "default" if the key is missing.

        Raises:
            UnsupportedError: for a name that is not known.
            ModelConfigError: for anything but a string.
        """
        name = self.get("pre")
        name = "default" if name is None else name
        if not isinstance(name, str):
            self.fail("pre", "the name of a pre-tokenizer", name)
        if name not in PRE_TOKENIZERS:
            raise UnsupportedError(
                f"{self.source}: metadata key 'tokenizer.ggml.pre': expected one of {', '.join(PRE_TOKENIZERS)}, found "
                f"{quoted(name)}, by which the text would be cut in another way: use another model"
            )
        return PRE_TOKENIZERS[name]

    def merges(self, pieces: list[str], types: list[int]) -> I32:
        """Read the merges of a byte-level tokenizer.

        Args:
            pieces: the texts of the tokens, by id.
            types: their kinds, by id.

        Returns:
            The ids [n, 3] of the left token, the right token and what they become. All are normal
            tokens.

        Raises:
            ModelConfigError: for missing merges, for what is no pair of tokens that make a token,
                for a pair that stands twice, and for normal tokens of one text.
        """
        merges = self.get("merges")
        if not isinstance(merges, list) or not all(isinstance(merge, str) for merge in merges):
            self.fail("merges", "a list of strings", "nothing" if merges is None else merges)
        normal = [i for i, (piece, kind) in enumerate(zip(pieces, types, strict=True)) if piece and kind == NORMAL]
        ids = {pieces[i]: i for i in normal}
        if len(ids) < len(normal):
            twice = next(pieces[i] for i in normal if ids[pieces[i]] != i)
            self.fail("tokens", "each normal token once", f"{quoted(twice)} twice")
        found: list[int] = []
        for i, merge in enumerate(merges):
            left, _, right = merge.partition(" ")
            try:
                found += ids[left], ids[right], ids[left + right]
            except KeyError:
                self.fail("merges", "pairs of normal tokens that make a normal token", f"{quoted(merge)} at {i}")
        if len(set(merges)) < len(merges):
            ((twice, _),) = Counter(merges).most_common(1)
            self.fail("merges", "each pair once", f"{quoted(twice)} twice")
        return np.array(found, np.int32).reshape(-1, 3)

    def optional_id(self, key: str, n_vocab: int) -> int | None:
        """Read a token id that may be missing.

        Args:
            key: the key.
            n_vocab: size of the vocabulary.

        Returns:
            The id, 0 to n_vocab - 1; None if the key is missing.

        Raises:
            ModelConfigError: for anything else.
        """
        return None if self.get(key) is None else self.id(key, n_vocab, 0)

    def id(self, key: str, n_vocab: int, default: int) -> int:
        """Read a token id.

        Args:
            key: the key.
            n_vocab: size of the vocabulary.
            default: the id if the key is missing.

        Returns:
            The id, 0 to n_vocab - 1.

        Raises:
            ModelConfigError: for anything else.
        """
        value = self.get(key)
        value = default if value is None else value
        if type(value) is not int or not 0 <= value < n_vocab:
            self.fail(key, f"a token id from 0 to {n_vocab - 1}", value)
        return value

    def flag(self, key: str, default: bool) -> bool:
        """Read a boolean.

        Args:
            key: the key.
            default: the value if the key is missing.

        Returns:
            The value.

        Raises:
            ModelConfigError: for anything else.
        """
        value = self.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            self.fail(key, "true or false", value)
        return value

    def check_bytes(self, pieces: list[str], types: list[int]) -> None:
        """Check that the byte tokens are <0x00> to <0xFF>, each once, or that there are none.

        sentencepiece needs all of them or none.

        Args:
            pieces: the texts of the tokens, by id.
            types: their kinds, by id.

        Raises:
            ModelConfigError: for anything else.
        """
        found = [piece for piece, kind in zip(pieces, types, strict=True) if kind == BYTE]
        for piece in found:
            if not _BYTE_PIECE.fullmatch(piece):
                self.fail("tokens", "byte tokens from '<0x00>' to '<0xFF>'", piece)
        if found and (len(found) != 256 or len(set(found)) != 256):
            self.fail(
                "tokens",
                "each of the 256 byte tokens once or none at all",
                f"{len(found)} byte tokens, {len(set(found))} different",
            )
