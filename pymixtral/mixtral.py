"""Mixtral: a model file, opened, from text to text."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pymixtral import ops
from pymixtral.arguments import integer, refuse_unknown
from pymixtral.demo import demo_path
from pymixtral.engine.completion import Completion, Generation, StopStrings
from pymixtral.engine.interrupt import run_beside
from pymixtral.errors import ClosedError, ContextLengthError, InvalidArgumentError, ModelConfigError, UnsupportedError
from pymixtral.files.gguf import GGUFFile
from pymixtral.files.types import slow_types
from pymixtral.model import residence
from pymixtral.model.config import ModelConfig, context_length
from pymixtral.model.forward import EVERY, Model
from pymixtral.model.kv_cache import n_pages_for
from pymixtral.model.overrides import Override, override
from pymixtral.model.weights import load_weights
from pymixtral.sampling.parameters import Sampling, SamplingParameters
from pymixtral.sampling.sampler import Sampler
from pymixtral.text.tokenizer import Tokenizer, has_tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")
Ids = Sequence[int] | NDArray[np.integer[Any]]

_GENERATE = ("max_tokens", "stop", "ignore_eos", *(field.name for field in fields(SamplingParameters)))
"""The keyword arguments of generate() and stream()."""


class Mixtral:
    """A model of the Mixtral family, ready to use.

    path: a GGUF file; None: the demo model that comes with the package (is_demo is then true).
    n_ctx: tokens of prompt and answer together, at most the model's own context; None: the model's own, but not above 4096.
    n_threads: 1 to 256; None: what the CPU affinity, the cgroup's quota and the number of cores allow.
    n_batch: how many tokens of a prompt are computed at once; it changes memory and speed, never the result.
    kv_type: "f16", "f32" or "q8_0", how keys and values are cached. q8_0 takes 53% of f16's memory; its heads are a multiple of 32.
    experts_used: experts for each token; None: as the file has it. overrides: metadata in place of the file's, checked like it, such as
    {"llama.attention.sliding_window": 4096}; see pymixtral.model.overrides.
    lock: keep in memory the weights that have been read, so that nothing drives them out. prefault: read all weights now, not when they
    are first needed; as a function, it is called with the bytes read so far and in all.

    active_bytes, prompt_weights: what a generated token reads, and the weights that a token of a prompt is multiplied with.
    isa, n_threads: the instruction set and number of threads in use.
    slow_types: names of the file's tensor types that have no kernels, such as "iq2_xxs"; a model with some is several times slower.

    Raises ModelFileError, ModelConfigError or UnsupportedError for a file that cannot be used, InvalidArgumentError for an argument
    out of its range, NativeError where memory or threads are short or the system refuses to lock.

    The keys and values of the last text stay in the cache; a text that begins with the same tokens is computed from where it differs,
    with the same result to the bit. All methods may be called from any thread: one works while the others wait. Texts that are
    streamed in turns take the cache from each other, which costs time and changes nothing else. Ctrl-C (KeyboardInterrupt) ends any
    computation of the main thread at once, and the engine can be used on.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        n_ctx: int | None = None,
        n_threads: int | None = None,
        n_batch: int = 512,
        kv_type: str = "f16",
        experts_used: int | None = None,
        overrides: Mapping[str, Override] | None = None,
        lock: bool = False,
        prefault: bool | Callable[[int, int], None] = False,
    ) -> None:
        self.is_demo = path is None
        self.path = demo_path() if path is None else Path(path)
        self._n_batch = integer("n_batch", n_batch, 1)
        self._lock = threading.RLock()
        self._closed = False
        with ExitStack() as stack:
            file = stack.enter_context(GGUFFile(self.path))
            override(file, experts_used, overrides)
            self.config: ModelConfig = ModelConfig.from_gguf(file)
            self._tokenizer = _tokenizer(file, self.config)
            self.n_ctx = context_length(self.config, n_ctx)
            weights = load_weights(file, self.config)
            self.slow_types = slow_types(tensor.type for tensor in file.tensors.values())
            self._check_file = file.check_length
            self.active_bytes = weights.active_bytes(self.config.n_experts_used)
            self.prompt_weights = weights.prompt_weights(self.config.n_experts_used)
            self._model = Model(weights, self.config, n_threads=n_threads)
            stack.callback(self._model.close)
            self.isa, self.n_threads = self._model.context.isa, self._model.context.n_threads
            if lock:
                residence.lock(file.maps.values())
            if prefault:
                residence.prefault(file.maps.values(), self.n_threads, prefault if callable(prefault) else None)
            self._kv_type = kv_type
            self._ids = np.empty(self.n_ctx, np.int32)  # what the sequence holds: the first _sequence.length
            self._new_cache()
            self._resources = stack.pop_all()

    # --- Text -----------------------------------------------------------------------------------------------------

    def tokenize(self, text: str, add_bos: bool = True, *, parse_special: bool = False) -> list[int]:
        """The ids of `text`, after the begin-of-text id if add_bos and the model wants one. parse_special: names of control tokens, such
        as "</s>", become those tokens, for text from a trusted template; otherwise they are ordinary text. Raises UnsupportedError if
        the file has no tokenizer, InvalidArgumentError for a str with lone surrogates."""
        return self._text_tokenizer().encode(text, add_bos, parse_special=parse_special)

    def detokenize(self, ids: Ids) -> str:
        """The text of `ids`; control tokens have none. Raises UnsupportedError if the file has no tokenizer, InvalidArgumentError for
        an id outside the vocabulary."""
        return self._text_tokenizer().decode(ids)

    def generate(
        self,
        prompt: str | Ids,
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] | None = None,
        ignore_eos: bool = False,
        **sampling: Unpack[Sampling],
    ) -> Completion:
        """The text that the model writes after `prompt`, a text or token ids.

        max_tokens: at most so many; None: until the model ends or the context is full. stop: a string, or several, that end the text
        and are not part of it. ignore_eos: the end of the text is never drawn, so that the model goes on. sampling: seed=None,
        temperature=0.8 (0 always takes the most likely token), top_k=40, top_p=0.95, min_p=0, typical_p=1, repetition_penalty=1,
        presence_penalty=0, frequency_penalty=0, penalty_window=64, logit_bias=None: see pymixtral.sampling.sampler.Sampler.

        Raises InvalidArgumentError for arguments out of range, ContextLengthError before anything is computed if the prompt is
        longer than n_ctx, NonFiniteError if the model's weights lead to NaN or infinity.
        """
        with self._lock:  # for the whole text, so that threads don't take the cache from each other at every token
            generation = self.stream(prompt, max_tokens=max_tokens, stop=stop, ignore_eos=ignore_eos, **sampling)
            text = "".join(generation)
        assert generation.finish_reason is not None  # nobody else has it to close it
        return Completion(text, generation.tokens, generation.finish_reason, generation.stats)

    def stream(
        self,
        prompt: str | Ids,
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] | None = None,
        ignore_eos: bool = False,
        **sampling: Unpack[Sampling],
    ) -> Generation:
        """As generate(), but an iterator of pieces of the text, each yielded as soon as it is certain. A piece never ends inside a
        character. The iterator has tokens, finish_reason and stats, and may be dropped or closed midway. Arguments are checked, and
        errors raised, before it is returned."""
        self._check_open()
        eos_ids = self._tokenizer.eos_ids if self._tokenizer else frozenset()
        refuse_unknown(sampling, _GENERATE, "generate() and stream()")
        parameters = SamplingParameters(**sampling)
        sampler = Sampler(parameters, self._exp, n_vocab=self.config.n_vocab, banned=eos_ids if ignore_eos else ())
        stop_strings = StopStrings(stop)
        if max_tokens is not None:
            max_tokens = integer("max_tokens", max_tokens, 0)
        ids = self._checked_ids(self._prompt_ids(prompt) if isinstance(prompt, str) else prompt, "prompt")
        tokenizer = self._text_tokenizer() if stop_strings else self._tokenizer
        decoder = None
        if tokenizer:
            decoder = tokenizer.stream(begins_text=not any(tokenizer.has_text(i) for i in ids.tolist()))
        return Generation(
            self._next_logits,
            ids,
            n_ctx=self.n_ctx,
            max_tokens=max_tokens,
            sampler=sampler,
            decoder=decoder,
            stop=stop_strings,
            eos_ids=eos_ids,
            pass_bytes=self.active_bytes,
        )

    # --- Numbers --------------------------------------------------------------------------------------------------

    def logits(self, tokens: Ids, last_only: bool = False, *, first: int = 0) -> NDArray[np.float32]:
        """The logits after each token: float32 [n_tokens - first, n_vocab], or [n_vocab] of the last one only, which is less work.

        tokens: 1 to n_ctx ids, taken as they are: no begin-of-text id is added. first: skips the logits of the tokens before it,
        and the work for those of them that the cache has. Raises InvalidArgumentError or ContextLengthError for others,
        NonFiniteError as generate() does.
        """
        ids = self._checked_ids(tokens, "tokens")
        first = integer("first", first, 0)
        if first >= len(ids):
            raise InvalidArgumentError(f"expected first to be less than the number of tokens, {len(ids)}, found {first}")
        rows, _ = self._logits(ids, len(ids) - 1 if last_only else first)
        return rows[0] if last_only else rows

    def observers(self) -> list[ops.Observer]:
        """New ones, for observe()."""
        with self._working():
            return [ops.Observer(layer) for layer in self._model.layers]

    def observe(self, tokens: Ids, observers: Sequence[ops.Observer]) -> NDArray[np.float32]:
        """For calibration: adds the inputs of the matrices that 1 to n_ctx tokens give rise to, to an observer for each layer, and
        returns the input of the last matrix, the head: float32 [n_tokens, hidden]. After an exception the observers hold parts."""
        ids = self._checked_ids(tokens, "tokens")
        with self._working():
            self._truncate(0)
            parts = [self._forward(ids[i : i + self._n_batch], EVERY, observers) for i in range(0, len(ids), self._n_batch)]
            return self._model.head_input(np.concatenate(parts))

    def _next_logits(self, ids: NDArray[np.int32]) -> tuple[NDArray[np.float32], int]:
        """float32 [n_vocab] after ids [1 to n_ctx], and how many of these the cache had. At least the last one is computed."""
        rows, n_cached = self._logits(ids, len(ids) - 1)
        return rows[0], n_cached

    def _logits(self, ids: NDArray[np.int32], first: int) -> tuple[NDArray[np.float32], int]:
        """float32 [n - first, n_vocab] after ids[first:], and how many of the ids [n] the cache had, at most first."""
        with self._working():
            n_cached = min(_n_common(ids, self._ids[: self._sequence.length]), first)
            self._truncate(n_cached)
            rows = np.empty((len(ids) - first, self.config.n_vocab), np.float32)
            for begin in range(n_cached, len(ids), self._n_batch):
                hidden = self._forward(ids[begin : begin + self._n_batch], slice(max(first - begin, 0) or None, None))
                if len(hidden):
                    part = self._interruptible(len(hidden), partial(self._model.logits, hidden))
                    if len(part) == len(rows):  # mostly: then there is nothing to copy
                        rows = part
                    else:
                        at = max(begin - first, 0)
                        rows[at : at + len(part)] = part
            self._check_file()
            return rows, n_cached

    def _forward(self, ids: NDArray[np.int32], rows: slice, observers: Sequence[ops.Observer] | None = None) -> NDArray[np.float32]:
        """Appends ids to the sequence; those hidden rows float32 [n, hidden]. If it raises, the sequence is as before."""
        begin = self._sequence.length
        self._ids[begin : begin + len(ids)] = ids  # first: whatever interrupts, the ids of all positions that count are right
        batch = [(self._sequence, len(ids))]
        return self._interruptible(len(ids), partial(self._model.forward, ids, batch, self._cache, rows=rows, observers=observers))

    @contextmanager
    def _working(self) -> Iterator[None]:
        """The model for one thread at a time. An interrupt may strike inside the cache's own bookkeeping: then the cache starts anew."""
        with self._lock:
            self._check_open()
            try:
                yield
            except KeyboardInterrupt:
                n_pages = len(self._sequence.pages)
                if n_pages + self._cache.n_free_pages != self._cache.n_pages or n_pages < n_pages_for(self._sequence.length):
                    self._new_cache()
                raise

    def _new_cache(self) -> None:
        self._cache = self._model.new_cache(self.n_ctx, self._kv_type)
        self._sequence = self._cache.new_sequence()

    def _truncate(self, length: int) -> None:
        if length < self._sequence.length:
            self._sequence.truncate(length)

    def _exp(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        with self._working():
            return ops.exp(self._model.context, x)

    def _interruptible(self, n_tokens: int, call: Callable[[], T]) -> T:
        """Runs a call into the model so that Ctrl-C ends it.

        Python raises KeyboardInterrupt in the main thread, between its own instructions. A pass of one token is many short C calls, so
        it runs where it is. One C call of a long prompt can take minutes: that runs on a second thread while this one waits.
        """
        if n_tokens == 1 or threading.current_thread() is not threading.main_thread():
            return call()
        return run_beside(call, self._model.cancel)

    def forget(self) -> None:
        """Empties the cache: the next text is computed from its first token."""
        with self._working():
            self._truncate(0)

    # --- Closing --------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Gives back threads and memory, after the computation under way if there is one. May be called again; everything that needs
        the model then raises ClosedError."""
        closed, self._closed = self._closed, True  # before the lock, so that generations in other threads end at their next token
        with self._lock:
            if not closed:
                self._resources.close()
                del self._model, self._sequence, self._cache

    def __enter__(self) -> Mixtral:
        self._check_open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"expected an open model, found one that was closed ({self.path}): open it again")

    # --- Arguments ------------------------------------------------------------------------------------------------

    def _text_tokenizer(self) -> Tokenizer:
        self._check_open()
        if self._tokenizer is None:
            raise UnsupportedError(f"{self.path}: the file has no tokenizer, so text cannot be used: pass token ids instead")
        return self._tokenizer

    def _prompt_ids(self, prompt: str) -> list[int]:
        """A prompt that is far too long is refused without being tokenized, which takes seconds for some megabytes."""
        fewest = self._text_tokenizer().fewest_tokens(prompt)
        if fewest > self.n_ctx:
            raise ContextLengthError(
                f"expected prompt of at most {self.n_ctx} tokens (n_ctx), found {fewest} or more: shorten the text or ask for a longer "
                "context"
            )
        return self.tokenize(prompt)

    def _checked_ids(self, tokens: Ids, what: str) -> NDArray[np.int32]:
        self._check_open()
        try:
            ids = np.asarray(tokens)
        except ValueError:  # lists of different lengths
            raise InvalidArgumentError(f"expected {what} to be a list of integers, found nested lists") from None
        if ids.size == 0:
            raise InvalidArgumentError(f"expected {what} of at least one token, found none")
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise InvalidArgumentError(f"expected {what} to be a list of integers, found {ids.ndim} dimensions of {ids.dtype}")
        if len(ids) > self.n_ctx:
            raise ContextLengthError(
                f"expected {what} of at most {self.n_ctx} tokens (n_ctx), found {len(ids)}: shorten the text or ask for a longer context"
            )
        outside = ids[(ids < 0) | (ids >= self.config.n_vocab)]
        if outside.size:
            raise InvalidArgumentError(f"expected token ids from 0 to {self.config.n_vocab - 1} in {what}, found {outside[0]}")
        return ids.astype(np.int32)


def _n_common(a: NDArray[np.int32], b: NDArray[np.int32]) -> int:
    """How many elements of two arrays are equal before the first that are not."""
    n = min(len(a), len(b))
    different = a[:n] != b[:n]
    first = int(different.argmax()) if n else 0
    return first if n and different[first] else n


def _tokenizer(file: GGUFFile, config: ModelConfig) -> Tokenizer | None:
    """The file's tokenizer, or None if it says that it has none."""
    if not has_tokenizer(file.metadata, os.fspath(file.path)):
        return None
    tokenizer = Tokenizer.from_metadata(file.metadata, os.fspath(file.path))
    if tokenizer.n_vocab != config.n_vocab:
        raise ModelConfigError(
            f"{file.path}: metadata key 'tokenizer.ggml.tokens': expected {config.n_vocab} tokens, the model's vocabulary, "
            f"found {tokenizer.n_vocab}"
        )
    return tokenizer
