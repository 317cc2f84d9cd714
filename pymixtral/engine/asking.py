"""Questions: requests that belong together, and how a thread or a task waits for their results."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from pymixtral.engine.engine import Engine
from pymixtral.engine.requests import Event, Finished, Progress, Request

T = TypeVar("T")


@dataclass(frozen=True)
class Question(Generic[T]):
    """Requests whose results together are an answer.

    Attributes:
        stages: requests that are sent together. Each stage waits for the one before, which leaves
            its prompts in the prefix cache.
        others: requests that the engine begins by itself, as siblings of those.
        answer: makes the answer of the results: of the stages in order, then of the others.
    """

    stages: Sequence[Sequence[Request]]
    answer: Callable[[list[Any]], T]
    others: Sequence[Request] = ()

    @property
    def requests(self) -> list[Request]:
        """All requests, in the order of their results."""
        return [request for stage in self.stages for request in stage] + list(self.others)


def ask(engine: Engine, question: Question[T], progress: Callable[[int, int], None] | None = None) -> T:
    """Send requests and wait for the answer. Any exception meanwhile cancels all of them.

    Args:
        engine: computes.
        question: new requests.
        progress: is given the tokens of a text computed so far and those in all.

    Returns:
        The answer.

    Raises:
        ClosedError: after close().
        Exception: whatever ends a request.
    """
    events: queue.SimpleQueue[tuple[Request, Event]] = queue.SimpleQueue()
    for request in question.requests:
        request.listen(partial(_post, events.put, request))
    results: dict[Request, Any] = {}
    interests = []  # in case a second exception comes before the requests are cancelled
    try:
        for stage, others in _stages(question):
            interests.append(engine.submit(stage, others))
            wanted = len(results) + len(stage) + len(others)
            while len(results) < wanted:
                _take(results, events.get(), progress)
    except BaseException:
        for request in question.requests:
            engine.interrupt(request)
        raise
    return question.answer([results[request] for request in question.requests])


async def ask_async(engine: Engine, question: Question[T]) -> T:
    """Send requests and await the answer. A cancelled task cancels all of them.

    Args:
        engine: computes.
        question: new requests.

    Returns:
        The answer.

    Raises:
        ClosedError: after close().
        Exception: whatever ends a request.
    """
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[tuple[Request, Event]] = asyncio.Queue()
    for request in question.requests:
        request.listen(partial(_post_to_task, loop, events, request))
    results: dict[Request, Any] = {}
    interests = []
    try:
        for stage, others in _stages(question):
            interests.append(engine.submit(stage, others))
            wanted = len(results) + len(stage) + len(others)
            while len(results) < wanted:
                _take(results, await events.get(), None)
    except BaseException:
        for request in question.requests:
            engine.interrupt(request)
        raise
    return question.answer([results[request] for request in question.requests])


def _post(put: Callable[[tuple[Request, Event]], object], request: Request, event: Event) -> None:
    put((request, event))


def _post_to_task(
    loop: asyncio.AbstractEventLoop, events: asyncio.Queue[tuple[Request, Event]], request: Request, event: Event
) -> None:
    loop.call_soon_threadsafe(events.put_nowait, (request, event))


def _stages(question: Question[Any]) -> list[tuple[Sequence[Request], Sequence[Request]]]:
    """What is sent in each stage, and what the engine begins by itself then."""
    last = len(question.stages) - 1
    return [(stage, question.others if i == last else ()) for i, stage in enumerate(question.stages)]


def _take(
    results: dict[Request, Any], item: tuple[Request, Event], progress: Callable[[int, int], None] | None
) -> None:
    request, event = item
    if isinstance(event, BaseException):
        raise event
    if isinstance(event, Finished):
        results[request] = event.result
    elif progress and isinstance(event, Progress):
        progress(event.done, event.total)
