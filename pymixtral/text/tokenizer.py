"""The tokenizer of a GGUF file: text to token ids and back.

The lists `tokenizer.ggml.*` hold the parts of a SentencePiece BPE model. The model is rebuilt from
them, and the sentencepiece library encodes. Decoding is done here, because it has to stream and has
to know the pieces that sentencepiece refuses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from operator import index
from typing import Any

import numpy as np

from pymixtral.arguments import shown
from pymixtral.errors import InvalidArgumentError, ModelConfigError, UnsupportedError
from pymixtral.files.header import Value, quoted
from pymixtral.text.metadata import BYTE, CONTROL, USER_DEFINED, Keys
from pymixtral.text.names import Names
from pymixtral.text.sentencepiece import SPACE, SentencePiece
from pymixtral.text.streaming import StreamDecoder


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
        pieces: texts of the tokens, by id.
        scores: scores of the tokens, by id.
        types: kinds of the tokens, by id, as in tokenizer.ggml.token_type.
        bos_id: the begin-of-text token.
        eos_ids: the tokens that end a text.
        add_bos: whether the model wants a begin-of-text token before a text.
        dummy_prefix: whether the model wants a space before a text.

    Attributes:
        n_vocab: number of ids.
        bos_id: the begin-of-text token.
        eos_ids: the tokens that end a text: the end-of-text token and, if the file names them,
            those that end a turn and a message.

    Raises:
        RuntimeError: if the sentencepiece library refuses the lists.
    """

    def __init__(
        self,
        pieces: list[str],
        scores: list[float],
        types: list[int],
        *,
        bos_id: int,
        eos_ids: frozenset[int],
        add_bos: bool,
        dummy_prefix: bool,
    ) -> None:
        self.n_vocab = len(pieces)
        self.bos_id = bos_id
        self.eos_ids = eos_ids
        self._add_bos = add_bos
        self._dummy_prefix = dummy_prefix
        self._model = SentencePiece(pieces, scores, types, dummy_prefix)
        named = [*enumerate(pieces)][::-1]  # in a dict the last one counts, which is the first of several with one name
        control = {piece: i for i, piece in named if piece and types[i] == CONTROL}
        # A NUL is left to the library, which makes it the byte token if there are byte tokens.
        added = {piece.replace(SPACE, " "): i for i, piece in named if piece.strip("\0") and types[i] == USER_DEFINED}
        self._control, self._added, self._all = Names(control), Names(added), Names(added | control)
        # Without byte tokens, unknown characters in a row are one token of any length.
        self._longest_piece = max(map(len, pieces)) if BYTE in types else None

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Value], source: str = "the model file") -> Tokenizer:
        """Make the tokenizer that a file describes.

        Args:
            metadata: the file's metadata, of which the keys `tokenizer.ggml.*` are read.
            source: the file's name in messages.

        Returns:
            The tokenizer.

        Raises:
            UnsupportedError: for another tokenizer model than "llama", which is SentencePiece BPE.
            ModelConfigError: for lists that are missing or contradict each other.
        """
        keys = Keys(metadata, source)
        model = keys.metadata.get("tokenizer.ggml.model")
        if not isinstance(model, str) or model != "llama":
            raise UnsupportedError(
                f"{source}: expected the tokenizer 'llama' (SentencePiece), found {quoted(model)}: use another model"
            )
        pieces = keys.pieces()
        scores = keys.numbers("scores", len(pieces), "f")
        if not np.isfinite(scores).all():
            keys.fail("scores", "finite numbers", float(scores[~np.isfinite(scores)][0]))
        types = keys.types(pieces)
        eos_ids = {keys.id("eos_token_id", len(pieces), 2)}
        for key in ("eot_token_id", "eom_token_id"):
            if f"tokenizer.ggml.{key}" in metadata:
                eos_ids.add(keys.id(key, len(pieces), 2))
        try:
            return cls(
                pieces,
                scores.tolist(),
                types,
                bos_id=keys.id("bos_token_id", len(pieces), 1),
                eos_ids=frozenset(eos_ids),
                add_bos=keys.flag("add_bos_token", True),
                dummy_prefix=keys.flag("add_space_prefix", True),
            )
        except RuntimeError as error:  # sentencepiece's only exception
            raise ModelConfigError(
                f"{source}: expected token lists that sentencepiece accepts, found that it refuses them "
                f"({' '.join(str(error).split())}): convert the model again"
            ) from error

    # --- To ids -----------------------------------------------------------------------------------

    def encode(self, text: str, add_bos: bool = True, *, parse_special: bool = False) -> list[int]:
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

        Returns:
            The ids.

        Raises:
            InvalidArgumentError: for a str that is not Unicode text (lone surrogates, which Python
                makes from a command line that is not UTF-8).
        """
        return [id for part in self.encode_parts(text, add_bos, parse_special=parse_special) for id in part]

    def encode_parts(self, text: str, add_bos: bool = True, *, parse_special: bool = False) -> Iterator[list[int]]:
        """Turn text into ids part by part, in memory that does not grow with the text.

        Args:
            text: as for encode().
            add_bos: as for encode().
            parse_special: as for encode().

        Yields:
            The ids of one part. All parts together are encode() of the text.

        Raises:
            InvalidArgumentError: as encode() does.
        """
        first = True
        for part in self._parts(text, self._all if parse_special else self._added):
            if first and add_bos and self._add_bos and not (parse_special and part[:1] == [self.bos_id]):
                part = [self.bos_id, *part]
            if part:
                first = False
                yield part
        if first and add_bos and self._add_bos:
            yield [self.bos_id]

    def _parts(self, text: str, names: Names) -> Iterator[list[int]]:
        at = 0
        for begin, end, id in names.find(text):
            yield from self._by_itself(text, at, begin)
            yield [id]
            at = end
        yield from self._by_itself(text, at, len(text))

    def _by_itself(self, text: str, begin: int, end: int) -> Iterator[list[int]]:
        if begin < end:
            yield from self._model.encode(text[begin:end], begin)

    def fewest_tokens(self, text: str) -> int:
        """Bound the number of ids of a text from below, without encoding it.

        Args:
            text: the text.

        Returns:
            The number of ids if every token were as long as the longest piece; 0 if a token can
            have any length.
        """
        return -(-len(text) // self._longest_piece) if self._longest_piece else 0

    # --- Control tokens ---------------------------------------------------------------------------

    def control_id(self, name: str) -> int | None:
        """Look up a control token.

        Args:
            name: such as "</s>".

        Returns:
            The token's id; None if no control token has this name.
        """
        return self._control.id(name)

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
        try:
            number = index(id)
        except TypeError:
            number = -1
        if not 0 <= number < self.n_vocab:
            raise InvalidArgumentError(f"expected token ids from 0 to {self.n_vocab - 1}, found {shown(id)}")
        return self._model.bytes[number]
