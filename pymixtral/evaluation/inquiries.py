"""Inquiries: many questions to one model, answered together.

An inquiry is a generator that yields questions, is sent their answers, and returns what it has found
out. Most ask once; a conversation asks again with what was answered. The engine computes as many of
them together as it can, and gives each the same answer as alone.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Generator, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, Generic, TypeVar

from pymixtral.engine.asking import Question
from pymixtral.engine.requests import Event, Finished, Request
from pymixtral.engine.watch import Interest
from pymixtral.mixtral import Mixtral

K = TypeVar("K")
T = TypeVar("T")

Inquiry = Generator[Question[Any], Any, T]
"""Asks, and returns a T."""


@dataclass(frozen=True, eq=False)
class Asking(Generic[K, T]):
    """An inquiry to be made.

    Attributes:
        key: tells it from others; it comes back with the answer.
        inquiry: asks.
        begins: what its text begins with, or a name for that. Of inquiries in a row that begin
            alike, the first is made alone, and leaves its keys and values in the cache to the
            others. None: like no other.
    """

    key: K
    inquiry: Inquiry[T]
    begins: Hashable = None


def answers(model: Mixtral, askings: Iterable[Asking[K, T]], n_in_flight: int = 32) -> Iterator[tuple[K, T]]:
    """Make inquiries, many at a time.

    Args:
        model: answers.
        askings: the inquiries. They are taken from it as they are needed.
        n_in_flight: how many are made at a time; with twice the most that the engine computes
            together there is always one that waits.

    Yields:
        The keys and what the inquiries return, as they become ready. What is not ready when the
        iterator is closed, or when an exception comes, is cancelled.

    Raises:
        PymixtralError: what an inquiry raises, or what ends one of its requests.
    """
    events: queue.SimpleQueue[tuple[_Running[K, T], Request, Event]] = queue.SimpleQueue()
    running: set[_Running[K, T]] = set()
    line = _Line(askings, n_in_flight)
    try:
        while True:
            while len(running) < n_in_flight and (asking := line.next()):
                one = _Running(asking, model)
                if one.go_on(events, None):  # without a question
                    line.done(asking)
                    yield asking.key, one.result
                else:
                    running.add(one)
            if not running:
                return
            one, request, event = events.get()
            if isinstance(event, BaseException):
                raise event
            if isinstance(event, Finished) and one.take(events, request, event.result):
                running.remove(one)
                line.done(one.asking)
                yield one.asking.key, one.result
    finally:
        for one in running:
            one.cancel()


class _Line(Generic[K, T]):
    """Who is next. The first of those that begin alike goes before the others, and they wait for it;
    while they are made, the first of those that begin in another way is.
    """

    def __init__(self, askings: Iterable[Asking[K, T]], n_ready: int) -> None:
        self._alike = (iter(group) for begins, found in groupby(askings, _begins) for group in _groups(begins, found))
        self._ready: deque[Asking[K, T]] = deque()
        self._n_ready = n_ready
        self._first: Asking[K, T] | None = None
        self._others: Iterator[Asking[K, T]] = iter(())

    def next(self) -> Asking[K, T] | None:
        """The next; None if there is none, or none yet."""
        while self._first is None and len(self._ready) <= self._n_ready:
            group = next(self._alike, None)
            if group is None:
                break
            first = next(group)
            if first.begins is not None:
                self._first, self._others = first, group
                return first
            self._ready.append(first)
        return self._ready.popleft() if self._ready else None

    def done(self, asking: Asking[K, T]) -> None:
        """Those that begin like this one may go, if they have waited for it."""
        if asking is self._first:
            self._first = None
            self._ready.extend(self._others)


def _begins(asking: Asking[Any, Any]) -> Hashable:
    return asking.begins


def _groups(begins: Hashable, found: Iterable[Asking[K, T]]) -> Iterable[Iterable[Asking[K, T]]]:
    return ([one] for one in found) if begins is None else [found]


class _Running(Generic[K, T]):
    """An inquiry in flight."""

    def __init__(self, asking: Asking[K, T], model: Mixtral) -> None:
        self.asking = asking
        self.result: Any = None
        self._engine = model.core.engine
        self._question: Question[Any] | None = None
        self._stages: deque[tuple[Sequence[Request], Sequence[Request]]] = deque()
        self._n_sent = 0
        self._results: dict[Request, Any] = {}
        self._interest: Interest | None = None

    def go_on(self, events: queue.SimpleQueue[Any], answer: Any) -> bool:
        """Sends the next question; True if the inquiry has returned."""
        try:
            self._question = question = self.asking.inquiry.send(answer)
        except StopIteration as end:
            self.result = end.value
            return True
        last = len(question.stages) - 1
        self._stages.extend(
            (stage, question.others if i == last else ()) for i, stage in enumerate(question.stages) if stage
        )
        self._n_sent, self._results = 0, {}
        for request in question.requests:
            request.listen(partial(_post, events, self, request))
        self._send()
        return False

    def take(self, events: queue.SimpleQueue[Any], request: Request, result: Any) -> bool:
        """Takes the result of a request; True if the inquiry has returned."""
        assert self._question
        self._results[request] = result
        if len(self._results) < self._n_sent:
            return False
        if self._stages:
            self._send()
            return False
        return self.go_on(events, self._question.answer([self._results[one] for one in self._question.requests]))

    def cancel(self) -> None:
        """Ends its requests; a listener refers to this object, so dropping it might take a while."""
        for request in self._question.requests if self._question else ():
            self._engine.interrupt(request)

    def _send(self) -> None:
        stage, others = self._stages.popleft()
        self._n_sent += len(stage) + len(others)
        self._interest = self._engine.submit(stage, others)


def _post(events: queue.SimpleQueue[Any], running: _Running[Any, Any], request: Request, event: Event) -> None:
    events.put((running, request, event))
