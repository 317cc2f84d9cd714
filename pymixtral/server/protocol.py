"""The connections: how many there are, and how long each may take for what."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pymixtral.server.settings import Settings

_MAX_HEAD = 64 << 10
"""Bytes of a request's head, a hundred times what clients send."""

_KEEP_ALIVE = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4))
"""A client whose machine is gone is noticed after two minutes of silence."""


class Connection(HttpToolsProtocol):
    """A connection with limits on the time and the size of a request's head, on the time that a
    client reads nothing, and on the number of connections.

    It relies on uvicorn, which has no such limits, for all else.

    Attributes:
        settings: the limits; set in a subclass.
    """

    settings: Settings

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.parser: Any = _Parser(self)
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._n_head = 0
        self._in_message = False
        self._idle_since = 0.0

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, in the place of the one that is idle longest if there are too many."""
        super().connection_made(transport)
        prepare(transport)
        self._idle_since = self.loop.time()
        self._head_timer = self.loop.call_later(self.settings.header_seconds, transport.abort)
        if len(self.connections) > self.settings.max_connections:
            others = [
                one
                for one in self.connections
                if isinstance(one, Connection) and one is not self and not one._answering
            ]
            victim = min(others, key=lambda one: one._idle_since, default=self)
            self.connections.discard(victim)  # now, for those that come before it is closed
            victim.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_head_timer()
        self._stop_write_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes: the head of a request has a time and a size, whatever else it is."""
        if not self._answering and self._head_timer is None:  # else the time is the application's
            self._head_timer = self.loop.call_later(self.settings.header_seconds, self.transport.abort)
        super().data_received(data)
        if self._answering or self._in_message:  # the body of a request that was refused is dropped, in that time
            return
        self._n_head += len(data)
        if self._n_head > _MAX_HEAD and not self.transport.is_closing():
            self._refuse_head()

    def _refuse_head(self) -> None:
        self.transport.write(b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n\r\n")
        self.transport.close()
        self.loop.call_later(self.settings.write_seconds, self.transport.abort)

    def on_message_begin(self) -> None:
        """Begin a head."""
        if not self.parser.repeats:
            super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a line of a head."""
        if not self.parser.repeats:
            super().on_header(name, value)

    def on_url(self, url: bytes) -> None:
        """Take the address in a head."""
        if not self.parser.repeats:
            super().on_url(url)

    def on_headers_complete(self) -> None:
        """Begin a request."""
        if self.parser.repeats:
            return
        self._stop_head_timer()
        self._n_head = 0
        self._in_message = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """End a request's body."""
        if self.parser.should_upgrade():  # it has not come yet
            return
        self._in_message = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._idle_since = self.loop.time()
        if self.transport.is_closing():  # what was written waits for the client, but not for ever
            self.loop.call_later(self.settings.write_seconds, self.transport.abort)
        super().on_response_complete()

    def timeout_keep_alive_handler(self) -> None:
        """End a connection that was idle too long, even if the client has not read its last answer."""
        self.transport.abort()

    def pause_writing(self) -> None:
        """Give the client some time to read."""
        self._stop_write_timer()
        self._write_timer = self.loop.call_later(self.settings.write_seconds, self.transport.abort)
        super().pause_writing()

    def resume_writing(self) -> None:
        """Go on: the client reads."""
        self._stop_write_timer()
        super().resume_writing()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None


class _Parser:
    """httptools' parser, for which a request with a header Upgrade has no body: as if there were no such header.

    Java's client, for one, sends it with each request, to be answered in HTTP/2 if the server can.

    Args:
        connection: is told what is parsed.

    Attributes:
        repeats: whether the connection knows already what it is told.
    """

    def __init__(self, connection: Connection) -> None:
        self.repeats = False
        self._connection = connection
        self._begin()

    def _begin(self) -> None:
        self._parser = httptools.HttpRequestParser(self._connection)
        with suppress(AttributeError):  # httptools 0.6.3
            self._parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does

    def feed_data(self, data: bytes) -> None:
        """Parse bytes; see httptools."""
        while True:
            try:
                return self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as error:
                data = data[error.args[0] :]
            lengths = (b"content-length", b"transfer-encoding")
            head = [b"%s: %s\r\n" % header for header in self._connection.headers if header[0] in lengths]
            self._begin()
            self.repeats = True
            self._parser.feed_data(b"".join([b"POST / HTTP/1.1\r\n", *head, b"\r\n"]))
            self.repeats = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parser, name)


def prepare(transport: asyncio.Transport) -> None:
    """Have a connection send each piece at once, and notice that the machine of its client is gone.

    Else the body of an answer would wait until the client acknowledges its head, which takes 40 ms.

    Args:
        transport: of the connection.
    """
    connection = transport.get_extra_info("socket")
    if connection is None:
        return
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # asyncio does not, for what create_server() makes
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE:
        if hasattr(socket, name):  # macOS has other names
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def connection_class(settings: Settings) -> type[Connection]:
    """Make the class of connections with these limits, for uvicorn.Config(http=...).

    Args:
        settings: the limits.
    """
    return type("Connection", (Connection,), {"settings": settings})


class Server(uvicorn.Server):
    """uvicorn's server; signals are not its own."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals as they are: serve.py takes them."""
        yield
