"""The tokenizer of a GGUF file: text to token ids and back.

The lists `tokenizer.ggml.*` hold the parts of a model of one of two kinds: SentencePiece, which
scores its tokens, or byte-level BPE, which merges them by a list. The model encodes text without
names of tokens. Names, the begin of a text and decoding are the same for both, and are done here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from functools import cached_property
from operator import index
from typing import Any

import numpy as np

from pymixtral.arguments import shown
from pymixtral.errors import InvalidArgumentError, ModelConfigError, UnsupportedError
from pymixtral.files.header import Value, quoted
from pymixtral.text.bpe import BytePairs
from pymixtral.text.metadata import CONTROL, Keys
from pymixtral.text.model import Model
from pymixtral.text.names import Names
from pymixtral.text.sentencepiece import SentencePiece
from pymixtral.text.streaming import StreamDecoder

END_NAMES = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "[EOT]",
)
"""Names of control tokens that end a text or a turn wherever a file has them. Many files name one
end of several: Llama 3's has the end of a text, and its chats end with <|eot_id|>."""


def has_tokenizer(metadata: Mapping[str, Value], source: str) -> bool:
    """Say whether a file has a tokenizer, of whatever kind.

    Args:
        metadata: the file's metadata.
        source: the file's name in messages.

    Returns:
        Whether tokenizer.ggml.model names a tokenizer.

    Raises:
        ModelConfigError: if tokenizer.ggml.model is not a string.
    """
    model = metadata.get("tokenizer.ggml.model", "none")
    if not isinstance(model, str):
        Keys(metadata, source).fail("model", "a string", model)
    return model not in ("none", "no_vocab")


def open_tokenizer(metadata: Mapping[str, Value], source: str, n_vocab: int | None = None) -> Tokenizer | None:
    """Read the tokenizer of a file.

    Args:
        metadata: of the file.
        source: the name of the file, for messages.
        n_vocab: the model's vocabulary, which the tokenizer must have; None: any.

    Returns:
        The tokenizer, or None if the file says that it has none.

    Raises:
        UnsupportedError: for another kind of tokenizer.
        ModelConfigError: for lists that are missing or contradict each other or the model.
    """
    if not has_tokenizer(metadata, source):
        return None
    tokenizer = Tokenizer.from_metadata(metadata, source)
    if n_vocab is not None and tokenizer.n_vocab != n_vocab:
        raise ModelConfigError(
            f"{source}: metadata key 'tokenizer.ggml.tokens': expected {n_vocab} tokens, "
            f"the model's vocabulary, found {tokenizer.n_vocab}: convert the model again"
        )
    return tokenizer


class Tokenizer:
    """The tokenizer of one model. It is immutable and may be used from many threads.

    from_metadata() makes one and checks the lists.

    Args:
        model: encodes the text between names of tokens.
        control: names of control tokens, and their ids.
        bos_id: the begin-of-text token; None if there is none.
        eos_id: the end-of-text token; None if there is none.
        eos_ids: the tokens that end a text, eos_id among them.
        add_bos: whether the model wants a begin-of-text token before a text.
        dummy_prefix: whether the model wants a space before a text.

    Attributes:
        n_vocab: number of ids.
        bos_id: the begin-of-text token; None if the file names none.
        eos_id: the end-of-text token; None if the file names none.
        eos_ids: the tokens that end a text: the end-of-text token, those that end a turn and a
            message if the file names them, and control tokens of END_NAMES.
    """

    def __init__(
        self,
        model: Model,
        control: Mapping[str, int],
        *,
        bos_id: int | None,
        eos_id: int | None,
        eos_ids: frozenset[int],
        add_bos: bool,
        dummy_prefix: bool,
    ) -> None:
        self.n_vocab = len(model.bytes)
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.eos_ids = eos_ids
        self._before = [bos_id] if add_bos and bos_id is not None else []
        self._dummy_prefix = dummy_prefix
        self._model = model
        self._control, self._added, self._all = Names(control), Names(model.added), Names({**model.added, **control})

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Value], source: str = "the model file") -> Tokenizer:
        """Make the tokenizer that a file describes.

        Args:
            metadata: the file's metadata, of which the keys `tokenizer.ggml.*` are read.
            source: the file's name in messages.

        Returns:
            The tokenizer.

        Raises:
            UnsupportedError: for another tokenizer model than "llama", which is SentencePiece BPE,
                and "gpt2", which is byte-level BPE; for an unknown pre-tokenizer of the latter.
            ModelConfigError: for lists that are missing or contradict each other.
        """
        keys = Keys(metadata, source)
        kind = keys.metadata.get("tokenizer.ggml.model")
        if not isinstance(kind, str) or kind not in ("llama", "gpt2"):
            raise UnsupportedError(
                f"{source}: expected the tokenizer 'llama' (SentencePiece) or 'gpt2' (byte-level BPE), found "
                f"{quoted(kind)}: use another model"
            )
        pieces = keys.pieces()
        n = len(pieces)
        ends: list[int | None] = [keys.optional_id(f"{end}_token_id", n) for end in ("eos", "eot", "eom")]
        model: Model
        if kind == "llama":
            types = keys.sentencepiece_types(pieces)
            dummy_prefix = keys.flag("add_space_prefix", True)
            model = _sentencepiece(keys, pieces, types, dummy_prefix)
            bos: int | None = keys.id("bos_token_id", n, 1)
            add_bos = keys.flag("add_bos_token", True)
            ends[0] = keys.id("eos_token_id", n, 2)
        else:
            types, dummy_prefix, pre = keys.types(n), False, keys.pre_tokenizer()
            model = BytePairs(pieces, types, keys.merges(pieces, types), pre)
            bos = keys.optional_id("bos_token_id", n)
            add_bos = keys.flag("add_bos_token", pre.add_bos and bos is not None)
            if add_bos and bos is None:
                keys.fail("bos_token_id", "the token that add_bos_token puts before a text", "nothing")
        # In a dict the last one counts, which is the first of several with one name.
        control = {piece: i for i, piece in reversed([*enumerate(pieces)]) if piece and types[i] == CONTROL}
        return cls(
            model,
            control,
            bos_id=bos,
            eos_id=ends[0],
            eos_ids=frozenset(id for id in (*ends, *map(control.get, END_NAMES)) if id is not None),
            add_bos=add_bos,
            dummy_prefix=dummy_prefix,
        )

    # --- To ids -----------------------------------------------------------------------------------

    def encode(
        self,
        text: str,
        add_bos: bool = True,
        *,
        parse_special: bool = False,
        without: Set[int] = frozenset(),
        continued: bool = False,
    ) -> list[int]:
        """Turn text into ids.

        The name of an added token of type "user defined" always becomes that token. The text on
        each side of a token that is found by its name is encoded by itself, with a space before it
        if the model puts one before a text. transformers and llama.cpp do the same.

        Args:
            text: what to encode.
            add_bos: begin with the begin-of-text id, if the model wants one
                (tokenizer.ggml.add_bos_token).
            parse_special: names of control tokens, such as "</s>", become those tokens, and a
                begin-of-text token at the beginning of the text is not repeated. This is for text
                from a trusted template; by default such names are ordinary text.
            without: tokens of type "user defined" whose names are ordinary text in this text, such
                as those that a chat format puts between the texts of strangers.
            continued: the text follows other text, so that no space is put before it.

        Returns:
            The ids.

        Raises:
            InvalidArgumentError: for a str that is not Unicode text (lone surrogates, which Python
                makes from a command line that is not UTF-8).
        """
        parts = self.encode_parts(text, add_bos, parse_special=parse_special, without=without, continued=continued)
        return [id for part in parts for id in part]

    def encode_parts(
        self,
        text: str,
        add_bos: bool = True,
        *,
        parse_special: bool = False,
        without: Set[int] = frozenset(),
        continued: bool = False,
    ) -> Iterator[list[int]]:
        """Turn text into ids part by part, in memory that does not grow with the text.

        Args:
            text: as for encode().
            add_bos: as for encode().
            parse_special: as for encode().
            without: as for encode().
            continued: as for encode().

        Yields:
            The ids of one part. All parts together are encode() of the text.

        Raises:
            InvalidArgumentError: as encode() does.
        """
        first = True
        for part in self._parts(text, self._all if parse_special else self._added, without, continued):
            if first and add_bos and not (parse_special and part[:1] == self._before):
                part = [*self._before, *part]
            if part:
                first = False
                yield part
        if first and add_bos and self._before:
            yield list(self._before)

    def _parts(self, text: str, names: Names, without: Set[int], continued: bool) -> Iterator[list[int]]:
        at = 0  # continued: whether text stands before that place, and not a token
        while found := next(names.find(text, at), None):
            begin, end, id = found
            if id in without:  # a cut inside the name makes it text
                yield from self._by_itself(text, at, begin + 1, continued)
                at, continued = begin + 1, True
            else:
                yield from self._by_itself(text, at, begin, continued)
                yield [id]
                at, continued = end, False
        yield from self._by_itself(text, at, len(text), continued)

    def _by_itself(self, text: str, begin: int, end: int, continued: bool) -> Iterator[list[int]]:
        if begin < end:
            yield from self._model.encode(text[begin:end], begin, continued)

    def fewest_tokens(self, text: str) -> int:
        """Bound the number of ids of a text from below, without encoding it.

        Args:
            text: the text.

        Returns:
            The number of ids if every token were as long as the longest; 0 if a token can have any
            length.
        """
        return self._model.fewest_tokens(text)

    # --- Control tokens ---------------------------------------------------------------------------

    def control_id(self, name: str) -> int | None:
        """Look up a control token.

        Args:
            name: such as "</s>".

        Returns:
            The token's id; None if no control token has this name.
        """
        return self._control.id(name)

    def special_id(self, name: str) -> int | None:
        """Look up a control token or a user-defined one.

        Args:
            name: such as "<|im_start|>", which files have as either.

        Returns:
            The token's id; None if no such token has this name.
        """
        return self._all.id(name)

    def specials(self, text: str) -> Iterator[tuple[int, int, int]]:
        """Find the names of control tokens and user-defined ones in a text.

        Args:
            text: what to search.

        Returns:
            An iterator of (begin, end, token id), in order.
        """
        return self._all.find(text)

    def special_name(self, id: int | None) -> str:
        """Look up the name of a control token or a user-defined one.

        Args:
            id: a token id.

        Returns:
            Its name; "" for any other token, and for None.
        """
        return self._all.name(id)

    def control_names(self, text: str) -> list[str]:
        """Find the names of control tokens in a text.

        Args:
            text: what to search.

        Returns:
            Each name once, in the order of first occurrence.
        """
        return list(dict.fromkeys(text[begin:end] for begin, end, _ in self._control.find(text)))

    # --- To text ----------------------------------------------------------------------------------

    def decode(self, ids: Iterable[int]) -> str:
        """Turn ids into text.

        Args:
            ids: token ids; may be empty.

        Returns:
            The text, without the space that encode() puts before a text. Control tokens have no
            text, and each byte that is not valid UTF-8 becomes U+FFFD.

        Raises:
            InvalidArgumentError: for anything but a list of ids of the vocabulary.
        """
        listed: Any = ids.tolist() if isinstance(ids, np.ndarray) else ids
        if isinstance(listed, (str, bytes, bytearray, Mapping, Set)) or not isinstance(listed, Iterable):
            raise InvalidArgumentError(
                f"expected a list of token ids to decode, found {type(ids).__name__} {shown(ids)}"
            )
        stream = self.stream()
        return "".join([stream.push(i) for i in listed]) + stream.flush()

    def stream(self, *, begins_text: bool = True) -> StreamDecoder:
        """Make a decoder that takes one id at a time.

        Args:
            begins_text: whether the ids begin a text. The space that encode() puts before a text is
                then dropped, as in decode(). False is for ids that continue a text, such as those
                generated after a prompt: they keep every space.

        Returns:
            The decoder.
        """
        return StreamDecoder(self.token_bytes, self._model.has_prefix, begins_text and self._dummy_prefix)

    @cached_property
    def prefix_ids(self) -> frozenset[int]:
        """The ids that lose a space where they begin a text; none if the model wants no space there."""
        return frozenset(id for id, has in enumerate(self._model.has_prefix) if has and self._dummy_prefix)

    def has_text(self, id: int) -> bool:
        """Say whether an id has text.

        Args:
            id: a token id.

        Returns:
            Whether it stands for any bytes. Control tokens do not.

        Raises:
            InvalidArgumentError: for an id outside the vocabulary.
        """
        return bool(self.token_bytes(id))

    def token_bytes(self, id: int) -> bytes:
        """Look up the bytes of an id.

        Args:
            id: a token id.

        Returns:
            The bytes, with the space that some tokens begin with. They need not be valid UTF-8 by
            themselves. A control token has none.

        Raises:
            InvalidArgumentError: for an id outside the vocabulary.
        """
        return self._model.bytes[self._checked(id)]

    def piece(self, id: int) -> str:
        """Show a token to a person.

        Args:
            id: a token id.

        Returns:
            Its name, such as "</s>", if it has no text. Else its text, in which U+2581 stands for a
            space, and \\xNN or, in a SentencePiece model, <0xNN> for a byte.

        Raises:
            InvalidArgumentError: for an id outside the vocabulary.
        """
        return self._model.piece(self._checked(id))

    def _checked(self, id: int) -> int:
        try:
            number = index(id)
        except TypeError:
            number = -1
        if not 0 <= number < self.n_vocab:
            raise InvalidArgumentError(f"expected token ids from 0 to {self.n_vocab - 1}, found {shown(id)}")
        return number


def _sentencepiece(keys: Keys, pieces: list[str], types: list[int], dummy_prefix: bool) -> SentencePiece:
    scores = keys.numbers("scores", len(pieces), "f")
    if not np.isfinite(scores).all():
        keys.fail("scores", "finite numbers", float(scores[~np.isfinite(scores)][0]))
    try:
        return SentencePiece(pieces, scores.tolist(), types, dummy_prefix)
    except RuntimeError as error:  # sentencepiece's only exception
        raise ModelConfigError(
            f"{keys.source}: expected token lists that sentencepiece accepts, found that it refuses them "
            f"({' '.join(str(error).split())}): convert the model again"
        ) from error
