"""Service: the model, whether it is ready, and who may use it now."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fastapi import Depends, Request

from pymixtral.arguments import shown
from pymixtral.errors import ClosedError, InvalidArgumentError
from pymixtral.server.errors import APIError
from pymixtral.server.log import Log
from pymixtral.server.metrics import Metrics
from pymixtral.server.record import Record, current
from pymixtral.server.settings import Settings
from pymixtral.threads import starting_threads

if TYPE_CHECKING:
    from pymixtral.asynchronous import AsyncMixtral
    from pymixtral.engine.completion import Completion
    from pymixtral.engine.stats import EngineStats
    from pymixtral.model.adapter import Adapter

T = TypeVar("T")

_LONGEST_RETRY = 60
"""Seconds that a client is told to wait at most. OpenAI's wait no longer than 120."""

_TOKENIZING = 2
"""Requests for tokens alone that are computed at a time. Python computes one at a time anyway; with a
second one a short text need not wait for a long one."""

_WEIGHT = 0.2
"""Of the last request in the mean time of requests."""


class Work:
    """A request that was admitted. What it took is told here, for the metrics and the log.

    Args:
        service: has admitted it.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._record = current.get()
        self.told = False

    def finished(self, completion: Completion) -> None:
        """Note a text that is complete; of several texts of one prompt, each one.

        Args:
            completion: the text.
        """
        self.told = True
        if self._service.metrics:
            self._service.metrics.finished(completion)
        if self._record:
            self._record.finished(completion)


class Service:
    """What the endpoints share. All of it belongs to the thread of the event loop.

    Args:
        settings: the names and limits.
        model: the model; None: it is not open yet.
        log: what is told of requests; None: nothing.

    Attributes:
        settings: the names and limits.
        log: what is told of requests.
        name: the model's name in answers.
        created: when the server began, in seconds since 1970.
        metrics: what is counted; None: the model is not open yet.
        n_admitted: texts that are computed or wait.
        n_requests: requests that are being answered.
        draining: whether the server is about to end.
        idle: set while no request is being answered.
        scales: what adapters count, by name; 1 where it has none.
        adapting: held while an adapter is loaded or unloaded.
    """

    def __init__(self, settings: Settings, model: AsyncMixtral | None = None, log: Log | None = None) -> None:
        self.settings = settings
        self.log = log or Log()
        self.name = settings.name
        self.created = int(time.time())
        self.metrics: Metrics | None = None
        self.n_admitted = self.n_requests = 0
        self.draining = False
        self.idle = asyncio.Event()
        self.idle.set()
        self.scales = dict(settings.scales)
        self.adapting = asyncio.Lock()
        self._model: AsyncMixtral | None = None
        self._mean_seconds = 1.0
        self._waits: set[asyncio.Future[Any]] = set()
        self._cut = False
        self._tokenizing = asyncio.Semaphore(_TOKENIZING)
        if model is not None:
            self.open(model)

    def open(self, model: AsyncMixtral) -> None:
        """Begin to serve.

        Args:
            model: an open model.

        Raises:
            InvalidArgumentError: for an adapter of the model's own name, and a scale out of range.
        """
        name = self.settings.name or model.model.path.stem
        if name in model.adapters:
            raise InvalidArgumentError(
                f"expected adapters of other names than the model's, found {shown(name)}: name one of them otherwise"
            )
        for adapter in model.adapters:
            model.model.core.factory.adapters.chosen(self._served(adapter))
        self.name = name
        self.metrics = Metrics(self.name, model.model.n_ctx, self._engine_stats)
        self._model = model

    def _engine_stats(self) -> EngineStats | None:
        try:
            return self._model.stats() if self._model else None
        except ClosedError:
            return None

    @property
    def state(self) -> str:
        """What the server does: "loading", "ready" or "draining"."""
        return "draining" if self.draining else "ready" if self._model else "loading"

    @property
    def model(self) -> AsyncMixtral:
        """The model.

        Raises:
            APIError: while it is opened.
        """
        if self._model is None:
            raise APIError(
                503,
                "expected a model that is open, found that it is still being opened: try again soon",
                code="loading",
                headers={"retry-after": "1"},
            )
        return self._model

    def check_model(self, name: str | None) -> None:
        """Check that a request is for this model, or for one of its adapters.

        Where there are adapters, or may be, no other name will do: somebody would get the model without
        the adapter that he meant.

        Args:
            name: the model that a request names; None: none.

        Raises:
            APIError: if it is another one, and the settings are strict or there are adapters.
        """
        self.adapter_of(name)

    def adapter_of(self, name: str | None) -> dict[str, float]:
        """Find the adapter of a request: `adapter` of pymixtral.Options.

        Args:
            name: the model that it names; None: none.

        Raises:
            APIError: as check_model().
        """
        if name is None or name == self.name:
            return {}
        if name in self.adapters:
            return self._served(name)
        if not self.settings.any_model or self.adapters or self.settings.adapter_folder or self.settings.scales:
            raise self.unknown_model(name)
        return {}

    def adapters_of(self, name: str | None, adapter: str | Mapping[str, float] | None) -> dict[str, float]:
        """Find the adapters of a request that may name them beside its model.

        Args:
            name: the model that it names; None: none.
            adapter: the name of an adapter, which counts as it is served; or scales by name; None: what the
                model is.

        Returns:
            `adapter` of pymixtral.Options, which refuses names that are not loaded.

        Raises:
            APIError: as check_model(), and for a model that is an adapter beside `adapter`.
        """
        found = self.adapter_of(name)
        if adapter is None:
            return found
        if found:
            raise APIError(
                400,
                f"expected the model's own name or none where adapter is given, found {shown(name)}, which is an "
                "adapter: leave out one of them",
                param="adapter",
                code="invalid_value",
            )
        return self._served(adapter) if isinstance(adapter, str) else dict(adapter)

    def _served(self, adapter: str) -> dict[str, float]:
        """An adapter and what it counts where a request says no scale."""
        return {adapter: self.scales.get(adapter, 1.0)}

    @property
    def adapters(self) -> Mapping[str, Adapter]:
        """The adapters that are loaded now, by name; none while the model is opened."""
        return self._model.adapters if self._model else {}

    def unknown_model(self, name: str) -> APIError:
        """Make the error of a request for another model.

        Args:
            name: the model that it names.
        """
        names = [self.name, *self.adapters]
        known = f"the model {names[0]!r}" if len(names) == 1 else f"one of the models {str(names[:20])[1:-1]}"
        do = "name that one" if len(names) == 1 else "choose one of them"
        return APIError(404, f"expected {known}, found {name[:200]!r}: {do}", param="model", code="model_not_found")

    def timeout(self, asked: float | None = None) -> float | None:
        """How long a request may compute: what `timeout` of pymixtral.Options becomes.

        Args:
            asked: seconds that the request asks for itself; None: it does not.
        """
        limits = [limit for limit in (asked, self.settings.timeout) if limit is not None]
        return min(limits, default=None)

    @asynccontextmanager
    async def admission(self, n: int = 1, max_tokens: int | None = None) -> AsyncIterator[Work]:
        """Count a request among those that are computed or wait: `async with service.admission() as work:`.

        A stream holds it until it ends: inside the generator of its chunks.

        Args:
            n: texts that it asks for.
            max_tokens: most tokens of each text, for the metrics; None: no limit.

        Raises:
            APIError: if too many wait, or the model is not open.
        """
        _ = self.model
        limit = self.settings.max_batch + self.settings.max_waiting
        if self.n_admitted and self.n_admitted + n > limit:
            raise APIError(
                429,
                f"expected at most {limit} texts at once, found {self.n_admitted} and {n} more: try again later",
                code="queue_full",
                headers={"retry-after": str(self._retry_after())},
            )
        self.n_admitted += n
        if self.metrics:
            self.metrics.asked(n, max_tokens)
        work = Work(self)
        begin = time.perf_counter()
        try:
            yield work
            self._mean_seconds += (time.perf_counter() - begin - self._mean_seconds) * _WEIGHT
        except BaseException as error:
            if self.metrics and not work.told and _is_leave(error):
                self.metrics.aborted()
            raise
        finally:
            self.n_admitted -= n

    async def tokenized(self, make: Callable[[], T]) -> T:
        """Have a thread make what tokenizing is all the work of. The engine's queue does not count it.

        Only some do so at a time, and the others wait. So there are threads left for the texts of requests
        that were admitted, however many long texts come.

        Args:
            make: what the thread calls. It goes on when nobody waits for it any more.

        Returns:
            What make returns.

        Raises:
            Exception: whatever make raises.
        """
        await self._tokenizing.acquire()
        try:
            with starting_threads():
                making = asyncio.get_running_loop().run_in_executor(None, make)
        except BaseException:
            self._tokenizing.release()
            raise
        making.add_done_callback(self._made)
        return await asyncio.shield(making)

    def _made(self, making: asyncio.Future[Any]) -> None:
        self._tokenizing.release()
        if not making.cancelled():
            making.exception()  # nobody may be left who asks

    def _retry_after(self) -> int:
        """Seconds until a place may be free: requests end one after the other, max_batch at once."""
        turns = self.n_admitted / self.settings.max_batch
        return min(max(math.ceil(turns * self._mean_seconds), 1), _LONGEST_RETRY)

    # --- Requests over HTTP -----------------------------------------------------------------------

    def begin_request(self) -> None:
        """Count a request that has come."""
        self.n_requests += 1
        self.idle.clear()

    def end_request(self, record: Record) -> None:
        """Count and log a request that is over.

        Args:
            record: what is known of it.
        """
        self.n_requests -= 1
        if not self.n_requests:
            self.idle.set()
        if self.metrics:
            self.metrics.answered(record.method, record.status or 499)
        self.log.request(record)

    def until_cut(self, wait: asyncio.Future[Any]) -> None:
        """Have a future cancelled when answers must end.

        Args:
            wait: a future that is waited for; it may be done.
        """
        if self._cut:
            wait.cancel()
            return
        self._waits.add(wait)
        wait.add_done_callback(self._waits.discard)

    def cut(self) -> None:
        """End all answers that are not complete."""
        self._cut = True
        for wait in list(self._waits):
            wait.cancel()


def server_ends() -> APIError:
    """Make the error of a request to a server that is about to end."""
    return APIError(
        503,
        "expected a server that goes on, found one that ends: ask again soon",
        code="draining",
        headers={"retry-after": "5"},
    )


def _is_leave(error: BaseException) -> bool:
    return isinstance(error, (GeneratorExit, asyncio.CancelledError)) or (
        isinstance(error, APIError) and error.status in (499, 503)
    )


def get_service(request: Request) -> Service:
    """The service of an application, for `Depends`.

    Args:
        request: any request.
    """
    service: Service = request.app.state.service
    return service


TheService = Annotated[Service, Depends(get_service)]
"""The type of an endpoint's parameter that is the service."""
