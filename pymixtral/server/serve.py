"""A server's life: it listens, opens its model, serves, drains and ends."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

from pymixtral.arguments import shown
from pymixtral.errors import InvalidArgumentError
from pymixtral.escapes import escaped
from pymixtral.threads import called_in_thread

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from pymixtral.mixtral import Mixtral
    from pymixtral.server.log import Log
    from pymixtral.server.service import Service
    from pymixtral.server.settings import Settings

_BACKLOG = 1024
"""Connections that the system holds until they are taken."""

_CUT_SECONDS = 2.0
"""How long answers that were cut may take to say so."""


def listen(host: str, port: int) -> socket.socket:
    """Begin to listen, so that connections wait instead of being refused.

    Args:
        host: a name or an address of this machine; "0.0.0.0" or "::": all.
        port: 0: any that is free.

    Returns:
        The socket.

    Raises:
        InvalidArgumentError: if there is no such address, or the port is in use or not for this user.
    """
    try:
        found = socket.getaddrinfo(host or "an empty name", port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        return socket.create_server(
            address[:2],
            family=family,
            backlog=_BACKLOG,
            dualstack_ipv6=family == socket.AF_INET6 and address[0] == "::",
        )
    except (OSError, UnicodeError) as error:  # UnicodeError: of a name with an empty or a long part
        number = getattr(error, "errno", None) or 0
        why = os.strerror(number) if number > 0 else getattr(error, "strerror", None) or error  # < 0: of a name
        if number in (errno.EADDRINUSE, errno.EACCES):
            raise InvalidArgumentError(
                f"expected port to be one that is free, found {port} of {host} ({why}): choose another one, or 0 for "
                "any that is free"
            ) from None
        raise InvalidArgumentError(
            f"expected host to be a name or an address of this machine, found {shown(host)} ({why}): choose another "
            "one, such as 127.0.0.1"
        ) from None


def url_of(listener: socket.socket) -> str:
    """The address to open in a browser.

    Args:
        listener: as listen() returns it.
    """
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(listener: socket.socket) -> bool:
    """Whether only programs of this machine can connect.

    Args:
        listener: as listen() returns it.
    """
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


class Served(Protocol):
    """What a server serves."""

    def open(self) -> None:
        """Open it. It runs in a thread of its own, while the server says that it is not ready."""

    def app(self, service: Service) -> ASGIApp:
        """Make the application. It is not open yet.

        Args:
            service: the names and limits.
        """

    def begin(self, service: Service) -> str:
        """Begin to serve, once it is open; in the thread of the event loop.

        Args:
            service: as for app().

        Returns:
            What is ready, for people.
        """

    def close(self) -> None:
        """Close it, in whatever state it is."""


class OneModel:
    """A model of this process: it is Served.

    Args:
        open_model: opens it.
    """

    def __init__(self, open_model: Callable[[], Mixtral]) -> None:
        self._open_model = open_model
        self._model: Mixtral | None = None

    def open(self) -> None:
        """Open the model.

        Raises:
            Exception: whatever open_model raises.
        """
        self._model = self._open_model()

    def app(self, service: Service) -> ASGIApp:
        """Make the application with all endpoints."""
        from pymixtral.server.app import make_app

        return make_app(service)

    def begin(self, service: Service) -> str:
        """Let the service have the model."""
        from pymixtral.asynchronous import AsyncMixtral

        assert self._model
        service.open(AsyncMixtral(self._model))
        adapters = f"; adapters: {', '.join(map(escaped, self._model.adapters))}" if self._model.adapters else ""
        return f"{escaped(service.name)}, {self._model.n_ctx} tokens of context{adapters}"

    def close(self) -> None:
        """Close the model, if it is open."""
        if self._model is not None:
            self._model.close()


def run(settings: Settings, listener: socket.socket, served: Served, log: Log) -> None:
    """Serve until a signal comes, then let the answers that are being written end.

    SIGINT and SIGTERM begin the end: no request is let in any more, and those that run get
    settings.drain seconds. A second signal cuts them.

    Args:
        settings: the names and limits.
        listener: as listen() returns it.
        served: what answers. It is closed.
        log: what is told of requests. It is closed.

    Raises:
        SystemExit: after a second signal, as the signal would have ended the program.
        Exception: whatever served.open() raises.
    """
    opening = called_in_thread(served.open, "pymixtral-open")
    try:
        with _signals() as signals:
            asyncio.run(_serve(settings, listener, served, opening, log, signals))
        if len(signals.numbers) > 1:
            raise SystemExit(128 + signals.numbers[1])
    finally:
        listener.close()
        log.close()
        served.close()  # the last, as a cluster may refuse it


class _Signals:
    """The signals that have come, for the event loop.

    Attributes:
        numbers: of the signals, the first one first.
    """

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed: asyncio.Event | None = None

    def attach(self) -> None:
        """Have wait() of this task's loop woken."""
        self._loop, self._changed = asyncio.get_running_loop(), asyncio.Event()
        self._changed.set()

    def take(self, number: int, _frame: FrameType | None) -> None:
        """Note a signal. After the second one somebody waits for an end that does not come."""
        self.numbers.append(number)
        if len(self.numbers) > 2:
            os._exit(128 + number)
        if self._loop is not None and self._changed is not None:
            self._loop.call_soon_threadsafe(self._changed.set)

    async def wait(self, n: int) -> None:
        """Wait for the n-th signal."""
        assert self._changed
        while len(self.numbers) < n:
            self._changed.clear()
            await self._changed.wait()


@contextmanager
def _signals() -> Iterator[_Signals]:
    """Takes SIGINT and SIGTERM; in the main thread, as Python delivers them nowhere else."""
    signals = _Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    before = {number: signal.signal(number, signals.take) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def _serve(
    settings: Settings, listener: socket.socket, served: Served, opening: Future[None], log: Log, signals: _Signals
) -> None:
    """The server's main task."""
    from uvicorn import Config

    from pymixtral.server.protocol import Server, connection_class
    from pymixtral.server.service import Service

    signals.attach()
    service = Service(settings, log=log)
    config = Config(
        served.app(service),
        http=connection_class(settings),
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        log_level="critical",  # the rest is told by service.log
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=settings.idle_seconds,  # type: ignore[arg-type]  # any number
        timeout_graceful_shutdown=1,
        backlog=_BACKLOG,
    )
    server = Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    first, second = asyncio.create_task(signals.wait(1)), asyncio.create_task(signals.wait(2))
    opened = asyncio.wrap_future(opening)
    try:
        events: set[asyncio.Future[Any]] = {opened, first, serving}
        await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
        if opened.done():
            opened.result()
            log.note(f"Ready: {served.begin(service)}.")
            await asyncio.wait({first, serving}, return_when=asyncio.FIRST_COMPLETED)
        service.draining = True
        if service.n_requests:
            log.note(f"Ending: {service.n_requests} running; a second signal cuts them.")
        idle = asyncio.create_task(service.idle.wait())
        await asyncio.wait({idle, second}, timeout=settings.drain, return_when=asyncio.FIRST_COMPLETED)
        service.cut()
        await asyncio.wait({idle}, timeout=_CUT_SECONDS)
        idle.cancel()
    finally:
        first.cancel()
        second.cancel()
        opened.cancel()
        server.should_exit = True
        await serving
