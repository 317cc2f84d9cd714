"""Byte-level BPE: GGUF's tokenizer "gpt2".

A text is cut into pieces. The bytes of a piece are its first symbols, and the pair of symbols whose
merge stands first in the file's list becomes one symbol, until no pair has a merge.

Source: Sennrich et al. 2016, arXiv:1508.07909; over bytes: Radford et al. 2019, "Language Models are
Unsupervised Multitask Learners".
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from itertools import chain, count

import regex

from pymixtral.arrays import I32
from pymixtral.errors import InvalidArgumentError
from pymixtral.text.metadata import NORMAL, USER_DEFINED
from pymixtral.text.pretokenizers import PreTokenizer
from pymixtral.text.sentencepiece import SPACE

PART = 1 << 16
"""Characters that are encoded at once. Their pieces take some 2 MB."""

CACHED_PIECES = 1 << 15
"""Pieces whose ids are kept. The words of a text repeat: this many are most of a book's."""

CACHED_CHARACTERS = 64
"""Of a piece whose ids are kept. With CACHED_PIECES it bounds the memory to some 10 MB."""

# A piece ends between a letter and what is no letter, number or mark: no pattern goes over it, and
# none looks back.
_END_OF_PIECE = regex.compile(r"\p{L}(?=[\s\p{P}])")


def _alphabet() -> str:
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = count(0x100)
    return "".join(chr(byte if byte in printable else next(others)) for byte in range(256))


ALPHABET = _alphabet()
"""The character by which a token's text writes each byte: printable ones of Latin-1 as they are, the
others from U+0100 on."""

_BYTES = {character: byte for byte, character in enumerate(ALPHABET)}


class BytePairs:
    """A byte-level BPE model: it encodes text and has the bytes of each id.

    Bytes that have no token are left out of a text, as llama.cpp and tokenizers leave them out.
    Real vocabularies lack some that are rare or no part of UTF-8.

    Args:
        pieces: texts of the tokens, by id. Normal ones are in ALPHABET, each once.
        types: kinds of the tokens, by id, as in tokenizer.ggml.token_type.
        merges: ids [n, 3] of two normal tokens and of what they become, the first merges first,
            each pair once.
        pre: how a text is cut into pieces.

    Attributes:
        bytes: the bytes that each id stands for in a text. A normal token that is not in ALPHABET
            stands for its own text.
        has_prefix: whether each id is text that begins with a space which is none of the text's:
            none is.
        added: names of user-defined tokens, and their ids.
    """

    def __init__(self, pieces: list[str], types: list[int], merges: I32, pre: PreTokenizer) -> None:
        self.bytes = [_piece_bytes(piece, kind) for piece, kind in zip(pieces, types, strict=True)]
        self.has_prefix = [False] * len(pieces)
        self.added = {piece: i for i, piece in reversed([*enumerate(pieces)]) if piece and types[i] == USER_DEFINED}
        normal = {piece: i for i, piece in enumerate(pieces) if piece and types[i] == NORMAL}
        self._of_byte = [normal.get(character) for character in ALPHABET]
        self._missing = bytes(byte for byte, id in enumerate(self._of_byte) if id is None)
        self._longest = max((len(piece.encode("utf-8", "replace")) for piece in pieces), default=0)
        self._whole = {self.bytes[i]: i for i in normal.values()} if pre.ignore_merges else {}
        self._texts = pieces
        pairs = merges[:, 0].astype("int64") * len(pieces) + merges[:, 1]
        self._ranks = {pair: rank for rank, pair in enumerate(pairs.tolist())}
        self._results = array("i", merges[:, 2].tolist())
        self._pieces = regex.compile(pre.pattern).findall
        self._cache = _Cache(self)

    def encode(self, text: str, offset: int = 0, continued: bool = False) -> Iterator[list[int]]:  # noqa: ARG002
        """Encode a text part by part, in memory that does not grow with the text.

        Args:
            text: what to encode.
            offset: where it begins in the caller's text, for messages.
            continued: whether it follows other text; this model puts no space before a text anyway.

        Yields:
            The ids of one part.

        Raises:
            InvalidArgumentError: for a str that is not Unicode text (lone surrogates).
        """
        begin = 0
        while begin < len(text):
            end = begin + PART
            if end < len(text):
                match = _END_OF_PIECE.search(text, end)
                end = match.end() if match else len(text)
            part = text[begin:end]
            try:
                part.encode("utf-8")
            except UnicodeEncodeError as error:
                raise InvalidArgumentError(
                    f"expected Unicode text, found bytes that are not UTF-8 at character {offset + begin + error.start}"
                ) from None
            yield list(chain.from_iterable(map(self._cache.__getitem__, self._pieces(part))))
            begin = end

    def fewest_tokens(self, text: str) -> int:
        """Bound the number of ids of a text from below, without encoding it.

        Args:
            text: the text.

        Returns:
            The number of ids if every token were as long as the longest.
        """
        n_bytes = len(text.encode("utf-8", "replace").translate(None, self._missing))
        return -(-n_bytes // self._longest) if self._longest else 0

    def piece(self, id: int) -> str:
        """Show a token.

        Args:
            id: a token id of the vocabulary.

        Returns:
            Its name if it has no text; else its text, in which U+2581 stands for a space and \\xNN
            for a byte that is no character by itself.
        """
        data = self.bytes[id]
        return data.decode("utf-8", "backslashreplace").replace(" ", SPACE) if data else self._texts[id]

    def encode_piece(self, piece: str) -> list[int]:
        """Encode one piece of a text: the time is that of sorting its bytes, whatever they are.

        Args:
            piece: a match of the pattern.

        Returns:
            Its ids.
        """
        data = piece.encode("utf-8")
        if (whole := self._whole.get(data)) is not None:
            return [whole]
        of_byte = self._of_byte
        return self._merged([id for byte in data if (id := of_byte[byte]) is not None])

    def _merged(self, ids: list[int]) -> list[int]:
        """Merge the symbols of a piece.

        A heap has the pairs that have a merge, as rank * n + place: of one rank, the leftmost comes
        first. A merge makes two new pairs at most. Pairs that a merge took apart stay in the heap,
        and are dropped when they come up.
        """
        n, n_vocab, rank_of = len(ids), len(self._texts), self._ranks.get
        heap = [rank * n + i for i in range(n - 1) if (rank := rank_of(ids[i] * n_vocab + ids[i + 1])) is not None]
        heapify(heap)
        after, before = list(range(1, n + 1)), list(range(-1, n - 1))
        while heap:
            rank, i = divmod(heappop(heap), n)
            j = after[i]
            if ids[i] < 0 or j == n or rank_of(ids[i] * n_vocab + ids[j]) != rank:
                continue
            ids[i], ids[j] = self._results[rank], -1
            after[i] = k = after[j]
            if k < n:
                before[k] = i
                if (new := rank_of(ids[i] * n_vocab + ids[k])) is not None:
                    heappush(heap, new * n + i)
            if (h := before[i]) >= 0 and (new := rank_of(ids[h] * n_vocab + ids[i])) is not None:
                heappush(heap, new * n + h)
        return [id for id in ids if id >= 0]


class _Cache(dict[str, list[int]]):
    """The ids of pieces that were encoded. Threads may share it: each step is one of a dict's."""

    def __init__(self, model: BytePairs) -> None:
        super().__init__()
        self._model = model

    def __missing__(self, piece: str) -> list[int]:
        ids = self._model.encode_piece(piece)
        if len(piece) <= CACHED_CHARACTERS:
            if len(self) >= CACHED_PIECES:
                self.clear()
            self[piece] = ids
        return ids


def _piece_bytes(piece: str, kind: int) -> bytes:
    """The bytes that a token stands for in a text."""
    if kind == NORMAL:
        try:
            return bytes([_BYTES[character] for character in piece])
        except KeyError:
            return piece.encode("utf-8")
    return piece.encode("utf-8") if kind == USER_DEFINED else b""
