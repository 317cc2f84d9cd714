"""How answers go out: whole, or as a stream of events; a client that leaves ends its request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pymixtral.server.errors import APIError, api_error
from pymixtral.server.service import Service

T = TypeVar("T")

_HEADERS = {"content-type": "text/event-stream", "cache-control": "no-cache", "x-accel-buffering": "no"}


def _left() -> APIError:
    return APIError(499, "expected a client that waits, found that it has left", code="client_left")


async def _until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def whole(request: Request, work: Awaitable[T]) -> T:
    """Await what a request asks for, as long as its client waits.

    Args:
        request: its body has been read.
        work: what computes the answer. It is cancelled when the client leaves.

    Returns:
        What work returns.

    Raises:
        APIError: if the client has left.
        Exception: whatever work raises.
    """
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_until_left(request.receive))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise _left()
        return task.result()
    finally:
        for one in (task, leaving):
            one.cancel()
        await asyncio.gather(task, leaving, return_exceptions=True)


def events(request: Request, service: Service, chunks: AsyncIterator[dict[str, Any] | str]) -> Response:
    """Make the answer that sends each chunk as a server-sent event.

    The status is sent with the first chunk, so that an error before it is an answer of its own; but
    a silence longer than settings.ping_seconds is broken by a comment. An error later is an event.

    Args:
        request: its body has been read.
        service: of the application.
        chunks: an asynchronous generator: objects are sent as JSON, texts as they are. It is closed
            when the client has left.

    Returns:
        The response to return from an endpoint.
    """
    return _Events(request.receive, service, chunks)


class _Events(Response):
    def __init__(self, receive: Receive, service: Service, chunks: AsyncIterator[dict[str, Any] | str]) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._receive = receive
        self._service = service
        self._chunks = chunks

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        ping = self._service.settings.ping_seconds
        leaving = asyncio.ensure_future(_until_left(self._receive))
        chunk: asyncio.Future[dict[str, Any] | str] | None = None
        started = False
        try:
            while True:
                chunk = chunk or asyncio.ensure_future(anext_of(self._chunks))
                both: set[asyncio.Future[Any]] = {chunk, leaving}
                await asyncio.wait(both, timeout=ping, return_when=asyncio.FIRST_COMPLETED)
                if leaving.done():
                    return
                if chunk.done() and not started:
                    chunk.result()  # an error is an answer of its own
                if not started:
                    started = True
                    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                if not chunk.done():
                    await send({"type": "http.response.body", "body": b": ping\n\n", "more_body": True})
                    continue
                done, chunk = chunk, None
                try:
                    value = done.result()
                except StopAsyncIteration:
                    break
                except Exception as error:
                    value = api_error(error).body
                    await send({"type": "http.response.body", "body": event(value), "more_body": True})
                    break
                await send({"type": "http.response.body", "body": event(value), "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            for one in (chunk, leaving):
                if one is not None:
                    one.cancel()
                    await asyncio.gather(one, return_exceptions=True)
            close = getattr(self._chunks, "aclose", None)
            if close is not None:
                await close()


async def anext_of(chunks: AsyncIterator[dict[str, Any] | str]) -> dict[str, Any] | str:
    """The next chunk, as a coroutine that can be a task."""
    return await chunks.__anext__()


def event(value: dict[str, Any] | str) -> bytes:
    """A server-sent event.

    Args:
        value: an object, which becomes JSON, or a text without an end of line.
    """
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode("utf-8", "surrogatepass")
