"""A model behind its endpoints, on a real socket of this process."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import uvicorn

from pymixtral import AsyncMixtral, Mixtral
from pymixtral.server.app import make_app
from pymixtral.server.service import Service
from pymixtral.server.settings import Settings


class Served:
    """A model that is served.

    Attributes:
        model: the model, for what a call in this process gives.
        service: its service.
        url: where it is served.
    """

    def __init__(self, model: Mixtral, service: Service, url: str) -> None:
        self.model, self.service, self.url = model, service, url

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=300) as answer:
            return json.load(answer)

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        """The status and the JSON of an answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json", **headers})
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def ok(self, path: str, **body: Any) -> Any:
        status, answer = self.post(path, body)
        assert status == 200, answer
        return answer

    def refused(self, path: str, **body: Any) -> dict[str, Any]:
        status, answer = self.post(path, body)
        assert status == 400, answer
        error: dict[str, Any] = answer["error"]
        return error

    def chunks(self, path: str, **body: Any) -> list[Any]:
        """The events of a stream; [DONE] is checked and left out."""
        request = urllib.request.Request(
            self.url + path, json.dumps({**body, "stream": True}).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            lines = answer.read().decode().split("\n\n")
        data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        if "/responses" not in path:
            assert data.pop() == "[DONE]"
        return [json.loads(one) for one in data]


@contextlib.contextmanager
def serving(model: Mixtral | AsyncMixtral, **settings: Any) -> Iterator[Served]:
    """Serve a model while a block runs.

    Args:
        model: an open model.
        **settings: those of pymixtral.server.settings.Settings.
    """
    waiting = model if isinstance(model, AsyncMixtral) else AsyncMixtral(model)
    service = Service(Settings(**settings), waiting)
    server = uvicorn.Server(uvicorn.Config(make_app(service), log_level="warning", lifespan="off"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield Served(waiting.model, service, f"http://127.0.0.1:{listener.getsockname()[1]}")
        finally:
            server.should_exit = True
            thread.join()
