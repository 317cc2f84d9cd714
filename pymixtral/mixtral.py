"""Mixtral: an open model file that turns a prompt into text."""

from __future__ import annotations

import mmap
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from inspect import signature
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, overload

from pymixtral.arguments import integer, number, path_of, refuse_unknown, shown
from pymixtral.arrays import U8, Ids
from pymixtral.chatting import Answer, AnswerStream, Messages
from pymixtral.core import Core
from pymixtral.demo import demo_path
from pymixtral.engine.adapters import Adapters, Choice
from pymixtral.engine.asking import ask
from pymixtral.engine.completion import Completion
from pymixtral.engine.engine import Engine
from pymixtral.engine.stats import EngineStats
from pymixtral.engine.stream import Generation
from pymixtral.errors import MemoryWarning
from pymixtral.files.gguf import GGUFFile
from pymixtral.hub import fetch
from pymixtral.memory import CacheSize, cache_size, room
from pymixtral.model import residence
from pymixtral.model.adapter import Adapter
from pymixtral.model.config import ModelConfig
from pymixtral.model.forward import Model
from pymixtral.model.overrides import ExpertsUsed, Override, override, with_activations, with_experts
from pymixtral.model.weights import ModelWeights, load_weights
from pymixtral.model_adapters import ModelAdapters, opened_adapters
from pymixtral.model_measuring import ModelMeasuring
from pymixtral.model_numbers import ModelNumbers
from pymixtral.model_sessions import ModelSessions
from pymixtral.model_text import ModelText
from pymixtral.options import ChatOptions, Options
from pymixtral.questions import generations
from pymixtral.request_factory import RequestFactory
from pymixtral.text.tokenizer import open_tokenizer

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack


class Mixtral(ModelText, ModelNumbers, ModelAdapters, ModelSessions, ModelMeasuring):
    """A model of the Mixtral family, ready to use by any number of threads and tasks at the same time.

    Requests are computed together: each gets the same result to the bit as alone. Keys and values of
    earlier texts stay in a prefix cache, and a text that begins like one of them is computed from the
    first token that differs. An exception in a caller who waits, such as KeyboardInterrupt, ends his
    request at once; the model stays usable. See also pymixtral.AsyncMixtral.

    Args:
        path: a GGUF file; None: the demo model that comes with the package.
        n_ctx: most tokens of prompt and answer together, at most the model's own context length;
            None: the model's own, as far as cache_bytes, or half of the memory left by the weights,
            allow. The repr shows it.
        n_threads: 1 to 256; None: as many as the CPU affinity, the cgroup's quota and the number of
            physical cores allow.
        n_batch: how many tokens of prompts are computed at once; None: 512, or where the model is
            larger than memory as many as a quarter of that has room for. It changes memory and speed,
            never the result.
        max_batch: the most requests that are computed together, 1 to 256; the others wait.
        cache_bytes: memory for keys and values of all requests and of the prefix cache, at least
            one context; None: four contexts, or what half of the memory left by the weights allows.
        pace: the longest pass in seconds while texts are generated: a prompt that arrives is cut so
            that they are not delayed more; None: eight times a pass without a prompt.
        kv_type: "f16", "f32" or "q8_0", the type of cached keys and values. q8_0 takes 53% of the
            memory of f16; the model's head dimension must be a multiple of 32.
        experts_used: experts for each token, one number or a list of one for each layer; None: as
            many as the file says.
        expert_min_p: experts that the router finds less than this part as likely as a token's first
            one are left out, 0 to 1: the model is faster and less exact. 0: none are.
        activations: "int8" or "int16": how finely activations are rounded where they meet quantized
            weights. int16 costs prompts about half of their speed, and generation little, since that
            waits for memory.
        overrides: metadata that replaces the file's and is checked like it, such as
            {"llama.attention.sliding_window": 4096}; see pymixtral.model.overrides.
        adapters: low-rank adapters to load: a file, a folder or an Adapter for each name; see
            load_adapter().
        adapter: the adapter, or several with their scales, of requests that say nothing; see
            pymixtral.Options. None: none.
        lock: keep weights in memory once they have been read, so that the system does not evict
            them; of a model larger than memory as many as fit.
        prefault: read all weights now, not when they are first needed. A function given here is
            called with the bytes read so far and the bytes in all.

    Attributes:
        path: the model file.
        is_demo: whether it is the demo model, because no path was given.
        config: the model's numbers.
        n_ctx: most tokens of prompt and answer together.
        kv_type: the type of cached keys and values.
        cache_bytes: bytes of the cache.
        n_threads: threads in use.
        isa: the instruction set in use.
        active_bytes: bytes of weights that a generated token reads.
        prompt_weights: weights that each token of a prompt is multiplied with.
        core: what the other rooms of the package share of it. It is no part of the interface.

    Raises:
        ModelFileError: for a file that cannot be read.
        ModelConfigError: for a file whose metadata or tensors make no sense.
        UnsupportedError: for a model that pymixtral does not run.
        AdapterError: for an adapter that cannot be read, or does not fit.
        InvalidArgumentError: for an argument out of its range, or an unknown one.
        NativeError: if memory for the cache or threads are short, or the system refuses to lock.

    Warns:
        MemoryWarning: if the model is larger than the memory that is available.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        n_ctx: int | None = None,
        n_threads: int | None = None,
        n_batch: int | None = None,
        max_batch: int = 16,
        cache_bytes: int | None = None,
        pace: float | None = None,
        kv_type: str = "f16",
        experts_used: ExpertsUsed | None = None,
        expert_min_p: float = 0.0,
        activations: str = "int8",
        overrides: Mapping[str, Override] | None = None,
        adapters: Mapping[str, str | os.PathLike[str] | Adapter] | None = None,
        adapter: Choice = None,
        lock: bool = False,
        prefault: bool | Callable[[int, int], None] = False,
        **unknown: NoReturn,  # a type checker lets none through
    ) -> None:
        refuse_unknown(unknown, [name for name in signature(Mixtral).parameters if name != "unknown"], "Mixtral()")
        self.is_demo = path is None
        self.path = demo_path() if path is None else path_of("path", path)
        n_batch = None if n_batch is None else integer("n_batch", n_batch, 1)
        max_batch = integer("max_batch", max_batch, 1, 256)
        pace = None if pace is None else number("pace", pace, 1e-3, 1e6)
        with ExitStack() as stack:
            file = stack.enter_context(GGUFFile(self.path))
            different = override(file, experts_used, overrides)
            config = with_experts(ModelConfig.from_gguf(file), experts_used, expert_min_p)
            self.config: ModelConfig = with_activations(config, activations)
            tokenizer = open_tokenizer(file.metadata, file.path, self.config.n_vocab)
            loaded = Adapters(opened_adapters(adapters, self.config), adapter)
            weights = load_weights(file, self.config)
            size = self._cache_size(file, n_ctx=n_ctx, kv_type=kv_type, cache_bytes=cache_bytes)
            self.n_ctx, self.kv_type, self.cache_bytes = size.n_ctx, kv_type, size.bytes
            space = room(file, self.config, size, kv_type, sum(map(len, self._mapped(file))))
            n_batch = space.n_batch if n_batch is None else n_batch
            if space.shortage:
                warnings.warn(f"{self.path}: {space.shortage}", MemoryWarning, stacklevel=2)
            self.active_bytes = weights.active_bytes(self.config.experts_used)
            self.prompt_weights = weights.prompt_weights(self.config.experts_used)
            model = self._model(weights, n_threads)
            stack.callback(model.close)
            self._context, self._n_batch = model.context, n_batch
            self._timed = {}
            self.isa, self.n_threads = model.context.isa, model.context.n_threads
            if lock and space.shortage:
                residence.lock_part(model.weights, space.lockable)
            elif lock:
                residence.lock(self._mapped(file))
            if prefault:
                residence.prefault(self._mapped(file), self.n_threads, prefault if callable(prefault) else None)
            source = str(self.path)
            self.metadata = MappingProxyType(dict(file.metadata))
            factory = RequestFactory(self.config, tokenizer, self.n_ctx, self.active_bytes, source, loaded)
            engine = self._engine(
                model,
                n_pages=size.n_pages,
                kv_type=kv_type,
                max_running=max_batch,
                n_batch=n_batch,
                pace=pace,
                check_file=file.check_length,
                adapters=loaded,
            )
            self.core = Core(file, different, factory, engine)
            self._resources = stack.pop_all()

    # --- What a model in several parts does otherwise ---------------------------------------------

    def _cache_size(self, file: GGUFFile, **asked: Any) -> CacheSize:
        return cache_size(self.config, sum(tensor.data.nbytes for tensor in file.tensors.values()), **asked)

    def _model(self, weights: ModelWeights, n_threads: int | None) -> Model:
        return Model(weights, self.config, n_threads=n_threads)

    def _mapped(self, file: GGUFFile) -> Iterable[mmap.mmap | U8]:
        """The bytes that this process reads."""
        return file.maps.values()

    def _engine(self, model: Model, **options: Any) -> Engine:
        return Engine(model, str(self.path), **options)

    @classmethod
    def from_pretrained(
        cls,
        repository: str,
        filename: str = "*.gguf",
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        offline: bool = False,
        **options: Any,
    ) -> Mixtral:
        """Open a model of the Hugging Face Hub, which is downloaded once.

        Args:
            repository: "organization/name".
            filename: the file's name in the repository, or a pattern that one model fits, such as
                "*Q4_K_M.gguf". The shards of a split model count as one.
            revision: a branch, tag or commit; None: the main branch.
            cache_dir: where files are kept; None: the Hub's own folder (HF_HOME).
            offline: use only what is in the cache.
            **options: those of Mixtral.

        Returns:
            The model.

        Raises:
            InvalidArgumentError: if no file or several models fit the pattern.
            ModelFileError: if the repository cannot be reached or read.
            UnsupportedError: if the package huggingface_hub is missing.
            PymixtralError: as Mixtral.
        """
        path = fetch(repository, filename, revision=revision, cache_dir=cache_dir, offline=offline)
        return cls(path, **options)

    @property
    def prefetch(self) -> str:
        """The prefetch hint in use, such as "near" or "far:4096"; generation measures which is fastest here."""
        return self._context.prefetch

    # --- Text -------------------------------------------------------------------------------------

    @overload
    def generate(  # type: ignore[overload-overlap]
        self, prompt: str | Ids, *, n: int = 1, best_of: int | None = None, **options: Unpack[Options]
    ) -> Completion: ...

    @overload
    def generate(
        self,
        prompt: Sequence[str] | Sequence[Ids],
        *,
        n: int = 1,
        best_of: int | None = None,
        **options: Unpack[Options],
    ) -> list[Completion]: ...

    def generate(
        self,
        prompt: str | Ids | Sequence[str] | Sequence[Ids],
        *,
        n: int = 1,
        best_of: int | None = None,
        **options: Unpack[Options],
    ) -> Completion | list[Completion]:
        """Generate the text that follows a prompt, or those that follow several.

        Args:
            prompt: a text or token ids; or a list of such, which are computed together.
            n: how many texts of each prompt to generate. The prompt is computed once. With a seed
                the first is the text that n=1 gives.
            best_of: generate so many, and give the n with the highest mean log-probability of a
                token, best first; None: n.
            **options: max_tokens, stop, stop_token_ids, ignore_eos, parse_special, logprobs, prompt_logprobs,
                routing, logits_processor, prompt_lookup, context_shift, priority, timeout, cache_salt, adapter; for
                structured output json_schema, json_object, regex, choice and lark; and
                those of sampling: temperature, top_k, top_p, min_p, typical_p, repetition_penalty,
                presence_penalty, frequency_penalty, penalty_window, dry_multiplier, dry_base,
                dry_allowed_length, dry_window, dry_breakers, top_n_sigma, xtc_probability,
                xtc_threshold, mirostat_tau, mirostat_eta, logit_bias, min_tokens, bad_words,
                allowed_token_ids, seed. pymixtral.Options explains them.

        Returns:
            The text, its tokens, why it ended, and how long it took; of several prompts a list.
            With n the further texts of a prompt are in `others`.

        Raises:
            InvalidArgumentError: for arguments out of range, of another type, or unknown.
            ContextLengthError: before anything is computed, if the prompt is longer than n_ctx.
            UnsupportedError: for a prompt or stop strings of text, if the file has no tokenizer, and
                for routing of a dense model.
            NonFiniteError: if the model's weights lead to NaN or infinity.
            ModelFileError: if the model's file was shortened while in use.
            ClosedError: after close().
        """
        self.core.engine.check_open()
        return ask(self.core.engine, generations(self.core.factory, prompt, n, best_of, options))

    def stream(
        self,
        prompt: str | Ids,
        *,
        progress: Callable[[int, int], None] | None = None,
        **options: Unpack[Options],
    ) -> Generation:
        """Generate text as generate() does, piece by piece.

        Args:
            prompt: a text, or token ids.
            progress: called by the reader while a long prompt is computed, with the tokens computed
                so far and the tokens in all.
            **options: max_tokens, stop, timeout, temperature, seed and the others that the help of
                generate() lists and pymixtral.Options explains.

        Returns:
            An iterator of pieces of the text, each yielded as soon as it is certain. No piece ends
            inside a character. The iterator has tokens, finish_reason and stats, and may be dropped,
            closed or cancelled midway, from any thread.

        Raises:
            InvalidArgumentError: for arguments out of range, of another type, or unknown.
            ContextLengthError: if the prompt is longer than n_ctx.
            UnsupportedError: for a prompt or stop strings of text, if the file has no tokenizer.
            ClosedError: after close().
        """
        self.core.engine.check_open()
        [[request]] = self.core.factory.continuations([prompt], options, streams=True)
        return Generation(self.core.engine, request, progress)

    # --- Conversations ----------------------------------------------------------------------------

    def chat(
        self, messages: Messages, *, n: int = 1, best_of: int | None = None, **options: Unpack[ChatOptions]
    ) -> Answer:
        """Answer in a conversation.

        Args:
            messages: the messages so far, as OpenAI's interface has them:
                [{"role": "user", "content": "..."}, ...]; see docs/chat.md.
            n: how many answers to generate.
            best_of: how many to choose them from; None: n.
            **options: tools, chat_format, template_variables and continue_final, which
                pymixtral.ChatOptions explains; and max_tokens, stop, timeout, temperature, seed and
                the others that the help of generate() lists and pymixtral.Options explains.

        Returns:
            The answer: its text, the calls of tools, and `message`, which is the conversation's next.

        Raises:
            InvalidArgumentError: for messages, tools and other arguments that make no sense.
            UnsupportedError: if no format fits, or the format has no tools.
            ContextLengthError: if the conversation is longer than n_ctx.
            PymixtralError: as generate().
        """
        self.core.engine.check_open()
        return ask(self.core.engine, self.core.conversation(messages, options, "chat()").question(n, best_of))

    def stream_chat(
        self,
        messages: Messages,
        *,
        progress: Callable[[int, int], None] | None = None,
        **options: Unpack[ChatOptions],
    ) -> AnswerStream:
        """Answer as chat() does, piece by piece.

        Args:
            messages: as for chat().
            progress: as for stream().
            **options: as for chat().

        Returns:
            An iterator of pieces of the answer's text; its events() has the calls of tools, too.

        Raises:
            PymixtralError: as chat().
        """
        self.core.engine.check_open()
        talk = self.core.conversation(messages, options, "stream_chat()")
        generation = Generation(self.core.engine, talk.requests(1)[0], progress)
        return AnswerStream(generation, talk.parser(), talk.prompt.continued)

    # --- The engine -------------------------------------------------------------------------------

    def stats(self) -> EngineStats:
        """Describe the requests, the cache and the work so far.

        Raises:
            ClosedError: after close().
        """
        return self.core.engine.stats()

    def forget(self) -> None:
        """Empty the prefix cache: the next text is computed from its first token.

        Raises:
            ClosedError: after close().
        """
        self.core.engine.forget()

    # --- Closing ----------------------------------------------------------------------------------

    def close(self) -> None:
        """End all computations, and free threads and memory.

        Whoever waits for a text gets ClosedError, and so does everything that needs the model
        afterwards. A second close() does nothing.
        """
        self.core.engine.close()
        self._resources.close()

    def __enter__(self) -> Self:
        self.core.engine.check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"<Mixtral {shown(self.path.name)}: n_ctx {self.n_ctx}, kv_type {self.kv_type}, "
            f"cache {self.cache_bytes / 1e6:.0f} MB, {self.n_threads} threads, {self.isa}>"
        )
