"""Matchers: which tokens may come next, so that a text matches its grammar.

The library llguidance compiles grammars and follows them. It knows a vocabulary by the bytes of its
tokens, and one id beyond them that ends a text, so that the ends of texts are this module's.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from pymixtral.arrays import U32
from pymixtral.errors import InvalidArgumentError, NativeError, PymixtralError, UnsupportedError
from pymixtral.escapes import escaped
from pymixtral.sampling.grammar import Grammar
from pymixtral.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

COMPILE_SECONDS = 10
"""The longest time that a caller waits for a grammar."""

MAX_CACHED = 16
"""Compiled grammars that are kept."""

_STACK = 1 << 28
"""Bytes of the stack of the thread that compiles. The library goes down into a grammar by recursion,
up to 8 kB for some 8 characters of it, and ends the program where the stack ends. Memory is taken
only as it is used."""

_MAX_TOKEN = 200
"""Bytes of a token that a grammar may use. Longer ones, of which the library allows 256, are rare and
spaces mostly."""

_STACK_LOCK = threading.Lock()


class Matcher:
    """Follows the text of one request through its grammar. It belongs to one thread at a time.

    Grammars.matcher() makes one.

    Args:
        matcher: the library's, at the beginning of a text.
        grammar: what it follows.
        n_vocab: size of the vocabulary.
        end_ids: tokens that end the text. They may do so where the grammar allows an end.
        spelled_ids: those of them that have a text, which a grammar could mean.
        first_ids: the only ones that may come first; none: all that the grammar allows.

    Attributes:
        complete: whether the text is complete and nothing can follow.
    """

    def __init__(
        self,
        matcher: LLMatcher,
        grammar: Grammar,
        n_vocab: int,
        end_ids: Iterable[int] = (),
        spelled_ids: Iterable[int] = (),
        first_ids: frozenset[int] = frozenset(),
    ) -> None:
        self.complete = False
        self._matcher = matcher
        self._grammar = grammar
        self._buffer: U32 = np.zeros(n_vocab // 32 + 1, np.uint32)
        self._address, self._n_bytes = self._buffer.ctypes.data, self._buffer.nbytes
        self._words = self._buffer[: (n_vocab + 31) // 32]
        self._ends = _bits(end_ids, len(self._words))
        self._first = _bits(first_ids, len(self._buffer)) if first_ids else None
        self._no_text = ~_bits([*spelled_ids, n_vocab], len(self._buffer))  # n_vocab is the library's end

    def mask(self) -> U32 | None:
        """Compute which tokens may come next.

        Returns:
            uint32 [ceil(n_vocab/32)], a bit for each token as sampling.sampler.draw() has them; it
            changes with the next call. None if the text is complete.

        Raises:
            InvalidArgumentError: if no token leads to a text of the grammar, or the grammar is beyond
                the limits here.
        """
        self._matcher.unsafe_compute_mask_ptr(self._address, self._n_bytes)
        if self._matcher.is_error():
            raise self._error()
        self._buffer &= self._no_text
        if self._first is not None:
            self._buffer &= self._first
        accepts = self._matcher.is_accepting()
        if not self._words.any():
            if not accepts:
                raise refused(self._grammar, "no token of the vocabulary can go on")
            self.complete = True
            return None
        if accepts:
            self._words |= self._ends
        return self._words

    def accept(self, token: int) -> None:
        """Go on by a token.

        Args:
            token: one that mask() allows, and that does not end the text.

        Raises:
            InvalidArgumentError: for any other token, and if the grammar is beyond the limits here.
        """
        if not self._matcher.consume_token(token):
            raise self._error()
        self._first = None
        self.complete = self._matcher.is_stopped()
        if self.complete and self._matcher.is_error():
            raise self._error()

    def forced(self) -> list[int]:
        """The next tokens, as far as the grammar leaves no choice. mask() allows just these."""
        return self._matcher.compute_ff_tokens() if self._first is None else []

    def n_allowed(self, tokens: list[int]) -> int:
        """Count how many of some tokens may follow one after the other."""
        return self._matcher.validate_tokens(tokens) if self._first is None else 0

    def _error(self) -> InvalidArgumentError:
        return refused(self._grammar, self._matcher.get_error())


class Grammars:
    """Compiles the grammars of one model. Any number of threads may use it.

    Args:
        tokenizer: the model's.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._vocabulary: LLTokenizer | None = None
        self._compiled: OrderedDict[tuple[Grammar, bool], LLMatcher] = OrderedDict()

    def matcher(self, grammar: Grammar, end_ids: Iterable[int] = (), *, begins_text: bool = False) -> Matcher:
        """Make what follows a text through a grammar. The model's first one takes a second.

        Args:
            grammar: what the text has to match.
            end_ids: tokens that end the text. They may do so where the grammar allows an end.
            begins_text: whether the space that the tokenizer puts before a text is none of the text's.
                The tokens then begin with that space, as the model was trained.

        Returns:
            A new matcher.

        Raises:
            InvalidArgumentError: for a grammar that makes no sense, that no text of this vocabulary
                matches, or that is beyond the limits.
            UnsupportedError: if llguidance is not installed.
            NativeError: if the system has no thread or memory left.
        """
        prefix_ids = self._tokenizer.prefix_ids if begins_text else frozenset()
        spaced = any(self._tokenizer.token_bytes(id) == b" " for id in prefix_ids)
        key = grammar, spaced
        with self._lock:
            vocabulary = self._vocabulary = self._vocabulary or _vocabulary(self._tokenizer, grammar.option)
            compiled = self._compiled.get(key)
        if compiled is None:
            compiled = _compiled(vocabulary, grammar, self._tokenizer.n_vocab, spaced=spaced)
        with self._lock:
            self._compiled[key] = compiled
            self._compiled.move_to_end(key)
            if len(self._compiled) > MAX_CACHED:
                self._compiled.popitem(last=False)
            copy = compiled.deep_copy()
        end_ids = list(end_ids)
        spelled_ids = [id for id in end_ids if self._tokenizer.has_text(id)]
        first_ids = prefix_ids if spaced else frozenset()
        return Matcher(copy, grammar, self._tokenizer.n_vocab, end_ids, spelled_ids, first_ids)


class _Vocabulary:
    """The vocabulary as the library asks for it.

    A control token is the byte 0xff, which no text has, and its name. So is every end of a text,
    whatever the file says it is.
    """

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        n = tokenizer.n_vocab
        self._tokenizer = tokenizer
        self._bytes = [tokenizer.token_bytes(i) for i in range(n)]
        self._usable = usable = [
            0 < len(data) <= _MAX_TOKEN and i not in tokenizer.eos_ids for i, data in enumerate(self._bytes)
        ]
        self.eos_token_id = n
        self.special_token_ids = [*(i for i in range(n) if not usable[i]), n]
        self.tokens = [self._bytes[i] if usable[i] else _name(tokenizer.piece(i), i) for i in range(n)]
        self.tokens.append(_name("", n))
        self._of_bytes = {self._bytes[i]: i for i in range(n) if usable[i]}  # a piece comes after its byte

    def __call__(self, data: bytes) -> list[int]:
        """The tokens of a text inside of a text. The library cannot stand an exception here."""
        try:
            ids = self._tokenizer.encode(data.decode(), False, continued=True)
        except (UnicodeDecodeError, InvalidArgumentError):
            ids = []
        if b"".join(self._bytes[i] for i in ids) == data and all(self._usable[i] for i in ids):
            return ids
        return list(self._longest(data))  # characters or bytes that the tokenizer leaves out

    def _longest(self, data: bytes) -> Iterator[int]:
        """The longest token at each place, up to one where none is."""
        begin = 0
        while begin < len(data):
            for end in range(min(len(data), begin + _MAX_TOKEN), begin, -1):
                id = self._of_bytes.get(data[begin:end])
                if id is not None:
                    yield id
                    begin = end
                    break
            else:
                return


def _bits(ids: Iterable[int], n_words: int) -> U32:
    """Words in which the bits of some ids are set."""
    bits = np.zeros(32 * n_words, np.uint8)
    bits[list(ids)] = 1
    return np.packbits(bits, bitorder="little").view("<u4").astype(np.uint32)


def _name(name: str, id: int) -> bytes:
    """How a control token is written: grammars can name those in angle brackets."""
    usable = re.fullmatch(r"<[^<>\s]{1,100}>", name) and not re.fullmatch(r"<\d+>", name)
    return b"\xff" + (name if usable else f"<{id}>").encode()


def _vocabulary(tokenizer: Tokenizer, option: str) -> LLTokenizer:
    try:
        from llguidance import LLTokenizer, TokenizerWrapper
    except ImportError:
        raise UnsupportedError(
            f"expected llguidance for {option}, found that it is not installed: pip install 'pymixtral[structured]'"
        ) from None
    vocabulary = _Vocabulary(tokenizer)
    return LLTokenizer(TokenizerWrapper(vocabulary), n_vocab=len(vocabulary.tokens), eos_token=vocabulary.eos_token_id)


def _limits() -> LLParserLimits:
    """Those that bound the time of a compilation and of a token to some tenths of a second at worst."""
    from llguidance import LLParserLimits

    return LLParserLimits(
        initial_lexer_fuel=500_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_lexer_states=50_000,
        max_grammar_size=200_000,
        verbose_errors=False,
    )


def _compiled(vocabulary: LLTokenizer, grammar: Grammar, n_vocab: int, *, spaced: bool) -> LLMatcher:
    """A grammar at the beginning of a text, with its first mask, which shows whether there is a text.

    Args:
        vocabulary: the model's.
        grammar: what to compile.
        n_vocab: size of the vocabulary.
        spaced: whether a space comes first.
    """
    from llguidance import LLMatcher

    results: list[LLMatcher | BaseException] = []

    def compile() -> None:
        try:
            if grammar.kind == "json":
                text = LLMatcher.grammar_from_json_schema(grammar.text, defaults={"whitespace_flexible": False})
            elif grammar.kind == "regex":
                text = LLMatcher.grammar_from_regex(grammar.text)
            else:
                text = LLMatcher.grammar_from_lark(grammar.text)
            matcher = LLMatcher(vocabulary, text, log_level=0, limits=_limits())
            if matcher.is_error():
                raise refused(grammar, matcher.get_error())
            if Matcher(matcher, grammar, n_vocab).mask() is None:
                raise refused(grammar, "only the empty text matches it")
            if spaced:
                matcher = LLMatcher(vocabulary, _behind_a_space(text), log_level=0, limits=_limits())
                if matcher.is_error():
                    raise refused(grammar, matcher.get_error())
            results.append(matcher)
        except BaseException as error:  # a panic of the library is none of Exception
            results.append(error)

    with _long_stack():
        thread = threading.Thread(target=compile, name="pymixtral-grammar", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise NativeError(
                f"expected a thread for {grammar.option}, found that the system has none left ({error}): "
                "end other programs"
            ) from error
    thread.join(COMPILE_SECONDS)
    if not results:
        raise refused(grammar, f"it takes more than {COMPILE_SECONDS} s to compile")
    (result,) = results
    if isinstance(result, PymixtralError):
        raise result
    if isinstance(result, BaseException):
        raise refused(grammar, str(result)) from result
    return result


def _behind_a_space(text: str) -> str:
    """The library's grammar of the texts of another, each behind a space."""
    try:
        grammars = json.loads(text)["grammars"]
    except ValueError:  # that of a Lark grammar is the grammar itself
        grammars = [{"lark_grammar": text}]
    first, *others = grammars
    space = {"name": "space", "lark_grammar": 'start: " " @text'}
    return json.dumps({"grammars": [space, first | {"name": "text"}, *others]})


@contextmanager
def _long_stack() -> Iterator[None]:
    """Gives new threads a long stack."""
    with _STACK_LOCK:
        before = threading.stack_size(_STACK)
        try:
            yield
        finally:
            threading.stack_size(before)


def refused(grammar: Grammar, reason: str) -> InvalidArgumentError:
    """Make the error of a grammar that cannot be followed.

    Args:
        grammar: the grammar.
        reason: the library's, of one or several lines, of which one says what is wrong.
    """
    found: Any = re.search(r"^error: (.*)", reason, re.MULTILINE)
    text = found[1] if found else reason.strip().partition("\n")[0].removesuffix("<non-verbose/>")
    if grammar.kind == "regex":
        text = re.sub(r"^at \d+\(\d+\): ", "", text)  # a place in what the library has made of it
    if text.startswith("NoExtension"):
        text = "no text of the vocabulary matches it"
    text = escaped(text if len(text) <= 200 else text[:197] + "...")
    return InvalidArgumentError(
        f"expected {grammar.option} to be a grammar that can be followed, found that it cannot ({text}): change it"
    )
