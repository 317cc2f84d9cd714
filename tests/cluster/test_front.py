"""Front: what becomes of an answer whose replica dies, at each moment; who is let in.

Its handle is one of parts that are written here: moments of real replicas are nobody's choice.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from pymixtral.server.service import Service
from pymixtral.server.settings import Settings
from support.serving import LONG

pytestmark = pytest.mark.ray

STREAM = (b"content-type", b"text/event-stream")
Parts = list[Any]


def start(*headers: tuple[bytes, bytes], status: int = 200) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def part(body: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more}


def died() -> Exception:
    from ray.exceptions import ActorDiedError

    return ActorDiedError()


class Handle:
    """Answers each request with the next list: messages, and an exception where the replica dies."""

    def __init__(self, *answers: Parts) -> None:
        self.answers = list(answers)
        self.asked: list[Any] = []
        self.answer = self

    def options(self, **_: Any) -> Handle:
        return self

    def remote(self, request: Any) -> AsyncIterator[Parts]:
        self.asked.append(request)
        return self._parts(self.answers.pop(0))

    async def _parts(self, parts: Parts) -> AsyncIterator[Parts]:
        for one in parts:
            if isinstance(one, Exception):
                raise one
            yield [one]


def ask(handle: Handle, settings: Settings | None = None, **headers: str) -> httpx.Response:
    from pymixtral.cluster.front import Front

    async def asked() -> httpx.Response:
        front = Front(Service(settings or Settings()))
        front.handle, front.count = handle, lambda: 1
        async with httpx.AsyncClient(transport=httpx.ASGITransport(front.app), base_url="http://127.0.0.1") as client:
            return await client.post("/v1/completions", json={"prompt": "Once"}, headers=headers)

    return asyncio.run(asked())


WHOLE = [start(), part(b"{}", False)]
PING = part(b": ping\n\n")


def test_a_request_goes_to_another_replica_before_its_answer_begins() -> None:
    for first in ([died()], [start(), died()], [start(STREAM), died()]):
        handle = Handle(first, WHOLE)
        answer = ask(handle)
        assert (answer.status_code, answer.content, len(handle.asked)) == (200, b"{}", 2)


def test_a_comment_of_a_stream_does_not_begin_its_answer() -> None:
    rest = [start(STREAM), part(b"data: 1\n\n"), part(b"data: [DONE]\n\n", False)]
    handle = Handle([start(STREAM), PING, died()], rest)
    assert ask(handle).content == b": ping\n\ndata: 1\n\ndata: [DONE]\n\n"
    refused = [start((b"content-type", b"application/json"), status=400), part(b'{"error": 1}', False)]
    assert ask(Handle([start(STREAM), PING, died()], refused)).content == b': ping\n\ndata: {"error": 1}\n\n'


def test_a_stream_that_has_begun_ends_with_an_error() -> None:
    handle = Handle([start(STREAM), part(b"data: 1\n\n"), died()], WHOLE)
    lines = ask(handle).content.decode().split("\n\n")
    assert lines[0] == "data: 1"
    assert json.loads(lines[1].removeprefix("data: "))["error"]["code"] == "replica_died"
    assert (lines[2:], len(handle.asked)) == ([""], 1)


def test_another_answer_that_has_begun_breaks_off() -> None:
    with pytest.raises(RuntimeError, match="already started"):
        ask(Handle([start(), part(b"{"), died()]))


def test_a_request_that_ends_all_replicas_is_given_up() -> None:
    answer = ask(Handle(*[[died()]] * 9))
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "replica_died"
    assert answer.headers["retry-after"]


def test_a_full_queue_is_told_as_the_server_tells_it() -> None:
    from ray.serve.exceptions import BackPressureError

    answer = ask(Handle([BackPressureError(num_queued_requests=1, max_queued_requests=1)]))
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
    assert answer.headers["retry-after"]


def test_health_while_the_cluster_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    from pymixtral.cluster import front as module

    monkeypatch.setattr(module, "_COUNT_SECONDS", 0.01)
    over = threading.Event()
    waiting = []

    def count() -> int:
        waiting.append(threading.current_thread())
        over.wait()
        return 1

    async def asked() -> httpx.Response:
        front = module.Front(Service(Settings()))
        front.handle, front.count = Handle(), count
        async with httpx.AsyncClient(transport=httpx.ASGITransport(front.app), base_url="http://127.0.0.1") as client:
            try:
                for _ in range(9):
                    assert (await client.get("/health")).status_code == 503
            finally:
                over.set()
            waiting[0].join()
            monkeypatch.setattr(module, "_COUNT_SECONDS", LONG)
            return await client.get("/health")

    assert asyncio.run(asked()).status_code == 200
    assert len(waiting) == 2  # one at a time


def test_health_waits_for_no_count_where_the_head_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    from pymixtral.cluster import front as module

    monkeypatch.setattr(module, "_COUNT_SECONDS", 10 * LONG)
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0)
    begun, over = threading.Event(), threading.Event()

    def count() -> int:
        begun.set()
        over.wait()
        return 1

    async def asked() -> None:
        front = module.Front(Service(Settings()))
        front.handle, front.count = Handle(), count
        async with httpx.AsyncClient(transport=httpx.ASGITransport(front.app), base_url="http://127.0.0.1") as client:
            health = asyncio.create_task(client.get("/health"))
            await asyncio.to_thread(begun.wait)
            watching = asyncio.create_task(front.watch(lambda: False))
            assert (await health).status_code == 503
            watching.cancel()

    try:
        asyncio.run(asyncio.wait_for(asked(), LONG))
    finally:
        over.set()


def test_health_where_the_count_fails() -> None:
    from pymixtral.cluster.front import Front

    def count() -> int:
        raise died()

    async def asked() -> httpx.Response:
        front = Front(Service(Settings()))
        front.handle, front.count = Handle(), count
        async with httpx.AsyncClient(transport=httpx.ASGITransport(front.app), base_url="http://127.0.0.1") as client:
            return await client.get("/health")

    assert asyncio.run(asked()).json()["status"] == "alone"


def test_requests_end_while_the_head_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that wait for a replica, and those whose answer is out but not over; when it is back, they are welcome."""
    from pymixtral.cluster import front as module

    monkeypatch.setattr(module, "_LOOK_SECONDS", 0)

    class Waiting:
        def __init__(self, parts: AsyncIterator[Parts]) -> None:
            self.parts = parts
            self.cancelled = False

        async def __anext__(self) -> Parts:
            return await self.parts.__anext__()

        def cancel(self) -> None:
            self.cancelled = True

    responses = []

    class Silent(Handle):
        def remote(self, request: Any) -> Any:
            responses.append(Waiting(super().remote(request)))
            return responses[-1]

        async def _parts(self, parts: Parts) -> AsyncIterator[Parts]:
            for one in parts:
                yield [one]
            await asyncio.Event().wait()

    async def asked() -> None:
        service = Service(Settings())
        front = module.Front(service)
        front.handle, front.count = Silent([], [start(STREAM), part(b"data: 1\n\n")], WHOLE), lambda: 1
        there = True
        watching = asyncio.create_task(front.watch(lambda: there))
        body = {"prompt": "Once"}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(front.app), base_url="http://127.0.0.1") as client:
            asked = [asyncio.create_task(client.post("/v1/completions", json=body)) for _ in range(3)]
            while len(front.handle.asked) < 3:
                await asyncio.sleep(0)
            there = False
            silent, stream, whole = await asyncio.gather(*asked)
            assert (silent.status_code, silent.json()["error"]["code"]) == (503, "cluster_lost")
            assert (stream.status_code, "cluster_lost" in stream.text) == (200, True)
            assert (whole.status_code, whole.content) == (200, b"{}")
            assert service.n_requests == 0
            assert all(response.cancelled for response in responses)
            front.handle = Handle(WHOLE)
            assert (await client.post("/v1/completions", json=body)).json()["error"]["code"] == "cluster_lost"
            assert (await client.get("/health")).json()["status"] == "lost"
            assert (await client.get("/metrics")).status_code == 503
            there = True
            while (await client.get("/health")).status_code != 200:
                pass
            assert (await client.post("/v1/completions", json=body)).content == b"{}"
        watching.cancel()

    asyncio.run(asyncio.wait_for(asked(), LONG))


def test_a_head_that_misses_a_look_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    from pymixtral.cluster import front as module

    monkeypatch.setattr(module, "_LOOK_SECONDS", 0)
    looks = [False, False, True] * 9

    def answers() -> bool:
        if not looks:
            raise EOFError
        return looks.pop()

    async def watched() -> None:
        front = module.Front(Service(Settings()))
        with pytest.raises(EOFError):
            await front.watch(answers)
        assert not front._lost.done()

    asyncio.run(watched())


def test_metrics_while_no_replica_answers() -> None:
    from ray.serve.exceptions import DeploymentUnavailableError

    from pymixtral.cluster.front import Front

    class NoReplica(Handle):
        error: Exception

        def broadcast(self, _: str) -> NoReplica:
            return self

        async def results_async(self, **_: Any) -> Any:
            raise self.error

    async def asked(error: Exception) -> httpx.Response:
        front = Front(Service(Settings(name="tales")))
        front.handle = NoReplica()
        front.handle.error = error
        async with httpx.AsyncClient(transport=httpx.ASGITransport(front.app), base_url="http://127.0.0.1") as client:
            return await client.get("/metrics")

    for error in (DeploymentUnavailableError(None), TimeoutError()):  # type: ignore[arg-type]
        answer = asyncio.run(asked(error))
        assert answer.status_code == 200
        assert 'pymixtral:requests_sent_again_total{model_name="tales"} 0.0' in answer.text


def test_a_fault_of_a_replica_is_told_as_that_of_the_server() -> None:
    answer = ask(Handle([ValueError("secret")]))
    assert answer.status_code == 500
    assert "secret" not in answer.text


@pytest.mark.parametrize("carry", [lambda key: {"authorization": f"Bearer {key}"}, lambda key: {"x-api-key": key}])
def test_keys_stay_here(carry: Callable[[str], dict[str, str]]) -> None:
    settings = Settings(keys=("mine",))
    assert ask(Handle(), settings).status_code == 401
    assert ask(Handle(), settings, **carry("other")).status_code == 401
    handle = Handle(WHOLE)
    assert ask(handle, settings, **carry("mine"), **{"x-request-id": "name"}).headers["x-request-id"] == "name"
    assert b"mine" not in repr(handle.asked[0]).encode()
    assert handle.asked[0].prefix
    assert dict(handle.asked[0].headers)[b"x-request-id"] == b"name"
