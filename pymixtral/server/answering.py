"""How answers go out: whole, or as a stream of events; a client that leaves ends its request."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pymixtral.errors import PymixtralError
from pymixtral.server.errors import APIError, api_error
from pymixtral.server.record import current
from pymixtral.server.service import Service, get_service, server_ends

T = TypeVar("T")

Chunk = dict[str, Any] | str
"""What an event holds: an object, sent as JSON, or a text without an end of line."""

_HEADERS = {"content-type": "text/event-stream", "cache-control": "no-cache", "x-accel-buffering": "no"}


async def _until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _leaving(receive: Receive, service: Service) -> asyncio.Task[None]:
    """A task that is done when the client has left, and cancelled when the answer must end."""
    task = asyncio.ensure_future(_until_left(receive))
    service.until_cut(task)
    return task


def _why(leaving: asyncio.Task[None]) -> APIError:
    if leaving.cancelled():
        return server_ends()
    return APIError(499, "expected a client that waits, found that it has left", code="client_left")


async def _end(*futures: asyncio.Future[Any] | None) -> None:
    """Cancels futures, and waits until they are over."""
    those = [future for future in futures if future is not None]
    for future in those:
        future.cancel()
    await asyncio.gather(*those, return_exceptions=True)


async def whole(request: Request, work: Awaitable[T]) -> T:
    """Await what a request asks for, as long as its client waits.

    Args:
        request: its body has been read.
        work: what computes the answer. It is cancelled when the client leaves.

    Returns:
        What work returns.

    Raises:
        APIError: if the client has left, or the server ends.
        Exception: whatever work raises.
    """
    task = asyncio.ensure_future(work)
    leaving = _leaving(request.receive, get_service(request))
    both: set[asyncio.Future[Any]] = {task, leaving}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise _why(leaving)
        return task.result()
    finally:
        await _end(task, leaving)


def events(request: Request, service: Service, chunks: AsyncIterator[Chunk]) -> Response:
    """Make the answer that sends each chunk as a server-sent event.

    The status is sent with the first chunk, so that an error before it is an answer of its own; but
    a silence longer than settings.ping_seconds is broken by a comment. An error later is an event.

    Args:
        request: its body has been read.
        service: of the application.
        chunks: an asynchronous generator: objects are sent as JSON, texts as they are. It is closed
            when the client has left, or the server ends.

    Returns:
        The response to return from an endpoint.
    """
    return _Events(request.receive, service, chunks)


class _Events(Response):
    def __init__(self, receive: Receive, service: Service, chunks: AsyncIterator[Chunk]) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._receive = receive
        self._service = service
        self._chunks = chunks

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        """Send the chunks until they end, the client leaves, or the server ends."""
        leaving = _leaving(self._receive, self._service)
        chunk: asyncio.Task[Chunk] | None = None
        started = False
        last = 0.0
        try:
            while True:
                chunk = chunk or asyncio.ensure_future(next_of(self._chunks))
                both: set[asyncio.Future[Any]] = {chunk, leaving}
                await asyncio.wait(
                    both, timeout=self._service.settings.ping_seconds, return_when=asyncio.FIRST_COMPLETED
                )
                if leaving.done() and not leaving.cancelled():
                    return
                error: BaseException | None = None
                if leaving.done():
                    error = server_ends()
                elif chunk.done():
                    error = chunk.exception()
                if not started:
                    if error is not None and not isinstance(error, StopAsyncIteration):
                        raise error  # an answer of its own
                    started = True
                    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                if isinstance(error, StopAsyncIteration):
                    break
                if error is not None:
                    if not isinstance(error, (APIError, PymixtralError)):
                        record = current.get()
                        self._service.log.fault(record.id if record else "", error)
                    await _send(send, event(api_error(error).body))
                    break
                if not chunk.done():
                    await _send(send, b": ping\n\n")
                    continue
                now = time.perf_counter()
                if last and self._service.metrics:
                    self._service.metrics.gap(now - last)
                last = now
                value, chunk = chunk.result(), None
                await _send(send, event(value))
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await _end(chunk, leaving)
            close = getattr(self._chunks, "aclose", None)
            if close is not None:
                await close()


async def next_of(iterator: AsyncIterator[T]) -> T:
    """Await the next value of an iterator, as a coroutine that a task can be made of.

    Args:
        iterator: what is read.

    Raises:
        StopAsyncIteration: at its end.
    """
    return await iterator.__anext__()


async def _send(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


def event(value: Chunk) -> bytes:
    """Write a server-sent event.

    Args:
        value: what it holds.

    Returns:
        Its bytes, UTF-8.
    """
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode("utf-8", "surrogatepass")
