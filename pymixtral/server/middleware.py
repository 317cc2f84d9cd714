"""Door: what every request passes on its way in, and every answer on its way out."""

from __future__ import annotations

import asyncio
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pymixtral.server.access import PUBLIC, Access
from pymixtral.server.errors import APIError, answer
from pymixtral.server.record import Record, current, name_of
from pymixtral.server.service import Service, server_ends


class Door:
    """Gives requests a name, lets them in or refuses them, reads their bodies, and logs them.

    Pure ASGI: what stands between an endpoint and the connection may not hide that the client has
    left.

    Args:
        app: the application behind the door.
        service: what is asked.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service
        self._access = Access(service.settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        client = scope.get("client") or ("", 0)
        record = Record(scope["method"], scope["path"], "{}:{}".format(*client), name_of(headers.get("x-request-id")))
        name = record.id.encode()

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status, record.first = message["status"], time.perf_counter()
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", name),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        token = current.set(record)
        self._service.begin_request()
        try:
            try:
                self._access.check(record.method, record.path, headers)
                if self._service.draining and record.path not in PUBLIC:
                    raise server_ends()
                await self._app(scope, await self._with_body(headers, receive), send_named)
            except Exception as error:
                if not isinstance(error, APIError):
                    self._service.log.fault(record.id, error)
                if record.status:  # too late for another answer: the connection breaks off
                    raise
                await answer(error)(scope, receive, send_named)
        finally:
            record.end = time.perf_counter()
            self._service.end_request(record)
            current.reset(token)

    async def _with_body(self, headers: dict[str, str], receive: Receive) -> Receive:
        """Reads the body, of which neither the size nor the time is without a limit."""
        settings = self._service.settings
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > settings.max_body:
            raise _too_large(settings.max_body)
        reading = asyncio.ensure_future(_read(receive, settings.max_body))
        self._service.until_cut(reading)
        try:
            await asyncio.wait({reading}, timeout=settings.body_seconds)
            if not reading.done():
                raise APIError(
                    408, f"expected the body of the request within {settings.body_seconds:g} s, found it not complete"
                )
            if reading.cancelled():
                raise server_ends()
            body = reading.result()
        finally:
            reading.cancel()
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if body and kind != "application/json" and not kind.endswith("+json"):
            raise APIError(
                415,
                f"expected a body of the type application/json, found {kind or 'none'!r}: "
                "send the header 'Content-Type: application/json'",
            )
        message: Message | None = {"type": "http.request", "body": body, "more_body": False}

        async def receive_read() -> Message:
            nonlocal message
            if message is None:
                return await receive()
            first, message = message, None
            return first

        return receive_read


async def _read(receive: Receive, most: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise APIError(499, "expected the body of the request, found that the client has left")
        body += message.get("body", b"")
        if len(body) > most:
            raise _too_large(most)
        if not message.get("more_body", False):
            return bytes(body)


def _too_large(most: int) -> APIError:
    return APIError(413, f"expected a body of at most {most} bytes, found more", code="body_too_large")
