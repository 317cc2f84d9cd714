"""The caller's end of a text that is being generated: an iterator for a thread, or for a task."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from pymixtral.engine.completion import Completion, FinishReason, Stats, TokenLogprob
from pymixtral.engine.engine import Engine
from pymixtral.engine.generation import Continuation, Piece
from pymixtral.engine.requests import Event, Finished, Progress, Request
from pymixtral.errors import InvalidArgumentError
from pymixtral.model.routing import Routing

if TYPE_CHECKING:
    from typing_extensions import Self


class _Reader:
    """What both iterators do with the events of a request."""

    def __init__(
        self, engine: Engine, request: Continuation, progress: Callable[[int, int], None] | None = None
    ) -> None:
        self._engine = engine
        self._request = request
        self._progress = progress
        self._over = False
        self._reading = threading.Lock()
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.completion: Completion | None = None

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the text ended, as in Completion; None until its end was read."""
        return self.completion.finish_reason if self.completion else None

    @property
    def stats(self) -> Stats:
        """The work and the time so far."""
        return self._request.stats

    @property
    def routing(self) -> Routing | None:
        """The experts of the prompt, as far as it is computed, and of the tokens that were read but the
        last; those of the whole text once its end was read. None if they were not asked for.
        """
        return self.completion.routing if self.completion else self._request.routing(len(self.tokens))

    def cancel(self) -> None:
        """End the text soon: its finish_reason becomes "cancelled". Any thread may call this."""
        self._engine.interrupt(self._request)

    def _begin_reading(self) -> None:
        if not self._reading.acquire(blocking=False):
            raise InvalidArgumentError(
                "expected one reader of a generation at a time, found another in it: read it from one thread or task"
            )

    def _take(self, event: Event) -> str:
        """The text of an event."""
        if isinstance(event, Piece):
            self.tokens += event.tokens
            self.logprobs += event.logprobs
            return event.text
        if isinstance(event, Progress):
            if self._progress:
                _call(self._progress, event)
        elif isinstance(event, Finished):
            self._over = True
            self.completion = event.result
        else:
            self._over = True
            raise event
        return ""


class Generation(_Reader, Iterator[str]):
    """An iterator over the pieces of a text, none of them empty.

    The text is generated whether or not somebody reads. It ends early when the iterator is closed,
    cancelled or dropped, from whatever thread, at the end of a `with` block, and after an exception
    while waiting for a piece, such as KeyboardInterrupt. A `break` alone does not end it while a
    variable holds it. One thread reads at a time.

    Args:
        engine: generates.
        request: a new request.
        progress: called by the reader while a long prompt is computed, with the tokens computed so
            far and those in all.

    Attributes:
        tokens: the ids of what was read.
        logprobs: theirs, if they were asked for.
        completion: the whole text; None until its end was read.

    Raises:
        ClosedError: if the model is closed.
    """

    def __init__(
        self, engine: Engine, request: Continuation, progress: Callable[[int, int], None] | None = None
    ) -> None:
        super().__init__(engine, request, progress)
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        request.listen(self._events.put)
        self._interest = engine.submit([request])

    def __next__(self) -> str:
        self._begin_reading()
        try:
            while not self._over:
                self._engine.check_process()
                text = self._take(self._events.get())
                if text:
                    return text
        except BaseException:
            self.cancel()
            raise
        finally:
            self._reading.release()
        raise StopIteration

    def close(self) -> None:
        """End the text and the iteration; the end of a `with` block does so, too."""
        self._over = True
        self.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncGeneration(_Reader, AsyncIterator[str]):
    """An asynchronous iterator over the pieces of a text, none of them empty.

    It ends early like Generation; also when the task that waits for a piece is cancelled.

    Args:
        engine: generates.
        request: a new request.
        submits: send the request to the engine; else several() does.

    Attributes:
        tokens: the ids of what was read.
        logprobs: theirs, if they were asked for.
        completion: the whole text; None until its end was read.

    Raises:
        ClosedError: if the model is closed.
        RuntimeError: if no event loop runs.
    """

    def __init__(self, engine: Engine, request: Continuation, *, submits: bool = True) -> None:
        super().__init__(engine, request)
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        request.listen(partial(_post, asyncio.get_running_loop(), self._events))
        self._interest = engine.submit([request]) if submits else None

    @classmethod
    def several(cls, engine: Engine, requests: Sequence[Continuation]) -> list[Self]:
        """Generate several texts of one prompt, which is computed once.

        Args:
            engine: generates.
            requests: new requests of the same prompt.

        Returns:
            An iterator for each text. One that is dropped, and not closed, goes on as long as another
            is held.

        Raises:
            ClosedError: if the model is closed.
            RuntimeError: if no event loop runs.
        """
        leader, *others = requests
        leader.siblings = list[Request](others)
        generations = [cls(engine, request, submits=False) for request in requests]
        interest = engine.submit([leader], others)
        for generation in generations:
            generation._interest = interest
        return generations

    async def __anext__(self) -> str:
        self._begin_reading()
        try:
            while not self._over:
                self._engine.check_process()
                text = self._take(await self._events.get())
                if text:
                    return text
        except BaseException:
            self.cancel()
            raise
        finally:
            self._reading.release()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End the text and the iteration; the end of an `async with` block does so, too."""
        self._over = True
        self.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _post(loop: asyncio.AbstractEventLoop, events: asyncio.Queue[Event], event: Event) -> None:
    loop.call_soon_threadsafe(events.put_nowait, event)


def _call(progress: Callable[[int, int], None], event: Progress) -> None:
    try:
        progress(event.done, event.total)
    except StopIteration as error:  # would end an iteration over the text without a word
        raise RuntimeError("expected progress to return, found that it raised StopIteration") from error
