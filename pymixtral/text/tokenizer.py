"""Text to token ids and back, from the token lists of a GGUF file.

The lists (`tokenizer.ggml.*`) hold what a SentencePiece BPE model consists of. The model is rebuilt from them and sentencepiece
tokenizes; decoding is done here, because it has to stream and to cover the pieces that sentencepiece refuses.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Mapping, Set
from operator import index
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

from pymixtral.arguments import shown
from pymixtral.errors import InvalidArgumentError, ModelConfigError, UnsupportedError
from pymixtral.files.header import Value, quoted

# The kinds of tokenizer.ggml.token_type, whose numbers are those of SentencePiece's own protocol.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_TEXT = (_NORMAL, _USER_DEFINED, _UNUSED)

_SPACE = "\u2581"
_UNKNOWN_TEXT = " \u2047 "  # what sentencepiece writes for the unknown token
_BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")


def _replace_one_byte(error: UnicodeError) -> tuple[str, int]:
    """U+FFFD for each invalid byte, as sentencepiece has it; Python's "replace" joins the bytes of a truncated character."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\ufffd", error.start + 1


codecs.register_error("pymixtral.byte", _replace_one_byte)
_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


def has_tokenizer(metadata: Mapping[str, Value], source: str) -> bool:
    """Whether a file with this metadata has a tokenizer, of whatever kind. Raises ModelConfigError, which names `source`, where
    tokenizer.ggml.model is no string."""
    model = metadata.get("tokenizer.ggml.model", "none")
    if not isinstance(model, str):
        _Keys(metadata, source).fail("model", "a string", model)
    return model not in ("none", "no_vocab")


class Tokenizer:
    """The tokenizer of one model.

    n_vocab: number of ids. bos_id: begins a text. eos_ids: ids that end one (the end of text and, where the file names one, the
    end of a turn). A Tokenizer is immutable and may be used from many threads.
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
        self._bytes = [_piece_bytes(piece, kind) for piece, kind in zip(pieces, types, strict=True)]
        self._has_prefix = [piece.startswith(_SPACE) and kind in _TEXT for piece, kind in zip(pieces, types, strict=True)]
        self._processor = _processor(pieces, scores, types, dummy_prefix)
        self._control = {piece: i for i, piece in reversed([*enumerate(pieces)]) if piece and types[i] == _CONTROL}
        names = sorted(self._control, key=len, reverse=True)  # an alternation takes the first that fits
        self._control_names = re.compile("|".join(map(re.escape, names)) or "(?!)")
        # Without byte tokens, any number of unknown characters is one token.
        self._longest_piece = max(map(len, pieces)) if _BYTE in types else None

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Value], source: str = "the model file") -> Tokenizer:
        """Reads the keys `tokenizer.ggml.*`; `source` names the file in errors.

        Raises UnsupportedError for another model than "llama" (SentencePiece BPE), ModelConfigError for lists that are missing or
        contradict each other.
        """
        keys = _Keys(metadata, source)
        model = keys.metadata.get("tokenizer.ggml.model")
        if not isinstance(model, str) or model != "llama":
            raise UnsupportedError(
                f"{source}: expected the tokenizer 'llama' (SentencePiece), found {quoted(model)}, which is not supported"
            )
        pieces = keys.pieces()
        scores = keys.numbers("scores", len(pieces), "f")
        if not np.isfinite(scores).all():
            keys.fail("scores", "finite numbers", float(scores[~np.isfinite(scores)][0]))
        types: list[int] = keys.numbers("token_type", len(pieces), "iu").tolist()
        for kind in set(types):
            if not _NORMAL <= kind <= _BYTE:
                keys.fail("token_type", f"numbers from {_NORMAL} to {_BYTE}", kind)
        keys.check_bytes(pieces, types)
        unknown = [i for i, kind in enumerate(types) if kind == _UNKNOWN]
        if len(unknown) > 1:
            keys.fail("token_type", f"at most one unknown token (type {_UNKNOWN})", unknown)
        if not unknown:
            types[keys.id("unknown_token_id", len(pieces), 0)] = _UNKNOWN
        eos_ids = {keys.id("eos_token_id", len(pieces), 2)}
        if "tokenizer.ggml.eot_token_id" in metadata:
            eos_ids.add(keys.id("eot_token_id", len(pieces), 2))
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

    def encode(self, text: str, add_bos: bool = True, *, parse_special: bool = False) -> list[int]:
        """The ids of `text`, after the begin-of-text id if `add_bos` and the model wants one (tokenizer.ggml.add_bos_token).

        parse_special: names of control tokens in the text, such as "</s>", become those tokens, the text between them is encoded piece
        by piece, each with a space before it where the model puts one, and a begin-of-text token that the text begins with is not
        repeated: for text from a trusted template. Otherwise such names are ordinary text, whoever wrote them.

        Raises InvalidArgumentError for a str that is not Unicode text (lone surrogates, as Python reads them from a command line that
        is not UTF-8).
        """
        ids: list[int] = []
        at = 0
        for match in self._control_names.finditer(text) if parse_special else ():
            ids += [*self._encode(text, at, match.start()), self._control[match[0]]]
            at = match.end()
        ids += self._encode(text, at, len(text))
        bos = add_bos and self._add_bos and not (parse_special and ids[:1] == [self.bos_id])
        return [self.bos_id, *ids] if bos else ids

    def _encode(self, text: str, begin: int, end: int) -> list[int]:
        """The ids of text[begin:end] by itself."""
        try:
            data = text[begin:end].encode("utf-8")
        except UnicodeEncodeError as error:
            raise InvalidArgumentError(
                f"expected Unicode text, found bytes that are not UTF-8 at character {begin + error.start}"
            ) from None
        ids: list[int] = self._processor.encode(data)
        return ids

    def fewest_tokens(self, text: str) -> int:
        """A number of ids that encode(text) cannot be shorter than, found at once: it takes the longest piece for every token."""
        return -(-len(text) // self._longest_piece) if self._longest_piece else 0

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`. Control tokens have none; the space that encode() puts before a text is dropped; bytes that are not
        UTF-8 become U+FFFD. Raises InvalidArgumentError for an id outside the vocabulary."""
        listed = ids.tolist() if isinstance(ids, np.ndarray) else ids
        if isinstance(listed, (str, bytes, bytearray, Mapping, Set)) or not isinstance(listed, Iterable):
            raise InvalidArgumentError(f"expected a list of token ids to decode, found {type(ids).__name__} {shown(ids)}")
        stream = self.stream()
        return "".join([stream.push(i) for i in listed]) + stream.flush()

    def stream(self, *, begins_text: bool = True) -> StreamDecoder:
        """A decoder that takes one id at a time.

        begins_text: whether the ids begin a text, whose first space is then dropped as in decode(). False for ids that continue
        one, such as those generated after a prompt: every space is theirs.
        """
        return StreamDecoder(self, begins_text and self._dummy_prefix)

    def has_text(self, id: int) -> bool:
        """Whether an id stands for any text: control tokens do not. Raises InvalidArgumentError as decode() does."""
        return bool(self._text_bytes(id))

    def _text_bytes(self, id: int) -> bytes:
        try:
            number = index(id)
        except TypeError:
            number = -1
        if not 0 <= number < self.n_vocab:
            raise InvalidArgumentError(f"expected token ids from 0 to {self.n_vocab - 1}, found {shown(id)}")
        return self._bytes[number]


class StreamDecoder:
    """Decodes ids as they come; made by Tokenizer.stream().

    What push() returns never ends inside a UTF-8 sequence: the bytes of a character are held until it is complete, or until they
    are known not to become one (each is then U+FFFD). All pushes and the flush joined equal decode() of all ids.
    """

    def __init__(self, tokenizer: Tokenizer, drop_space: bool) -> None:
        self._tokenizer = tokenizer
        self._drop_space = drop_space
        self._utf8 = _Utf8Decoder("pymixtral.byte")

    def push(self, id: int) -> str:
        """The text that is complete after one more id, often "". Raises InvalidArgumentError for an id outside the vocabulary."""
        data = self._tokenizer._text_bytes(id)
        if not data:  # a control token: no character goes on beyond it
            return self.flush()
        if self._drop_space:
            self._drop_space = False
            if self._tokenizer._has_prefix[id]:
                data = data[1:]
        return self._utf8.decode(data)

    def flush(self) -> str:
        """The text of what is still held: U+FFFD for each byte of an incomplete character."""
        return self._utf8.decode(b"", final=True)


class _Keys:
    """Checked access to `tokenizer.ggml.*`."""

    def __init__(self, metadata: Mapping[str, Value], source: str) -> None:
        self.metadata = metadata
        self.source = source

    def fail(self, key: str, expected: str, found: object) -> NoReturn:
        raise ModelConfigError(f"{self.source}: metadata key 'tokenizer.ggml.{key}': expected {expected}, found {quoted(found)}")

    def get(self, key: str) -> Value | None:
        return self.metadata.get(f"tokenizer.ggml.{key}")

    def pieces(self) -> list[str]:
        pieces = self.get("tokens")
        if not isinstance(pieces, list) or not pieces or not all(isinstance(piece, str) for piece in pieces):
            self.fail("tokens", "a list of strings", "nothing" if pieces is None else pieces)
        return pieces

    def numbers(self, key: str, n: int, kinds: str) -> NDArray[Any]:
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

    def id(self, key: str, n_vocab: int, default: int) -> int:
        value = self.get(key)
        value = default if value is None else value
        if type(value) is not int or not 0 <= value < n_vocab:
            self.fail(key, f"a token id from 0 to {n_vocab - 1}", value)
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            self.fail(key, "true or false", value)
        return value

    def check_bytes(self, pieces: list[str], types: list[int]) -> None:
        """Byte tokens are <0x00> to <0xFF>, each once, or there are none: sentencepiece falls back to them as a whole."""
        found = [piece for piece, kind in zip(pieces, types, strict=True) if kind == _BYTE]
        for piece in found:
            if not _BYTE_PIECE.fullmatch(piece):
                self.fail("tokens", "byte tokens from '<0x00>' to '<0xFF>'", piece)
        if found and (len(found) != 256 or len(set(found)) != 256):
            self.fail("tokens", "each of the 256 byte tokens once or none at all", f"{len(found)} byte tokens, {len(set(found))} different")


def _piece_bytes(piece: str, kind: int) -> bytes:
    """The bytes that a token stands for in a text."""
    if kind == _CONTROL:
        return b""
    if kind == _BYTE:
        return bytes([int(piece[3:5], 16)])
    return (_UNKNOWN_TEXT if kind == _UNKNOWN else piece.replace(_SPACE, " ")).encode("utf-8")


def _processor(pieces: list[str], scores: list[float], types: list[int], dummy_prefix: bool) -> SentencePieceProcessor:
    """The SentencePiece model whose ids are the positions in `pieces`."""
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    model.trainer_spec.model_type = model.trainer_spec.BPE
    model.trainer_spec.byte_fallback = _BYTE in types
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = dummy_prefix
    model.normalizer_spec.remove_extra_whitespaces = False
    taken = set(pieces)
    used: set[str] = set()
    for i, (piece, score, kind) in enumerate(zip(pieces, scores, types, strict=True)):
        # sentencepiece refuses empty and repeated pieces, warns of a NUL that it does not use beside byte tokens, and a control piece
        # of one character would match text. Such an id stays, under a name of its own: as a control piece of several characters, no
        # text can lead to it.
        if not piece or piece in used or kind == _CONTROL or (piece == "\0" and _BYTE in types):
            piece = f"<id {i}>"
            while piece in taken:
                piece += ">"
            kind = kind if kind == _UNKNOWN else _CONTROL
        used.add(piece)
        model.pieces.add(piece=piece, score=score, type=kind)
    processor = SentencePieceProcessor()
    processor.LoadFromSerializedProto(model.SerializeToString())
    return processor
