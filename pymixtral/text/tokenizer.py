"""Text to token ids and back, from the token lists of a GGUF file.

The lists (`tokenizer.ggml.*`) hold what a SentencePiece BPE model consists of. The model is rebuilt
from them and sentencepiece tokenizes; decoding is done here, because it has to stream and to cover the
pieces that sentencepiece refuses.
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
    """Whether a file with this metadata has a tokenizer, of whatever kind. Raises ModelConfigError, which names `source`, where
    tokenizer.ggml.model is no string."""
    model = metadata.get("tokenizer.ggml.model", "none")
    if not isinstance(model, str):
        Keys(metadata, source).fail("model", "a string", model)
    return model not in ("none", "no_vocab")


class Tokenizer:
    """The tokenizer of one model. It is immutable and may be used from many threads.

    Attributes:
        n_vocab: number of ids.
        bos_id: begins a text.
        eos_ids: end one: the end of the text and, where the file names them, of a turn and a message.
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
        """Takes checked lists of one length; see from_metadata()."""
        self.n_vocab = len(pieces)
        self.bos_id = bos_id
        self.eos_ids = eos_ids
        self._add_bos = add_bos
        self._dummy_prefix = dummy_prefix
        self._model = SentencePiece(pieces, scores, types, dummy_prefix)
        named = [*enumerate(pieces)][::-1]  # of several with one name, the first counts
        control = {piece: i for i, piece in named if piece and types[i] == CONTROL}
        # A NUL stays what the library makes of it: beside byte tokens, the byte.
        added = {piece.replace(SPACE, " "): i for i, piece in named if piece.strip("\0") and types[i] == USER_DEFINED}
        self._control, self._added, self._all = Names(control), Names(added), Names(added | control)
        # Without byte tokens, any number of unknown characters is one token.
        self._longest_piece = max(map(len, pieces)) if BYTE in types else None

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Value], source: str = "the model file") -> Tokenizer:
        """Reads the keys `tokenizer.ggml.*`; `source` names the file in errors.

        Raises UnsupportedError for another model than "llama" (SentencePiece BPE), ModelConfigError for lists that are missing or
        contradict each other.
        """
        keys = Keys(metadata, source)
        model = keys.metadata.get("tokenizer.ggml.model")
        if not isinstance(model, str) or model != "llama":
            raise UnsupportedError(
                f"{source}: expected the tokenizer 'llama' (SentencePiece), found {quoted(model)}, which is not supported"
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
            raise ModelConfigError(f"{source}: sentencepiece refuses the token list: {' '.join(str(error).split())}") from error

    # --- To ids ---------------------------------------------------------------------------------------------------

    def encode(self, text: str, add_bos: bool = True, *, parse_special: bool = False) -> list[int]:
        """Turns text into ids.

        A name of an added token that is ordinary text to the model (type "user defined") always becomes
        that token. The text on each side of a token that is found by its name is encoded by itself, with
        a space before it where the model puts one, as transformers and llama.cpp do it.

        Args:
            text: what to encode.
            add_bos: begin with the begin-of-text id, if the model wants one
                (tokenizer.ggml.add_bos_token).
            parse_special: names of control tokens, such as "</s>", become those tokens, and a
                begin-of-text token that the text begins with is not repeated: for text from a trusted
                template. Otherwise such names are ordinary text, whoever wrote them.

        Raises:
            InvalidArgumentError: for a str that is not Unicode text (lone surrogates, as Python reads
                them from a command line that is not UTF-8).
        """
        return [id for part in self.encode_parts(text, add_bos, parse_special=parse_special) for id in part]

    def encode_parts(self, text: str, add_bos: bool = True, *, parse_special: bool = False) -> Iterator[list[int]]:
        """As encode(), in parts, which together are the same ids: memory does not grow with the text."""
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
        """A number of ids that encode(text) cannot be shorter than, found at once: it takes the longest piece for every token."""
        return -(-len(text) // self._longest_piece) if self._longest_piece else 0

    # --- Control tokens -------------------------------------------------------------------------------------------

    def control_id(self, name: str) -> int | None:
        """The control token of a name such as "</s>", None if there is none."""
        return self._control.id(name)

    def control_names(self, text: str) -> list[str]:
        """The names of control tokens that a text spells out, each once, in order."""
        return list(dict.fromkeys(text[begin:end] for begin, end, _ in self._control.find(text)))

    # --- To text --------------------------------------------------------------------------------------------------

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`. Control tokens have none; the space that encode() puts before a text is dropped; bytes that are not
        UTF-8 become U+FFFD. Raises InvalidArgumentError for an id outside the vocabulary."""
        listed: Any = ids.tolist() if isinstance(ids, np.ndarray) else ids
        if isinstance(listed, (str, bytes, bytearray, Mapping, Set)) or not isinstance(listed, Iterable):
            raise InvalidArgumentError(f"expected a list of token ids to decode, found {type(ids).__name__} {shown(ids)}")
        stream = self.stream()
        return "".join([stream.push(i) for i in listed]) + stream.flush()

    def stream(self, *, begins_text: bool = True) -> StreamDecoder:
        """A decoder that takes one id at a time.

        begins_text: whether the ids begin a text, whose first space is then dropped as in decode(). False for ids that continue
        one, such as those generated after a prompt: every space is theirs.
        """
        return StreamDecoder(self.token_bytes, self._model.has_prefix, begins_text and self._dummy_prefix)

    def has_text(self, id: int) -> bool:
        """Whether an id stands for any text: control tokens do not. Raises InvalidArgumentError as decode() does."""
        return bool(self.token_bytes(id))

    def token_bytes(self, id: int) -> bytes:
        """The bytes that an id stands for wherever it is, its space too; none of a control token. They need not be UTF-8 by themselves.

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
