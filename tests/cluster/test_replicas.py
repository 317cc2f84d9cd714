"""Replicas of the server on a real cluster: answers, prefixes, deaths, leaving, growth, the end."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from pymixtral import InvalidArgumentError, Mixtral
from pymixtral.cli.serve import serve
from pymixtral.demo import demo_chat_path
from support.adapter_files import write_adapter
from support.command_line import run
from support.nodes import applications, n_running
from support.serving import LONG, Server, eventually

pytestmark = pytest.mark.ray

N = 3
STORY: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 1500, "ignore_eos": True, "temperature": 0}
ENDLESS = {**STORY, "max_tokens": 1_000_000, "context_shift": 64}
RUNNING = "pymixtral:num_requests_running"
HITS = "pymixtral:prefix_cache_hits"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with Mixtral(demo_chat_path(), n_ctx=64) as model:
        return write_adapter(tmp_path_factory.mktemp("adapters") / "tales.gguf", model.config, 1)


@pytest.fixture(scope="module")
def server(driver: Any, adapter: Path) -> Iterator[Server]:
    """A server of N replicas on two nodes; it leaves the cluster in the last test."""
    server = Server("--ray", driver.address, "--replicas", str(N), "-t", "1", "--adapter", f"tales={adapter}").ready()
    yield server
    if server.process.poll() is None:
        server.send(signal.SIGTERM)
        server.wait()


@cache
def handle(name: str = "") -> Any:
    """Of the replicas of the command of this --name."""
    from ray import serve

    (application,) = applications(name)
    return serve.get_app_handle(application)


def told(method: str, name: str = "") -> list[Any]:
    """What each replica that lives says."""
    found = handle(name).broadcast(method).results(timeout_s=LONG, return_exceptions=True)
    return [one for one in found if not isinstance(one, Exception)]


def counted(metric: str, name: str = "") -> dict[str, float]:
    """A metric of each replica."""
    return {
        replica: sum(sample.value for one in metrics if one.name == metric for sample in one.samples)
        for replica, metrics in told("metrics", name)
    }


def eventually_replicas(n: int) -> None:
    (application,) = applications()
    eventually(lambda: n_running(application) == n and len(told("about")) == n, f"{n} replicas")


# --- Answers --------------------------------------------------------------------------------------


def test_answers_are_those_of_the_model(server: Server) -> None:
    body = {"prompt": "Once upon", "max_tokens": 20, "temperature": 0}
    with Mixtral(demo_chat_path()) as model:
        expected = model.generate("Once upon", max_tokens=20, temperature=0).text
    assert any(line.endswith(f", {N} replicas; adapters: tales.") for line in server.lines)
    with server.client() as client, OpenAI(base_url=f"{server.url}/v1", api_key="none") as asked:
        texts = {client.post("/v1/completions", json=body).json()["choices"][0]["text"] for _ in range(2 * N)}
        names = [model["id"] for model in client.get("/v1/models").json()["data"]]
        stream = asked.completions.create(model=names[0], stream=True, **body)  # type: ignore[call-overload]
        assert "".join(chunk.choices[0].text for chunk in stream) == expected
        other = client.post("/v1/completions", json={**body, "model": "tales"}).json()
    assert texts == {expected}
    assert names == [demo_chat_path().stem, "tales"]
    assert other["choices"][0]["text"] != expected
    assert re.search(r"POST /v1/completions: 200, .* s, \d+ \+ 20 tokens \[", server.until("POST /v1/completions"))


def test_errors_of_replicas_are_those_of_the_server(server: Server) -> None:
    with server.client() as client:
        wrong = client.post("/v1/completions", json={"prompt": 3})
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "prompt")
        assert client.post("/v1/completions", content=b"{").status_code == 415
        assert client.get("/nowhere").status_code == 404
        assert client.get("/v1/completions").status_code == 405
        assert client.post("/v1/completions", json={"prompt": "x" * (8 << 20)}).status_code == 413
        assert client.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": "y"}).status_code >= 400
        assert client.get("/v1/models", headers={"origin": "https://example.org"}).status_code == 403
        assert client.get("/v1/models", headers={"host": "example.org"}).status_code == 403


def test_what_the_front_says_of_the_cluster(server: Server) -> None:
    with server.client() as client:
        assert client.get("/health").json() == client.get("/livez").json() == {"status": "ok"}
        assert "<html" in client.get("/").text
        answer = client.get("/v1/models", headers={"x-request-id": "mine"})
        assert answer.headers.get_list("x-request-id") == ["mine"]
        text = client.get("/metrics").text
    replicas = set(re.findall(r'^pymixtral:num_requests_running\{.*replica="(\w+)"\}', text, re.M))
    assert replicas == {about.replica for about in told("about")}
    assert len(replicas) == N
    assert text.count("# TYPE pymixtral:num_requests_running") == 1


# --- Which replica --------------------------------------------------------------------------------


def test_conversations_come_back_to_their_replica(server: Server) -> None:
    before = counted(HITS)
    for i in range(2 * N):
        talk = [{"role": "user", "content": f"Tell me tale number {i} of the fox, the king and the old mill. " * 3}]
        with server.client() as client:
            for turn in range(3):
                answer = client.post("/v1/chat/completions", json={"messages": talk, "max_tokens": 8}).json()
                cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
                assert turn == 0 or cached > 30
                talk += [answer["choices"][0]["message"], {"role": "user", "content": "And then?"}]
    assert sum(after > before[replica] for replica, after in counted(HITS).items()) > 1


def test_a_beginning_that_many_ask_for_at_once_is_shared(server: Server) -> None:
    """Its replica takes the half of a full batch more than the idlest; what has ended does not count."""
    most = []
    for _ in range(3):
        with server.client() as client, ExitStack() as stack:
            held = []  # an answer leaves when nobody holds its lines any more
            for _ in range(14):
                answer = stack.enter_context(client.stream("POST", "/v1/completions", json={**ENDLESS, "stream": True}))
                held.append(answer.iter_lines())
                next(held[-1])
            counts = sorted(counted(RUNNING).values())
            assert sum(counts) == 14
            assert counts[-1] < 14
            most.append(counts[-1])
        eventually(lambda: not sum(counted(RUNNING).values()), "no text is computed")
    assert most[0] >= 9
    assert max(most[1:]) >= 9  # the router learns of an end a little later than the replica


# --- Clients that leave, replicas that die ----------------------------------------------------------


def test_a_client_that_leaves_ends_its_text(server: Server) -> None:
    with server.client() as client:
        with client.stream("POST", "/v1/completions", json={**ENDLESS, "stream": True}) as answer:
            lines = answer.iter_lines()  # which leaves when nobody holds it any more
            next(lines)
            assert sum(counted(RUNNING).values()) == 1
        eventually(lambda: not sum(counted(RUNNING).values()), "no text is computed")
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/completions", json=ENDLESS, timeout=0.3)
        eventually(lambda: not sum(counted(RUNNING).values()), "no text is computed")


def test_a_replica_that_is_killed_under_load(server: Server) -> None:
    """Whole answers come from another replica. Streams end with an error that OpenAI's client raises."""
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=LONG) as client:

        def body(i: int) -> dict[str, Any]:
            return {"model": "x", "extra_body": {"ignore_eos": True}, "temperature": 0, "prompt": f"Tale {i}. " * 8}

        model = client.models.list().data[0].id
        streams = [
            client.completions.create(**{**body(i), "model": model, "max_tokens": 1900}, stream=True) for i in range(9)
        ]
        for stream in streams:
            next(stream)
        of_streams = counted(RUNNING)
        with ThreadPoolExecutor(12) as pool:
            wholes = [
                pool.submit(client.completions.create, **{**body(i), "model": model, "max_tokens": 600})
                for i in range(12)
            ]
            found: set[str] = set()

            def busy() -> bool:
                found.update(replica for replica, n in counted(RUNNING).items() if n > of_streams[replica] > 0)
                return bool(found)

            eventually(busy, "a replica computes whole answers beside streams")
            victim = next(about for about in told("about") if about.replica in found)
            os.kill(victim.pid, signal.SIGKILL)
            assert all(len(whole.result().choices[0].text) > 100 for whole in wholes)

            def end(stream: Any) -> str:
                try:
                    return str([chunk.choices[0].finish_reason for chunk in stream][-1])
                except openai.APIError as error:
                    return str(error.code)

            ends = list(pool.map(end, streams))
        assert set(ends) == {"length", "replica_died"}
        assert server.metric("requests_sent_again_total", model_name=model) >= 1
    eventually_replicas(N)


# --- The end --------------------------------------------------------------------------------------


def test_running_answers_end_first(server: Server) -> None:
    with server.client() as client, client.stream("POST", "/v1/completions", json={**STORY, "stream": True}) as answer:
        lines = answer.iter_lines()
        next(lines)
        server.send(signal.SIGTERM)
        assert list(lines)[-2] == "data: [DONE]"
    assert server.wait() == 0
    assert not [line for line in server.lines if "Warning" in line]  # of Ray
    assert not applications()


def test_replicas_grow_and_shrink_with_the_requests(driver: Any) -> None:
    """The answers of a replica that is not needed any more end first."""
    from pymixtral.cluster.replica import open_model
    from pymixtral.cluster.replicas import Replicas
    from pymixtral.server.service import Service
    from pymixtral.server.settings import Settings

    settings = Settings(loopback=False, max_batch=2)
    quick = {"upscale_delay_s": 0.2, "downscale_delay_s": 0.2, "look_back_period_s": 10.5}  # Ray's least is 10
    replicas = Replicas(
        partial(open_model, None, max_batch=2),
        settings,
        address=driver.address,
        n=(1, 2),
        n_threads=1,
        autoscaling=quick,
    )

    async def ask() -> None:
        service = Service(settings)
        app = replicas.app(service)
        replicas.begin(service)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://host", timeout=None) as client:
            asked: set[asyncio.Task[httpx.Response]] = set()

            async def until(condition: Callable[[int], bool], n: int) -> None:
                while not condition(await asyncio.to_thread(replicas.count)):
                    while sum(not task.done() for task in asked) < n:
                        asked.add(asyncio.create_task(client.post("/v1/completions", json=STORY)))
                    await asyncio.sleep(0.05)

            await until(lambda count: count == 2, 6)
            await until(lambda count: count == 1, 1)
            answers = await asyncio.gather(*asked)
            assert {answer.status_code for answer in answers} == {200}
            assert {answer.json()["usage"]["completion_tokens"] for answer in answers} == {1500}

    try:
        replicas.open()
        assert replicas.count() == 1
        asyncio.run(asyncio.wait_for(ask(), LONG))
    finally:
        replicas.close()


def test_a_replica_whose_engine_has_a_fault_is_replaced(driver: Any, tmp_path: Path) -> None:
    from ray.serve.exceptions import DeploymentUnavailableError

    from pymixtral.cluster.replica import Forwarded, open_model
    from pymixtral.cluster.replicas import Replicas
    from pymixtral.server.settings import Settings

    here = str(tmp_path)

    def faulty(*, n_threads: int) -> Mixtral:
        """A function of a function, which Ray sends as it is. The first engine ends when a file appears."""
        model = open_model(None, n_threads=n_threads)
        try:
            Path(here, "opened").touch(exist_ok=False)
        except FileExistsError:
            return model
        loop = model.core.engine._open()
        turn = loop._turn

        def failing() -> None:
            turn()
            if Path(here, "end").exists():
                raise MemoryError

        loop._turn = failing  # type: ignore[method-assign]
        return model

    settings = Settings(loopback=False, name="faulty")
    replicas = Replicas(faulty, settings, address=driver.address, n=(1, 1), n_threads=1)
    try:
        replicas.open()
        first = replicas._handle.about.remote().result()
        (tmp_path / "end").touch()
        head, body = ((b"content-type", b"application/json"),), b'{"prompt": "Once", "max_tokens": 9}'
        request = Forwarded("POST", "/v1/completions", b"", head, body, ("", 0), "")
        messages = [one for part in replicas._handle.options(stream=True).answer.remote(request) for one in part]
        assert messages[0]["status"] >= 500

        def replaced() -> bool:
            try:
                found = replicas._handle.broadcast("about").results(timeout_s=LONG, return_exceptions=True)
            except DeploymentUnavailableError:  # between the two
                return False
            return any(getattr(one, "pid", first.pid) != first.pid for one in found)

        eventually(replaced, "another replica runs")
    finally:
        replicas.close()


def test_a_signal_while_replicas_start(driver: Any) -> None:
    server = Server("--ray", driver.address, "-t", "1", "--name", "early")
    eventually(lambda: bool(applications("early")), "the replicas start")
    server.send(signal.SIGTERM)
    assert server.wait() == 0
    assert not applications("early")


def test_a_command_that_is_killed_takes_its_replicas_with_it(driver: Any) -> None:
    """Though they have all CPUs, and write what nobody reads. So another one of the same name has room."""
    line = ("--ray", driver.address, "--replicas", "2", "-t", "4", "--name", "again")
    killed = Server(*line).ready()
    with killed.client() as client, ExitStack() as streams, ThreadPoolExecutor(2) as pool:
        held = []  # an answer leaves when nobody holds its lines any more
        for i in range(4):
            body = {**ENDLESS, "prompt": f"Tale {i}. " * 8, "stream": True}
            held.append(streams.enter_context(client.stream("POST", "/v1/completions", json=body)).iter_lines())
            next(held[-1])
        wholes = [pool.submit(client.post, "/v1/completions", json=ENDLESS) for _ in range(2)]
        (first,) = applications("again")
        eventually(lambda: sum(counted(RUNNING, "again").values()) == 6, "all texts are computed")
        killed.stop()
        assert all(isinstance(whole.exception(), httpx.TransportError) for whole in wholes)
    server = Server(*line)
    eventually(lambda: first not in applications("again"), "the replicas of the killed command are gone")
    server.ready()
    with server.client() as client:
        assert client.post("/v1/completions", json={"prompt": "Once", "max_tokens": 3}).status_code == 200
    server.send(signal.SIGTERM)
    assert server.wait() == 0
    assert not applications("again")


def test_the_example_of_the_command(driver: Any, tmp_path: Path) -> None:
    line = next(line for line in (serve.epilog or "").splitlines() if "--ray" in line)
    (tmp_path / "mixtral-instruct.gguf").symlink_to(demo_chat_path())
    program = [sys.executable, "-m", "pymixtral", *shlex.split(line)[1:], "--port", "0"]
    env = {**os.environ, "RAY_ADDRESS": driver.address}
    process = subprocess.Popen(program, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    for text in process.stderr:
        if text.startswith("Ready"):
            assert text.rstrip().endswith(", 2 replicas.")
            process.send_signal(signal.SIGTERM)
    assert process.wait(LONG) == 0


# --- What is refused ------------------------------------------------------------------------------


def refusal(*words: str) -> str:
    """The last line of a command that is refused, in this process."""
    done = run("serve", "--port", "0", *words)
    assert done.exit_code == 2
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("Error: ")
    return line


def test_models_and_clusters_that_are_refused(driver: Any, tmp_path: Path) -> None:
    here = ("--ray", driver.address)
    assert "missing.gguf" in refusal(*here, "-t", "1", "-m", str(tmp_path / "missing.gguf"))
    assert "found hosts with 4, 4" in refusal(*here, "--replicas", "3")
    assert "--adapter" in refusal(*here, "--allow-adapter-loading", str(tmp_path))
    assert "ray start --head" in refusal("--ray", "nowhere")
    assert not applications()
    from pymixtral.cluster.replicas import Replicas
    from pymixtral.server.settings import Settings

    with pytest.raises(InvalidArgumentError, match="MIN:MAX"):
        Replicas(print, Settings(), address=driver.address, n=(2, 1))  # type: ignore[arg-type]
