"""Replica: a model on one host of a cluster, behind the server's own application."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client import Metric
from starlette.types import Message

from pymixtral import __version__
from pymixtral.asynchronous import AsyncMixtral
from pymixtral.cluster.presence import until_gone
from pymixtral.demo import demo_chat_path
from pymixtral.errors import UnsupportedError
from pymixtral.server.app import make_app
from pymixtral.server.log import Log
from pymixtral.server.service import Service
from pymixtral.server.settings import Settings

if TYPE_CHECKING:
    from pymixtral.mixtral import Mixtral
    from pymixtral.server.record import Record

TEXTS = "pymixtral.texts"
"""The type of the message before the last one of an answer: its "texts" are those of pymixtral.server.record.Record."""


@dataclass(frozen=True)
class Forwarded:
    """A request on its way to a replica.

    Attributes:
        method: of HTTP.
        path: as ASGI has it, without the query.
        query: what stands after the question mark.
        headers: pairs; names are in lower case.
        body: all of it.
        client: address and port.
        prefix: where its prompt begins; see pymixtral.cluster.prefixes.
    """

    method: str
    path: str
    query: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    client: tuple[str, int]
    prefix: str


@dataclass(frozen=True)
class About:
    """What a replica serves.

    Attributes:
        name: the model's name in answers.
        n_ctx: tokens of its context.
        adapters: names of its adapters.
        replica: its own name, as the metrics have it.
        pid: its process.
    """

    name: str
    n_ctx: int
    adapters: tuple[str, ...]
    replica: str
    pid: int


_texts: ContextVar[list[Any]] = ContextVar("texts")


class _Told(Log):
    """Hands what is known of a request to whoever asked for its answer."""

    def request(self, record: Record) -> None:
        _texts.get().extend(record.texts)


def open_model(path: Path | None, *, n_threads: int, n_stages: int = 1, **options: Any) -> Mixtral:
    """Open a model file of this host.

    Args:
        path: of the file; None: the demo's model for conversations.
        n_threads: threads to compute with.
        n_stages: hosts that share its layers; see pymixtral.cluster.pipeline.open_pipeline().
        **options: those of Mixtral.

    Raises:
        PymixtralError: as Mixtral does.
    """
    from pymixtral.cluster.pipeline import open_pipeline
    from pymixtral.mixtral import Mixtral

    if n_stages > 1:
        return open_pipeline(path or demo_chat_path(), n_stages, n_threads=n_threads, stage_cpus=n_threads, **options)
    return Mixtral(path or demo_chat_path(), n_threads=n_threads, **options)


class Replica:
    """The class of the actors. Ray Serve calls its methods.

    Where the command ends without a word, as by SIGKILL, nobody reads the answers any more. Then each
    replica cuts its own, and has Serve delete the application.

    Args:
        open_model: opens the model; it is called with the number of threads as `n_threads`.
        n_threads: threads to compute with.
        settings: the names and limits.
        version: of pymixtral, where the command runs.
        command: is there as long as the command; see pymixtral.cluster.presence.

    Raises:
        UnsupportedError: if this host has another version.
        Exception: whatever open_model raises.
    """

    def __init__(
        self, open_model: Callable[..., Mixtral], n_threads: int, settings: Settings, version: str, command: Any
    ) -> None:
        if version != __version__:
            raise UnsupportedError(
                f"expected pymixtral {version} on each host, found {__version__}: install the same version everywhere"
            )
        self._model = open_model(n_threads=n_threads)
        self._service = Service(settings, AsyncMixtral(self._model), _Told())
        self._app = make_app(self._service)
        self._ending = asyncio.get_running_loop().create_task(self._end_with(command))  # Serve runs this in its loop

    async def _end_with(self, command: Any) -> None:
        from ray import serve

        await until_gone(command)
        self._service.cut()
        await asyncio.to_thread(serve.delete, serve.get_replica_context().app_name, _blocking=False)

    async def about(self) -> About:
        """Say what is served."""
        return About(self._service.name, self._model.n_ctx, tuple(self._model.adapters), _name(), os.getpid())

    async def metrics(self) -> tuple[str, list[Metric]]:
        """Say its own name and what was counted, as Prometheus has it."""
        assert self._service.metrics
        return _name(), list(self._service.metrics.registry.collect())

    def check_health(self) -> None:
        """Check that the engine computes; Serve puts another replica into the place of one that does not.

        Raises:
            ClosedError: if its thread has ended.
        """
        self._model.stats()

    async def answer(self, request: Forwarded) -> AsyncIterator[list[Message]]:
        """Answer a request; to cancel it is to leave as a client leaves.

        Args:
            request: what is asked.

        Yields:
            The messages of the application, those together that are ready together. Before the last one
            stands one of the type TEXTS.
        """
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        left = asyncio.Event()
        texts: list[Any] = []
        _texts.set(texts)
        unread: Message | None = {"type": "http.request", "body": request.body, "more_body": False}

        async def receive() -> Message:
            nonlocal unread
            if unread is not None:
                first, unread = unread, None
                return first
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if not left.is_set():
                messages.put_nowait(message)

        async def run() -> None:
            try:
                await self._app(_scope(request), receive, send)
            finally:
                messages.put_nowait(None)

        running = asyncio.create_task(run())
        try:
            over = False
            while not over:
                ready = [await messages.get(), *_all_of(messages)]
                over = any(message is None or _is_last(message) for message in ready)
                if over:
                    await running  # what it tells of its texts goes out before its last message
                    ready += [{"type": TEXTS, "texts": texts}, *_all_of(messages)]
                    ready.sort(key=lambda message: message is None or _is_last(message))
                yield [message for message in ready if message is not None]
        finally:
            left.set()
            await asyncio.gather(running, return_exceptions=True)


def _all_of(messages: asyncio.Queue[Message | None]) -> list[Message | None]:
    return [messages.get_nowait() for _ in range(messages.qsize())]


def _is_last(message: Message) -> bool:
    return message["type"] == "http.response.body" and not message.get("more_body", False)


def _name() -> str:
    """Of the replica of this process."""
    from ray import serve

    return str(serve.get_replica_context().replica_id.unique_id)


def _scope(request: Forwarded) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": request.path,
        "raw_path": request.path.encode("utf-8", "surrogateescape"),
        "query_string": request.query,
        "root_path": "",
        "headers": list(request.headers),
        "client": request.client,
        "server": None,
    }
