"""AsyncMixtral: a model for programs that await."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, overload

from pymixtral.arguments import integer
from pymixtral.arrays import F32, Ids
from pymixtral.chatting import Answer, AsyncAnswerStream, Conversation, Messages
from pymixtral.engine.adapters import Choice
from pymixtral.engine.asking import Question, ask_async
from pymixtral.engine.completion import Completion
from pymixtral.engine.generation import Continuation
from pymixtral.engine.stats import EngineStats
from pymixtral.engine.stream import AsyncGeneration
from pymixtral.mixtral import Mixtral
from pymixtral.model.adapter import Adapter
from pymixtral.model.routing import Routing
from pymixtral.options import ChatOptions, How, Options
from pymixtral.questions import MAX_SAMPLES, Score, embeddings, generations, logits, routings, scores
from pymixtral.threads import starting_threads

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")


async def _threaded(make: Callable[[], T]) -> T:
    """Calls what may take seconds, such as tokenizing megabytes, in a thread."""
    with starting_threads():
        return await asyncio.to_thread(make)


class AsyncMixtral:
    """A model of the Mixtral family for any number of tasks, on one or several event loops.

    A task that is cancelled cancels its request. Threads may use `model` at the same time. What is
    awaited tokenizes texts and compiles grammars in a thread, so that other tasks go on; stream() and
    stream_chat(), which are not awaited, do so at once.

    Args:
        model: a GGUF file, or a Mixtral that is open; None: the demo model.
        **options: those of Mixtral, for a file.

    Attributes:
        model: the model, with its numbers and its tokenizer.

    Raises:
        PymixtralError: as Mixtral.
    """

    def __init__(self, model: str | os.PathLike[str] | Mixtral | None = None, **options: Any) -> None:
        self.model = model if isinstance(model, Mixtral) and not options else Mixtral(model, **options)  # type: ignore[arg-type]
        self._core = self.model.core

    @overload
    async def generate(  # type: ignore[overload-overlap]
        self, prompt: str | Ids, *, n: int = 1, best_of: int | None = None, **options: Unpack[Options]
    ) -> Completion: ...

    @overload
    async def generate(
        self,
        prompt: Sequence[str] | Sequence[Ids],
        *,
        n: int = 1,
        best_of: int | None = None,
        **options: Unpack[Options],
    ) -> list[Completion]: ...

    async def generate(
        self,
        prompt: str | Ids | Sequence[str] | Sequence[Ids],
        *,
        n: int = 1,
        best_of: int | None = None,
        **options: Unpack[Options],
    ) -> Completion | list[Completion]:
        """Generate the text that follows a prompt, or those that follow several; see Mixtral.

        Args:
            prompt: a text or token ids; or a list of such.
            n: how many texts of each prompt to generate.
            best_of: how many to choose them from; None: n.
            **options: see pymixtral.Options.

        Returns:
            The text; of several prompts a list.

        Raises:
            PymixtralError: as Mixtral.generate().
        """
        self._core.engine.check_open()
        question = await _threaded(partial(generations, self._core.factory, prompt, n, best_of, options))
        return await ask_async(self._core.engine, question)

    def stream(self, prompt: str | Ids, **options: Unpack[Options]) -> AsyncGeneration:
        """Generate text as generate() does, piece by piece: `async for piece in model.stream(...)`.

        Args:
            prompt: a text, or token ids.
            **options: see pymixtral.Options.

        Returns:
            An asynchronous iterator of pieces of the text.

        Raises:
            PymixtralError: as Mixtral.stream().
            RuntimeError: if no event loop runs.
        """
        self._core.engine.check_open()
        [[request]] = self._core.factory.continuations([prompt], options, streams=True)
        return AsyncGeneration(self._core.engine, request)

    async def streams(self, prompt: str | Ids, n: int, **options: Unpack[Options]) -> list[AsyncGeneration]:
        """Begin several texts of a prompt at the same time, to be read piece by piece.

        Args:
            prompt: a text, or token ids. It is computed once.
            n: how many texts, 1 to 128.
            **options: see pymixtral.Options.

        Returns:
            An asynchronous iterator for each of the texts that generate() gives with this n.

        Raises:
            PymixtralError: as stream().
        """
        self._core.engine.check_open()
        n = integer("n", n, 1, MAX_SAMPLES)
        found = await _threaded(partial(self._core.factory.continuations, [prompt], options, n, streams=True))
        return AsyncGeneration.several(self._core.engine, [request for (request,) in found])

    async def chat(
        self, messages: Messages, *, n: int = 1, best_of: int | None = None, **options: Unpack[ChatOptions]
    ) -> Answer:
        """Answer in a conversation; see Mixtral.

        Args:
            messages: the messages so far.
            n: how many answers to generate.
            best_of: how many to choose them from; None: n.
            **options: see pymixtral.ChatOptions.

        Returns:
            The answer.

        Raises:
            PymixtralError: as Mixtral.chat().
        """
        self._core.engine.check_open()

        def made() -> Question[Answer]:
            return self._core.conversation(messages, options, "chat()").question(n, best_of)

        return await ask_async(self._core.engine, await _threaded(made))

    def stream_chat(self, messages: Messages, **options: Unpack[ChatOptions]) -> AsyncAnswerStream:
        """Answer as chat() does, piece by piece: `async for piece in model.stream_chat(...)`.

        Args:
            messages: as for chat().
            **options: as for chat().

        Returns:
            An asynchronous iterator of pieces of the answer's text.

        Raises:
            PymixtralError: as Mixtral.stream_chat().
            RuntimeError: if no event loop runs.
        """
        self._core.engine.check_open()
        talk = self._core.conversation(messages, options, "stream_chat()")
        return self._answers(talk, talk.requests(1))[0]

    async def stream_chats(self, messages: Messages, n: int, **options: Unpack[ChatOptions]) -> list[AsyncAnswerStream]:
        """Begin several answers at the same time, to be read piece by piece.

        Args:
            messages: as for chat(). The conversation is computed once.
            n: how many answers, 1 to 128.
            **options: as for chat().

        Returns:
            An asynchronous iterator for each of the answers that chat() gives with this n.

        Raises:
            PymixtralError: as stream_chat().
        """
        self._core.engine.check_open()
        n = integer("n", n, 1, MAX_SAMPLES)

        def made() -> tuple[Conversation, list[Continuation]]:
            talk = self._core.conversation(messages, options, "stream_chats()")
            return talk, talk.requests(n)

        return self._answers(*await _threaded(made))

    def _answers(self, talk: Conversation, requests: Sequence[Continuation]) -> list[AsyncAnswerStream]:
        return [
            AsyncAnswerStream(generation, talk.parser(), talk.prompt.continued)
            for generation in AsyncGeneration.several(self._core.engine, requests)
        ]

    async def logits(self, tokens: Ids, last_only: bool = False, *, first: int = 0, **how: Unpack[How]) -> F32:
        """Compute the logits of what follows each token; see Mixtral.

        Args:
            tokens: 1 to n_ctx ids.
            last_only: return only the logits after the last token.
            first: index of the first token whose logits are returned.
            **how: priority, timeout, cache_salt and adapter; see pymixtral.Options.

        Returns:
            float32 [n_tokens - first, n_vocab], or [n_vocab] with last_only.

        Raises:
            PymixtralError: as Mixtral.logits().
        """
        self._core.engine.check_open()
        return await ask_async(self._core.engine, logits(self._core.factory, tokens, last_only, first, how))

    async def score(self, context: str | Ids, continuations: Sequence[str | Ids], **how: Unpack[How]) -> list[Score]:
        """Compute how likely texts are to follow another one; see Mixtral.

        Args:
            context: a text or token ids.
            continuations: texts or token ids.
            **how: priority, timeout, cache_salt and adapter; see pymixtral.Options.

        Returns:
            The scores.

        Raises:
            PymixtralError: as Mixtral.score().
        """
        self._core.engine.check_open()
        question = await _threaded(partial(scores, self._core.factory, context, continuations, how))
        return await ask_async(self._core.engine, question)

    async def embed(
        self, texts: Sequence[str | Ids], *, pooling: str = "mean", normalize: bool = False, **how: Unpack[How]
    ) -> F32:
        """Compute vectors of texts; see Mixtral.

        Args:
            texts: texts or token ids.
            pooling: "mean" or "last".
            normalize: divide each vector by its length.
            **how: priority, timeout, cache_salt and adapter; see pymixtral.Options.

        Returns:
            float32 [n, hidden].

        Raises:
            PymixtralError: as Mixtral.embed().
        """
        self._core.engine.check_open()
        question = await _threaded(partial(embeddings, self._core.factory, texts, pooling, normalize, how))
        return await ask_async(self._core.engine, question)

    async def routing(self, text: str | Ids | Messages, *, full: bool = False, **how: Unpack[How]) -> Routing:
        """Compute which experts the tokens of a text go to, in every layer; see Mixtral.

        Args:
            text: a text, token ids, or the messages of a conversation.
            full: give the router's probability of every expert, too.
            **how: priority, timeout, cache_salt and adapter; see pymixtral.Options.

        Returns:
            The experts of every token.

        Raises:
            PymixtralError: as Mixtral.routing().
        """
        self._core.engine.check_open()
        question = await _threaded(lambda: routings(self._core.factory, self._core.ids_of(text), full, how))
        return await ask_async(self._core.engine, question)

    async def forget(self) -> None:
        """Empty the prefix cache; see Mixtral.

        Raises:
            ClosedError: after aclose().
        """
        await asyncio.to_thread(self.model.forget)

    async def save_session(
        self, path: str | os.PathLike[str], text: str | Ids, *, adapter: Choice = None, force: bool = False
    ) -> None:
        """Write a text's ids, keys and values to a file; see Mixtral.

        Args:
            path: a new file.
            text: a text or token ids.
            adapter: what the text was computed with.
            force: replace a file that exists.

        Raises:
            PymixtralError: as Mixtral.save_session().
        """
        await asyncio.to_thread(partial(self.model.save_session, path, text, adapter=adapter, force=force))

    async def load_session(self, path: str | os.PathLike[str], *, adapter: Choice = None) -> list[int]:
        """Read a session into the prefix cache; see Mixtral.

        Args:
            path: a file of save_session().
            adapter: what the session was saved with.

        Returns:
            The ids of its text.

        Raises:
            PymixtralError: as Mixtral.load_session().
        """
        return await asyncio.to_thread(partial(self.model.load_session, path, adapter=adapter))

    @property
    def adapters(self) -> Mapping[str, Adapter]:
        """The adapters that are loaded now, by name; see Mixtral."""
        return self.model.adapters

    async def load_adapter(
        self, name: str, adapter: str | os.PathLike[str] | Adapter, *, replace: bool = False
    ) -> None:
        """Load a low-rank adapter; see Mixtral.

        Args:
            name: what requests call it.
            adapter: a file, a folder, or an Adapter.
            replace: whether it takes the place of one of this name.

        Raises:
            PymixtralError: as Mixtral.load_adapter().
        """
        await asyncio.to_thread(partial(self.model.load_adapter, name, adapter, replace=replace))

    def unload_adapter(self, name: str) -> None:
        """Unload an adapter; see Mixtral.

        Args:
            name: of one that is loaded.

        Raises:
            PymixtralError: as Mixtral.unload_adapter().
        """
        self.model.unload_adapter(name)

    def stats(self) -> EngineStats:
        """Describe the requests, the cache and the work so far.

        Raises:
            ClosedError: after aclose().
        """
        return self._core.engine.stats()

    async def aclose(self) -> None:
        """End all computations, and free threads and memory; see Mixtral.close()."""
        await asyncio.to_thread(self.model.close)

    async def __aenter__(self) -> AsyncMixtral:
        self._core.engine.check_open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
