"""Mixtral: an open model file that turns a prompt into text."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from pymixtral import ops
from pymixtral.arguments import integer, path_of, refuse_unknown, text_of
from pymixtral.arrays import F32, I32, Ids
from pymixtral.demo import demo_path
from pymixtral.engine.completion import Completion, Generation
from pymixtral.engine.engine import Engine, checked_ids, too_long
from pymixtral.errors import InvalidArgumentError, UnsupportedError
from pymixtral.files.gguf import GGUFFile
from pymixtral.files.types import slow_types
from pymixtral.model import residence
from pymixtral.model.config import ModelConfig, context_length
from pymixtral.model.forward import Model
from pymixtral.model.overrides import Override, override
from pymixtral.model.weights import load_weights
from pymixtral.sampling.parameters import Sampling, SamplingParameters
from pymixtral.sampling.sampler import Sampler
from pymixtral.text.stops import StopStrings
from pymixtral.text.tokenizer import Tokenizer, open_tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

_GENERATE = (
    *("max_tokens", "stop", "ignore_eos", "parse_special", "progress"),
    *(field.name for field in fields(SamplingParameters)),
)
"""The keyword arguments of generate() and stream()."""


class Mixtral:
    """A model of the Mixtral family, ready to use.

    The keys and values of the last text stay in the cache. A text that begins with the same tokens
    is computed from the first token that differs, with the same result to the bit. All methods may
    be called from any thread: one works while the others wait. Texts that are streamed by turns
    replace each other's cache, which costs time and changes nothing else. Ctrl-C
    (KeyboardInterrupt) ends any computation of the main thread at once; the model stays usable.

    Args:
        path: a GGUF file; None: the demo model that comes with the package.
        n_ctx: most tokens of prompt and answer together, at most the model's own context length;
            None: the model's own, but at most 4096.
        n_threads: 1 to 256; None: as many as the CPU affinity, the cgroup's quota and the number of
            physical cores allow.
        n_batch: how many tokens of a prompt are computed at once. It changes memory and speed,
            never the result.
        kv_type: "f16", "f32" or "q8_0", the type of cached keys and values. q8_0 takes 53% of the
            memory of f16; the model's head dimension must be a multiple of 32.
        experts_used: experts for each token; None: as many as the file says.
        overrides: metadata that replaces the file's and is checked like it, such as
            {"llama.attention.sliding_window": 4096}; see pymixtral.model.overrides.
        lock: keep weights in memory once they have been read, so that the system does not evict
            them.
        prefault: read all weights now, not when they are first needed. A function given here is
            called with the bytes read so far and the bytes in all.

    Attributes:
        path: the model file.
        is_demo: whether it is the demo model, because no path was given.
        config: the model's numbers.
        n_ctx: most tokens of prompt and answer together.
        n_threads: threads in use.
        isa: the instruction set in use.
        active_bytes: bytes of weights that a generated token reads.
        prompt_weights: weights that each token of a prompt is multiplied with.
        slow_types: names of the file's tensor types that have no kernels, such as "iq2_xxs". Models
            with such types are several times slower.

    Raises:
        ModelFileError: for a file that cannot be read.
        ModelConfigError: for a file whose metadata or tensors make no sense.
        UnsupportedError: for a model that pymixtral does not run.
        InvalidArgumentError: for an argument out of its range.
        NativeError: if memory or threads are short, or the system refuses to lock.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
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
        self.path = demo_path() if path is None else path_of("path", path)
        n_batch = integer("n_batch", n_batch, 1)
        with ExitStack() as stack:
            file = stack.enter_context(GGUFFile(self.path))
            override(file, experts_used, overrides)
            self.config: ModelConfig = ModelConfig.from_gguf(file)
            self._tokenizer = open_tokenizer(file.metadata, file.path, self.config.n_vocab)
            self.n_ctx = context_length(self.config, n_ctx)
            weights = load_weights(file, self.config)
            self.slow_types = slow_types(tensor.type for tensor in file.tensors.values())
            self.active_bytes = weights.active_bytes(self.config.n_experts_used)
            self.prompt_weights = weights.prompt_weights(self.config.n_experts_used)
            model = Model(weights, self.config, n_threads=n_threads)
            stack.callback(model.close)
            self._context = model.context
            self.isa, self.n_threads = model.context.isa, model.context.n_threads
            if lock:
                residence.lock(file.maps.values())
            if prefault:
                residence.prefault(file.maps.values(), self.n_threads, prefault if callable(prefault) else None)
            self._engine = Engine(model, str(self.path), self.n_ctx, n_batch, kv_type, file.check_length)
            self._resources = stack.pop_all()

    @property
    def prefetch(self) -> str:
        """The prefetch hint in use, "near" or "far"; generation measures which is faster here."""
        return self._context.prefetch

    # --- Text -------------------------------------------------------------------------------------

    def tokenize(self, text: str, add_bos: bool = True, *, parse_special: bool = False) -> list[int]:
        """Turn text into token ids.

        Args:
            text: what to encode.
            add_bos: begin with the begin-of-text id, if the model wants one.
            parse_special: names of control tokens, such as "</s>", become those tokens. This is for
                text from a trusted template; by default they are ordinary text.

        Returns:
            The ids; an empty list for an empty text without a begin-of-text id.

        Raises:
            UnsupportedError: if the file has no tokenizer.
            InvalidArgumentError: for anything but a str, and for a str with lone surrogates.
            ClosedError: after close().
        """
        return self._text_tokenizer().encode(text_of("text", text), add_bos, parse_special=parse_special)

    def tokenize_parts(self, text: str) -> Iterator[list[int]]:
        """Turn a long text into token ids part by part, in little memory.

        Args:
            text: what to encode, of many megabytes perhaps.

        Returns:
            An iterator of lists, which together are the ids of tokenize(text).

        Raises:
            UnsupportedError: if the file has no tokenizer.
            InvalidArgumentError: for anything but a str, and for a str with lone surrogates.
            ClosedError: after close().
        """
        return self._text_tokenizer().encode_parts(text_of("text", text))

    def control_names(self, text: str) -> list[str]:
        """Find the names of control tokens, such as "</s>", that a text spells out.

        Without parse_special they are ordinary text.

        Args:
            text: what to search.

        Returns:
            The names, each once, in the order of the text.

        Raises:
            UnsupportedError: if the file has no tokenizer.
            InvalidArgumentError: for anything but a str.
            ClosedError: after close().
        """
        return self._text_tokenizer().control_names(text_of("text", text))

    def token_bytes(self, id: int) -> bytes:
        """Look up the bytes of one token, such as a grammar needs; for text see detokenize().

        Args:
            id: a token id, 0 to n_vocab - 1.

        Returns:
            The bytes, with the space that some tokens begin with. They need not be valid UTF-8 by
            themselves. A control token has none.

        Raises:
            UnsupportedError: if the file has no tokenizer.
            InvalidArgumentError: for an id outside the vocabulary.
            ClosedError: after close().
        """
        return self._text_tokenizer().token_bytes(id)

    def detokenize(self, ids: Ids) -> str:
        """Turn token ids into text.

        Args:
            ids: what to decode; may be empty.

        Returns:
            The text, without the space that tokenize() puts before a text. Control tokens have no
            text.

        Raises:
            UnsupportedError: if the file has no tokenizer.
            InvalidArgumentError: for an id outside the vocabulary.
            ClosedError: after close().
        """
        return self._text_tokenizer().decode(ids)

    def generate(
        self,
        prompt: str | Ids,
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] | None = None,
        ignore_eos: bool = False,
        parse_special: bool = False,
        **sampling: Unpack[Sampling],
    ) -> Completion:
        """Generate the text that follows a prompt.

        Args:
            prompt: a text, or token ids.
            max_tokens: the most tokens to generate; None: until the model ends the text or the
                context is full.
            stop: one or several strings that end the text and are not part of it. The name of a
                control token, such as "</s>", stands for that token, which has no text.
            ignore_eos: never draw an end token, so that the model goes on.
            parse_special: names of control tokens in the prompt become those tokens; see
                tokenize().
            **sampling: the fields of pymixtral.sampling.parameters.SamplingParameters, which has
                their defaults: temperature, top_k, top_p, min_p, typical_p, the penalties,
                logit_bias and seed.

        Returns:
            The text, its tokens, why it ended, and how long it took.

        Raises:
            InvalidArgumentError: for arguments out of range, of another type, or unknown.
            ContextLengthError: before anything is computed, if the prompt is longer than n_ctx.
            UnsupportedError: for a prompt or stop strings of text, if the file has no tokenizer.
            NonFiniteError: if the model's weights lead to NaN or infinity.
            ModelFileError: if the model's file was shortened while in use.
            ClosedError: after close().
        """
        # For the whole text, so that no other thread replaces the cache between two tokens.
        with self._engine.alone():
            generation = self.stream(
                prompt, max_tokens=max_tokens, stop=stop, ignore_eos=ignore_eos, parse_special=parse_special, **sampling
            )
            text = "".join(generation)
        assert generation.finish_reason is not None  # nobody else can close it
        return Completion(text, generation.tokens, generation.finish_reason, generation.stats)

    def stream(
        self,
        prompt: str | Ids,
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] | None = None,
        ignore_eos: bool = False,
        parse_special: bool = False,
        progress: Callable[[int, int], None] | None = None,
        **sampling: Unpack[Sampling],
    ) -> Generation:
        """Generate text as generate() does, piece by piece.

        Args:
            prompt: as for generate().
            max_tokens: as for generate().
            stop: as for generate().
            ignore_eos: as for generate().
            parse_special: as for generate().
            progress: called while a long prompt is computed, with the tokens computed so far and
                the tokens in all.
            **sampling: as for generate().

        Returns:
            An iterator of pieces of the text, each yielded as soon as it is certain. No piece ends
            inside a character. The iterator has tokens, finish_reason and stats, and may be dropped
            or closed midway.

        Raises:
            InvalidArgumentError: for arguments out of range, of another type, or unknown.
            ContextLengthError: if the prompt is longer than n_ctx.
            UnsupportedError: for a prompt or stop strings of text, if the file has no tokenizer.
            ClosedError: after close().
        """
        self._engine.check_open()
        refuse_unknown(sampling, _GENERATE, "generate() and stream()")
        parameters = SamplingParameters(**sampling)
        eos_ids = self._tokenizer.eos_ids if self._tokenizer else frozenset()
        stop_strings, stop_ids = self._stops(stop)
        if max_tokens is not None:
            max_tokens = integer("max_tokens", max_tokens, 0)
        ids = self._prompt_ids(prompt, parse_special)
        sampler = Sampler(
            parameters, n_vocab=self.config.n_vocab, eos_ids=eos_ids, ignore_eos=ignore_eos, n_prompt=len(ids)
        )
        tokenizer = self._text_tokenizer() if stop_strings else self._tokenizer
        decoder = None
        if tokenizer:
            decoder = tokenizer.stream(begins_text=not any(tokenizer.has_text(i) for i in ids.tolist()))
        return Generation(
            partial(self._engine.next_logits, progress=progress),
            ids,
            n_ctx=self.n_ctx,
            max_tokens=max_tokens,
            draw=partial(self._engine.draw, sampler),
            decoder=decoder,
            stop=stop_strings,
            eos_ids=eos_ids | stop_ids,
            pass_bytes=self.active_bytes,
        )

    # --- Numbers ----------------------------------------------------------------------------------

    def logits(self, tokens: Ids, last_only: bool = False, *, first: int = 0) -> F32:
        """Compute the logits of what follows each token.

        Args:
            tokens: 1 to n_ctx ids, taken as they are: no begin-of-text id is added.
            last_only: return only the logits after the last token, which is less work.
            first: index of the first token whose logits are returned, 0 to n_tokens - 1. Tokens
                before it that are in the cache are not computed.

        Returns:
            float32 [n_tokens - first, n_vocab], or [n_vocab] with last_only.

        Raises:
            InvalidArgumentError: for ids outside the vocabulary, and other arguments out of range.
            ContextLengthError: for more than n_ctx ids.
            NonFiniteError: if the model's weights lead to NaN or infinity.
            ModelFileError: if the model's file was shortened while in use.
            ClosedError: after close().
        """
        ids = self._checked_ids("tokens", tokens)
        first = integer("first", first, 0)
        if first >= len(ids):
            raise InvalidArgumentError(
                f"expected first to be less than the number of tokens, {len(ids)}, found {first}"
            )
        rows, _ = self._engine.logits(ids, len(ids) - 1 if last_only else first)
        return rows[0] if last_only else rows

    def observers(self) -> list[ops.Observer]:
        """Make empty observers for observe().

        Returns:
            One for each layer.

        Raises:
            ClosedError: after close().
        """
        return self._engine.observers()

    def observe(self, tokens: Ids, observers: Sequence[ops.Observer]) -> F32:
        """Run a text through the model and add up the squared inputs of its matrices.

        This is for calibration; see pymixtral.evaluation.calibration.

        Args:
            tokens: 1 to n_ctx ids.
            observers: one for each layer; they are added to. After an exception they hold a part of
                the text.

        Returns:
            The input of the output matrix, float32 [n_tokens, hidden].

        Raises:
            InvalidArgumentError: for ids outside the vocabulary.
            ContextLengthError: for more than n_ctx ids.
            NonFiniteError: if the model's weights lead to NaN or infinity.
            ClosedError: after close().
        """
        return self._engine.observe(self._checked_ids("tokens", tokens), observers)

    def forget(self) -> None:
        """Empty the cache: the next text is computed from its first token.

        Raises:
            ClosedError: after close().
        """
        self._engine.forget()

    # --- Closing ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Free threads and memory, once a running computation has ended.

        Everything that needs the model raises ClosedError afterwards. A second close() does
        nothing.
        """
        self._engine.close()
        self._resources.close()

    def __enter__(self) -> Mixtral:
        self._engine.check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- Arguments --------------------------------------------------------------------------------

    def _text_tokenizer(self) -> Tokenizer:
        self._engine.check_open()
        if self._tokenizer is None:
            raise UnsupportedError(
                f"{self.path}: expected the keys tokenizer.ggml.*, found no tokenizer: pass token ids instead of text"
            )
        return self._tokenizer

    def _stops(self, stop: str | Sequence[str] | None) -> tuple[StopStrings, frozenset[int]]:
        """The stop strings, and the control tokens that some of them name."""
        strings = StopStrings(stop).strings
        if not strings:
            return StopStrings(None), frozenset()
        tokenizer = self._text_tokenizer()
        ids = {string: tokenizer.control_id(string) for string in strings}
        return StopStrings([string for string in strings if ids[string] is None]), frozenset(
            id for id in ids.values() if id is not None
        )

    def _prompt_ids(self, prompt: str | Ids, parse_special: bool) -> I32:
        """The ids of a prompt. One that is far too long is refused before it is tokenized.

        Tokenizing takes seconds for some megabytes.
        """
        if isinstance(prompt, str):
            fewest = self._text_tokenizer().fewest_tokens(prompt)
            if fewest > self.n_ctx:
                raise too_long("prompt", f"{fewest} or more", self.n_ctx, self.config)
            prompt = self.tokenize(prompt, parse_special=parse_special)
        elif not isinstance(prompt, (Sequence, np.ndarray)) or isinstance(prompt, (bytes, bytearray)):
            text_of("prompt", prompt)  # says what to do with bytes, None and the like
        return self._checked_ids("prompt", prompt)

    def _checked_ids(self, name: str, tokens: Ids) -> I32:
        self._engine.check_open()
        return checked_ids(name, tokens, self.n_ctx, self.config)
