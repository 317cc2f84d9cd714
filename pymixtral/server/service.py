"""Service: the model, whether it is ready, and who may use it now."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import Request

from pymixtral.server.errors import APIError
from pymixtral.server.settings import Settings

if TYPE_CHECKING:
    from pymixtral.asynchronous import AsyncMixtral
    from pymixtral.engine.completion import Completion


class Work:
    """A request that was admitted. What it took is told here, for the metrics and the log."""

    def finished(self, completion: Completion) -> None:
        """Note a text that is complete; of several texts of one prompt, each one.

        Args:
            completion: the text.
        """


class Service:
    """What the endpoints share.

    Args:
        settings: the names and limits.
        model: the model; None: it is not open yet.

    Attributes:
        settings: the names and limits.
        name: the model's name in answers.
        created: when the server began, in seconds since 1970.
        n_admitted: texts that are computed or wait.
        draining: whether the server is about to end.
    """

    def __init__(self, settings: Settings, model: AsyncMixtral | None = None) -> None:
        self.settings = settings
        self.name = settings.name
        self.created = int(time.time())
        self.n_admitted = 0
        self.draining = False
        self._model: AsyncMixtral | None = None
        if model is not None:
            self.open(model)

    def open(self, model: AsyncMixtral) -> None:
        """Begin to serve.

        Args:
            model: an open model.
        """
        self.name = self.settings.name or model.model.path.stem
        self._model = model

    @property
    def state(self) -> str:
        """What the server does: "loading", "ready" or "draining"."""
        return "draining" if self.draining else "ready" if self._model else "loading"

    @property
    def model(self) -> AsyncMixtral:
        """The model.

        Raises:
            APIError: while it is opened, and when the server is about to end.
        """
        if self.draining:
            raise APIError(503, "expected a server that goes on, found one that ends: ask another one", code="draining")
        if self._model is None:
            raise APIError(
                503,
                "expected a model that is open, found that it is still being opened: try again soon",
                code="loading",
                headers={"retry-after": "1"},
            )
        return self._model

    def check_model(self, name: str | None) -> None:
        """Check that a request is for this model.

        Args:
            name: the model that a request names; None: none.

        Raises:
            APIError: if it is another one, and the settings are strict.
        """
        if name is not None and name != self.name and not self.settings.any_model:
            raise APIError(
                404,
                f"expected the model {self.name!r}, found {name!r}",
                param="model",
                code="model_not_found",
            )

    def timeout(self, asked: float | None = None) -> float | None:
        """How long a request may compute: what `timeout` of pymixtral.Options becomes.

        Args:
            asked: seconds that the request asks for itself; None: it does not.
        """
        limits = [limit for limit in (asked, self.settings.timeout) if limit is not None]
        return min(limits, default=None)

    @asynccontextmanager
    async def admission(self, n: int = 1) -> AsyncIterator[Work]:
        """Count a request among those that are computed or wait: `async with service.admission() as work:`.

        A stream holds it until it ends: inside the generator of its chunks.

        Args:
            n: texts that it asks for.

        Raises:
            APIError: if too many wait.
        """
        _ = self.model
        limit = self.settings.max_batch + self.settings.max_waiting
        if self.n_admitted and self.n_admitted + n > limit:
            raise APIError(
                429,
                f"expected at most {limit} texts at once, found {self.n_admitted} and {n} more: try again later",
                code="queue_full",
                headers={"retry-after": str(math.ceil(1))},
            )
        self.n_admitted += n
        try:
            yield Work()
        finally:
            self.n_admitted -= n


def get_service(request: Request) -> Service:
    """The service of an application, for `Depends`.

    Args:
        request: any request.
    """
    service: Service = request.app.state.service
    return service
