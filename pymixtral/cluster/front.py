"""Front: the application that passes requests on to the replicas of a model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, NoReturn

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Counter, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from ray import exceptions as ray_errors
from ray.serve import exceptions as serve_errors
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pymixtral import __version__
from pymixtral.cluster.prefixes import prefix_of
from pymixtral.cluster.replica import TEXTS, Forwarded
from pymixtral.server import files
from pymixtral.server.answering import event
from pymixtral.server.app import with_door
from pymixtral.server.errors import APIError, add_handlers, api_error
from pymixtral.server.record import current
from pymixtral.server.service import Service, server_ends
from pymixtral.threads import called_in_thread

_TRIES = 3
"""Replicas that get a request. One that ends each of them would end them all."""

_COUNT_SECONDS = 5.0
"""How long the cluster may take to say how many replicas run."""

_LOOK_SECONDS = 1.5
"""From one look whether the head of the cluster answers to the next."""

_LOOKS = 3
"""In so many looks one after the other it must not answer until it counts as lost."""

_OURS = frozenset((b"authorization", b"x-api-key", b"origin", b"host", b"x-request-id", b"transfer-encoding"))
"""Headers of requests that are checked here, and no replica's business."""

_NAMED = frozenset((b"x-request-id", b"x-content-type-options"))
"""Headers of answers that are set here."""

_STATES = {
    "loading": "Loading model",
    "draining": "The server ends",
    "lost": "The cluster's head does not answer",
    "alone": "No replica is known to run",
}


class Front:
    """Passes requests on. All of it belongs to the thread of the event loop.

    A request whose replica dies goes to another one, unless a part of its answer was sent: a comment of
    a stream, which says that it lives, is none. Where the head of the cluster is lost, Ray waits for it, and
    says nothing of replicas that are lost with it; so requests end then, until it answers again.

    Args:
        service: the names and limits; its model is never open.
        by_prefix: send texts that begin alike to one replica; else to the idlest of two that are drawn.

    Attributes:
        app: the ASGI application.
        handle: of Ray Serve, for the replicas; None: they are not there yet.
        count: says how many replicas run; it may wait for an answer of the cluster, without an end.
    """

    def __init__(self, service: Service, by_prefix: bool = True) -> None:
        self._service = service
        self._by_prefix = by_prefix
        self.handle: Any = None
        self.count: Callable[[], int] = lambda: 0
        self._counting: Future[int] | None = None
        self._lost = asyncio.get_running_loop().create_future()
        self._again = Counter(
            "pymixtral:requests_sent_again",
            "Requests whose replica died before it answered.",
            ["model_name"],
            registry=None,
        )
        app = FastAPI(title="pymixtral", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
        add_handlers(app)
        app.include_router(files.router)
        for path in ("/health", "/v1/health"):
            app.add_api_route(path, self._health, methods=["GET", "HEAD"])
        app.add_api_route("/livez", _livez, methods=["GET", "HEAD"])
        app.add_api_route("/metrics", self._metrics, methods=["GET"])
        app.mount("/", self._forward)
        self.app: ASGIApp = with_door(app, service)

    # --- Of the cluster ---------------------------------------------------------------------------

    async def watch(self, answers: Callable[[], bool]) -> NoReturn:
        """Look whether the head of the cluster answers, until this is cancelled.

        Args:
            answers: says so, in a thread; it may take seconds.
        """
        missed = 0
        while True:
            missed = 0 if await asyncio.to_thread(answers) else missed + 1
            if missed >= _LOOKS and not self._lost.done():
                self._lost.set_result(None)
                self._service.log.note("The cluster's head does not answer: requests end with 503.")
            elif not missed and self._lost.done():
                self._lost = asyncio.get_running_loop().create_future()
                self._service.log.note("The cluster's head answers again.")
            await asyncio.sleep(_LOOK_SECONDS)

    async def _health(self) -> Response:
        """Whether a replica is ready."""
        if self._service.draining:
            state = "draining"
        elif self.handle is None:
            state = "loading"
        elif self._lost.done():
            state = "lost"
        elif await self._count():
            return JSONResponse({"status": "ok"})
        else:
            state = "alone"
        error = {"code": 503, "message": _STATES[state], "type": "unavailable_error"}
        return JSONResponse({"status": state, "error": error}, 503, {"retry-after": "1"})

    async def _count(self) -> int:
        """How many replicas run; 0 where the cluster does not say. One thread at most waits for it."""
        if self._counting is None or self._counting.done():
            self._counting = called_in_thread(self.count, "pymixtral-count")
        counting = asyncio.wrap_future(self._counting)
        try:
            await asyncio.wait({counting, self._lost}, timeout=_COUNT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            return counting.result() if counting.done() and not counting.exception() else 0
        finally:
            counting.cancel()  # this wait; the thread's goes on

    async def _metrics(self, request: Request) -> Response:
        """What Prometheus reads: the metrics of all replicas, each with the label `replica`."""
        asked = self._opened().broadcast("metrics")
        replicas: list[Any] = []
        with suppress(serve_errors.DeploymentUnavailableError, TimeoutError):  # while no replica runs, or all are busy
            replicas = await asked.results_async(timeout_s=10, return_exceptions=True)
        registry = CollectorRegistry()
        registry.register(_Labelled([found for found in replicas if not isinstance(found, Exception)]))
        self._again.labels(self._service.name)  # which has a sample from then on
        registry.register(self._again)
        encode, kind = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"content-type": kind})

    def _opened(self) -> Any:
        if self.handle is None:
            raise APIError(
                503,
                "expected replicas that are open, found that they are still being opened: try again soon",
                code="loading",
                headers={"retry-after": "1"},
            )
        if self._lost.done():
            raise _cluster_lost()
        return self.handle

    # --- Of a replica -----------------------------------------------------------------------------

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        handle = self._opened().options(stream=True)
        record = current.get()
        assert record
        body = (await receive())["body"]  # the door has read it
        headers = [(name, value) for name, value in scope["headers"] if name not in _OURS]
        request = Forwarded(
            scope["method"],
            scope["path"],
            scope["query_string"],
            (*headers, (b"x-request-id", record.id.encode())),
            body,
            tuple(scope.get("client") or ("", 0)),
            prefix_of(scope["path"], body) if self._by_prefix and scope["method"] == "POST" else "",
        )
        leaving = asyncio.ensure_future(_until_left(receive))
        self._service.until_cut(leaving)
        answer = _Answer(send)
        try:
            for last in [False] * (_TRIES - 1) + [True]:
                try:
                    await _pass_on(handle.answer.remote(request), answer, leaving, self._lost)
                    return
                except _DIED as error:
                    if answer.complete:
                        return
                    if last or answer.begun:
                        raise APIError(
                            503,
                            "expected the whole answer of a replica, found that it ended before: ask again",
                            code="replica_died",
                            headers={"retry-after": "1"},
                        ) from error
                    self._again.labels(self._service.name).inc()
        except Exception as error:
            told = _told(error)
            if told is None:
                self._service.log.fault(record.id, error)
                told = api_error(error)
            await answer.fail(told)
        finally:
            leaving.cancel()
            if answer.texts:
                record.texts.extend(answer.texts)
                record.computed = time.perf_counter()


_DIED = (
    ray_errors.RayActorError,
    ray_errors.NodeDiedError,
    ray_errors.ObjectLostError,
    ray_errors.TaskCancelledError,  # by Serve, of a replica that it ends
    ray_errors.WorkerCrashedError,
)


def _told(error: Exception) -> APIError | None:
    """What a client is told of an error; None: nobody expected it."""
    if isinstance(error, APIError):
        return error
    if isinstance(error, serve_errors.BackPressureError):
        return APIError(
            429,
            "expected fewer requests that wait, found as many as may: try again later",
            code="queue_full",
            headers={"retry-after": "5"},
        )
    if isinstance(error, serve_errors.DeploymentUnavailableError):
        return APIError(
            503, "expected replicas that run, found none that can be started: try again later", code="no_replica"
        )
    return None


def _cluster_lost() -> APIError:
    return APIError(
        503,
        "expected a cluster whose head answers, found that it does not: ask again when the cluster is back",
        code="cluster_lost",
        headers={"retry-after": "5"},
    )


async def _pass_on(response: Any, answer: _Answer, leaving: asyncio.Future[Any], lost: asyncio.Future[None]) -> None:
    """Passes the answer of one replica on, as long as the client waits.

    Raises:
        APIError: if the server ends, or the cluster is lost.
        Exception: of Ray, if the replica dies or has a fault.
    """
    part: asyncio.Future[Any] | None = None
    try:
        while True:
            part = asyncio.ensure_future(response.__anext__())
            events: set[asyncio.Future[Any]] = {part, lost} if answer.complete else {part, leaving, lost}
            await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
            if not part.done():
                if lost.done():
                    raise _cluster_lost()
                if leaving.cancelled():
                    raise server_ends()
                return
            try:
                messages = part.result()
            except StopAsyncIteration:
                return
            for message in messages:
                await answer.take(message)
    finally:
        if part is not None and not part.done():
            response.cancel()
            part.cancel()
            await asyncio.gather(part, return_exceptions=True)


class _Answer:
    """An answer on its way out. Its head waits for its body, in case that the replica dies.

    Args:
        send: to the client.

    Attributes:
        begun: whether a part of it was sent, but for comments that say that it lives.
        complete: whether all of it was sent.
        texts: what is known of its texts, once it is complete.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._head: Message | None = None
        self._sent_head = self._streams = False
        self.begun = self.complete = False
        self.texts: list[Any] = []

    async def take(self, message: Message) -> None:
        """Send a message of a replica's application, or keep it."""
        if message["type"] == TEXTS:
            self.texts = message["texts"]
        elif message["type"] == "http.response.start":
            self._head = message
        else:
            await self._take_body(message)

    async def _take_body(self, message: Message) -> None:
        body = message.get("body", b"")
        head, self._head = self._head, None
        if head is not None and not self._sent_head:
            headers = [(name, value) for name, value in head["headers"] if name not in _NAMED]
            self._streams = any(name == b"content-type" and b"event-stream" in value for name, value in headers)
            self._sent_head = True
            await self._send({**head, "headers": headers})
        elif head is not None and head["status"] != 200:  # an error in the place of the rest of a stream
            message = {**message, "body": b"data: " + body + b"\n\n"}
        if body and not (self._streams and body.startswith(b":")):
            self.begun = True
        self.complete = not message.get("more_body", False)
        await self._send(message)

    async def fail(self, error: APIError) -> None:
        """End it with an error: an answer of its own, an event of a stream, or a connection that breaks off.

        Raises:
            APIError: the error, unless it is an event.
        """
        if self.complete:
            return
        if not self._sent_head or not self._streams:
            raise error
        await self._send({"type": "http.response.body", "body": event(error.body), "more_body": True})
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})


async def _until_left(receive: Callable[[], Awaitable[Message]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _livez() -> dict[str, str]:
    return {"status": "ok"}


class _Labelled(Collector):
    """The metrics of several replicas as those of one program.

    Args:
        replicas: the metrics of each.
    """

    def __init__(self, replicas: list[tuple[str, list[Metric]]]) -> None:
        self._replicas = replicas

    def collect(self) -> Iterator[Metric]:
        """Give all metrics; the label `replica` says whose a sample is."""
        families: dict[str, Metric] = {}
        for replica, metrics in self._replicas:
            for metric in metrics:
                family = families.setdefault(
                    metric.name, Metric(metric.name, metric.documentation, metric.type, metric.unit)
                )
                for sample in metric.samples:
                    family.samples.append(sample._replace(labels={**sample.labels, "replica": replica}))
        yield from families.values()
