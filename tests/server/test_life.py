"""A server's life: it loads, serves, drains and ends; clients leave, and read nothing."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pymixtral.demo import demo_chat_path
from support.serving import LONG, Server, Start, eventually, post, read_all

ENDLESS = {"prompt": "Once upon a time", "max_tokens": None}
LONG_CONTEXT = ("-m", str(demo_chat_path()), "--override-kv", "llama.context_length=int:200000", "-c", "200000")
LONG_PROMPT = {"prompt": "Once upon a time there was a king. " * 3_000, "max_tokens": 1}


def events_of(text: str) -> list[Any]:
    """The events of a stream, without its end."""
    found = [line.removeprefix("data: ") for line in text.split("\n\n") if line.startswith("data: ")]
    return [json.loads(line) for line in found if line != "[DONE]"]


def running(server: Server) -> float:
    return server.metric("num_requests_running") + server.metric("num_requests_waiting")


# --- It begins ----------------------------------------------------------------------------------------


def test_it_answers_while_its_model_is_opened(start: Start, tmp_path: Path) -> None:
    server = start(wait=False, probe=True, env={"PROBE_HOLD": str(tmp_path / "go")})
    with server.client() as client:
        assert client.get("/livez").status_code == 200
        for path in ("/health", "/v1/health"):
            health = client.get(path)
            assert (health.status_code, health.json()["status"]) == (503, "loading")
        for path in ("/v1/models", "/metrics"):
            assert (client.get(path).status_code, client.get(path).json()["error"]["code"]) == (503, "loading")
        assert client.post("/probe/whole", json=ENDLESS).json()["error"]["code"] == "loading"
        (tmp_path / "go").touch()
        server.ready()
        assert client.get("/health").json() == {"status": "ok"}
        assert client.head("/health").status_code == 200


def test_a_signal_while_the_model_is_opened_ends_it(start: Start, tmp_path: Path) -> None:
    server = start(wait=False, probe=True, env={"PROBE_HOLD": str(tmp_path / "go")})
    with server.client() as client:
        client.get("/livez")  # it is past its imports
    server.send(signal.SIGTERM)
    assert server.wait() == 0


def test_a_signal_while_it_begins_ends_it(start: Start) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        server = start(wait=False)
        server.send(number)  # perhaps before its own handling of signals
        assert server.wait() in (0, 128 + number)
        assert not [line for line in server.lines if "Traceback" in line]


def test_a_model_that_cannot_be_opened_ends_it(start: Start, tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    server = start("-m", str(tmp_path / "bad.gguf"), wait=False)
    assert server.wait() == 2
    assert [line for line in server.lines if "Error" in line] == server.lines[1:]
    assert len(server.lines) == 2


def test_several_workers_are_refused(start: Start) -> None:
    server = start(wait=False, env={"WEB_CONCURRENCY": "2"})
    assert server.wait() == 2
    (line,) = server.lines
    assert "WEB_CONCURRENCY=2" in line
    assert start(env={"WEB_CONCURRENCY": "1"}).url


def test_a_port_in_use_is_refused(server: Server) -> None:
    words = [sys.executable, "-m", "pymixtral", "serve", "--port", str(server.address[1])]
    done = subprocess.run(words, capture_output=True, text=True, timeout=LONG)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: expected --port to be one that is free, found ")
    assert done.stderr.count("\n") == 1


# --- It ends ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_idle_server(start: Start, number: int) -> None:
    server = start()
    with server.client() as client:
        client.get("/health")
        server.send(number)
        assert server.wait() == 0
    assert not [line for line in server.lines if "Traceback" in line]


def test_answers_end_before_the_server(start: Start) -> None:
    server = start(probe=True)
    body = {"prompt": "Once", "max_tokens": 3000, "seed": 1}
    with server.client() as client, client.stream("POST", "/probe/stream", json=body) as stream:
        pieces = stream.iter_text()
        text = next(pieces)
        server.send(signal.SIGTERM)
        server.until("^Ending: 1 running")
        with server.client() as other:
            health = other.get("/health")
            assert (health.status_code, health.json()["status"]) == (503, "draining")
            refused = other.post("/probe/whole", json=ENDLESS)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        text += "".join(pieces)
    assert text.endswith("data: [DONE]\n\n")
    assert events_of(text)[-1] == {"finish_reason": "length"}
    assert server.wait() == 0


def test_answers_that_last_too_long_are_cut(start: Start) -> None:
    server = start("--drain", "0.1", probe=True)
    whole = server.connect(post("/probe/whole", ENDLESS))
    with server.client() as client, client.stream("POST", "/probe/stream", json=ENDLESS) as stream:
        pieces = stream.iter_text()
        text = next(pieces)
        eventually(lambda: running(server) == 2, "both are computed")
        server.send(signal.SIGTERM)
        text += "".join(pieces)
    assert events_of(text)[-1]["error"]["code"] == "draining"
    assert b"HTTP/1.1 503" in (answer := read_all(whole))
    assert b'"draining"' in answer
    assert server.wait() == 0


def test_bodies_that_do_not_come_are_cut(start: Start) -> None:
    server = start("--drain", "0.1", probe=True)
    half = server.connect(post("/probe/whole", ENDLESS, expect="100-continue")[:-1])
    assert half.recv(1 << 16).startswith(b"HTTP/1.1 100")  # it waits for the body
    server.send(signal.SIGTERM)
    answer = read_all(half)
    assert answer.startswith(b"HTTP/1.1 503")
    assert b'"draining"' in answer
    assert server.wait() == 0


def test_a_second_signal_waits_for_nobody(start: Start) -> None:
    server = start("--drain", "100000", probe=True)
    whole = server.connect(post("/probe/whole", ENDLESS))
    eventually(lambda: running(server) == 1, "it is computed")
    server.send(signal.SIGINT)
    server.until("^Ending")
    server.send(signal.SIGTERM)
    assert server.wait() == 128 + signal.SIGTERM
    assert b"503" in read_all(whole)


# --- Clients that leave -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/probe/whole", "/probe/stream"])
@pytest.mark.parametrize("half", [False, True], ids=["closed", "half-closed"])
def test_a_client_that_leaves_ends_its_text(probe: Server, path: str, half: bool) -> None:
    before = probe.metric("request_success_total", finished_reason="abort")
    connection = probe.connect(post(path, ENDLESS))
    eventually(lambda: running(probe) == 1, "it is computed")
    connection.shutdown(socket.SHUT_WR) if half else connection.close()
    eventually(lambda: running(probe) == 0, "it has ended")
    assert probe.metric("request_success_total", finished_reason="abort") == before + 1
    connection.close()


@pytest.mark.parametrize("path", ["/probe/whole", "/probe/stream"])
def test_a_client_that_leaves_ends_its_prompt(start: Start, path: str) -> None:
    server = start(*LONG_CONTEXT, probe=True)
    connection = server.connect(post(path, LONG_PROMPT))
    eventually(lambda: running(server) == 1, "it is computed")
    assert not server.metric("generation_tokens_total")
    connection.close()
    eventually(lambda: running(server) == 0, "it has ended")
    assert not server.metric("generation_tokens_total")


def test_a_client_that_leaves_while_it_waits(start: Start) -> None:
    server = start("--max-batch", "1", probe=True)
    first, second = (server.connect(post("/probe/stream", ENDLESS)) for _ in range(2))
    eventually(lambda: server.metric("num_requests_waiting") == 1, "one waits")
    second.close()
    eventually(lambda: server.metric("num_requests_waiting") == 0, "none waits")
    assert server.metric("num_requests_running") == 1
    first.close()
    eventually(lambda: running(server) == 0, "none is computed")


def test_clients_that_are_killed(probe: Server) -> None:
    program = f"""
import socket, sys, time
connection = socket.create_connection({probe.address!r})
connection.sendall({post("/probe/stream", ENDLESS)!r})
connection.recv(1)
print(flush=True)
time.sleep(1000)
"""
    clients = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) for _ in range(4)]
    for client in clients:
        assert client.stdout
        client.stdout.readline()
    eventually(lambda: running(probe) == 4, "all are computed")
    for client in clients:
        client.kill()
        client.wait()
    eventually(lambda: running(probe) == 0, "all have ended")


def test_many_requests_of_which_half_are_cancelled(probe: Server) -> None:
    body = {"prompt": "Once", "max_tokens": 5, "temperature": 0}
    with probe.client() as client:
        expected = client.post("/probe/whole", json=body).json()
        for i in range(100):
            leaving = probe.connect(post("/probe/stream" if i % 2 else "/probe/whole", ENDLESS))
            assert client.post("/probe/whole", json=body).json() == expected
            leaving.close()
    eventually(lambda: running(probe) == 0, "all have ended")


# --- Clients that read nothing ------------------------------------------------------------------------


def test_a_slow_reader_stops_nobody_and_is_dropped(start: Start) -> None:
    server = start(probe=True, settings={"write_seconds": 1.0}, env={"PYTHONASYNCIODEBUG": ""})
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(server.address)
        slow.sendall(b"GET /probe/flood HTTP/1.1\r\nhost: localhost\r\n\r\n")
        slow.recv(1)
        with server.client() as client:
            assert client.post("/probe/whole", json={**ENDLESS, "max_tokens": 5}).status_code == 200
        line = server.until("/probe/flood")  # its request is over, and logged
        assert "200" in line
        slow.settimeout(LONG)
        read_all(slow)  # it has an end


# --- Limits -------------------------------------------------------------------------------------------


def test_a_full_queue_refuses(start: Start) -> None:
    server = start("--max-batch", "1", "--queue", "1", probe=True)
    two = [server.connect(post("/probe/whole", ENDLESS)) for _ in range(2)]
    eventually(lambda: running(server) == 2, "one is computed, one waits")
    with server.client() as client:
        for path in ("/probe/whole", "/probe/stream"):
            refused = client.post(path, json=ENDLESS)
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
            assert refused.json()["error"]["type"] == "rate_limit_error"
            assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert client.get("/health").status_code == 200
        two.pop().close()
        eventually(lambda: running(server) == 1, "a place is free")
        two.append(server.connect(post("/probe/whole", ENDLESS)))
        eventually(lambda: running(server) == 2, "it is taken")
    for one in two:
        one.close()


def test_a_timeout_ends_texts(start: Start) -> None:
    server = start("--timeout", "0.3", probe=True)
    with server.client() as client:
        assert client.post("/probe/whole", json=ENDLESS).json()["finish_reason"] == "deadline"
        stream = client.post("/probe/stream", json=ENDLESS).text
        assert events_of(stream)[-1] == {"finish_reason": "deadline"}
    assert server.metric("request_success_total", finished_reason="deadline") == 2


def test_a_silent_stream_says_that_it_lives(start: Start) -> None:
    server = start(probe=True, settings={"ping_seconds": 0.05})
    with server.client() as client, client.stream("GET", "/probe/silence") as stream:
        assert stream.headers["content-type"] == "text/event-stream"
        pieces = stream.iter_text()
        assert next(pieces) == next(pieces) == ": ping\n\n"


# --- Faults -------------------------------------------------------------------------------------------


def test_an_error_before_the_first_event_is_an_answer(probe: Server) -> None:
    with probe.client() as client:
        answer = client.post("/probe/stream", json={**ENDLESS, "temperature": -1})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_value")
        answer = client.post("/probe/stream", json={"prompt": "king " * 3000})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (400, "context_length_exceeded")
        assert "2048" in error["message"]


def test_a_fault_of_the_server_tells_no_secrets(probe: Server) -> None:
    with probe.client() as client:
        answer = client.get("/probe/fault", params={"late": False})
        assert answer.status_code == 500
        assert answer.headers["x-should-retry"] == "false"
        late = client.get("/probe/fault", params={"late": True})
        assert late.text.split("\n\n")[0] == "data: first"
        assert events_of(late.text.split("\n\n", 1)[1])[0]["error"]["type"] == "server_error"
        assert "secret" not in answer.text + late.text
        assert client.get("/v1/models").status_code == 200
    for secret in ("the secret of the house", "the secret of the stream"):
        eventually(lambda secret=secret: any(secret in line for line in probe.lines), secret)


def test_unknown_paths_and_methods(server: Server) -> None:
    with server.client() as client:
        missing = client.get("/v1/nothing").json()["error"]
        assert missing["type"] == "not_found_error"
        assert "/openapi.json lists the endpoints" in missing["message"]
        assert client.get("/v1/models/").status_code == 404
        assert client.get("/v1/models/a/b").json()["error"]["code"] == "model_not_found"
        (model,) = client.get("/v1/models").json()["data"]
        assert client.get(f"/v1/models/{model['id']}").json() == client.get(f"/models/{model['id']}").json() == model
        refused = client.delete("/v1/models")
        assert refused.status_code == 405
        assert "expected the method GET" in refused.json()["error"]["message"]
        assert isinstance(client.get("/version").json()["version"], str)


def test_the_document_of_the_interface(server: Server) -> None:
    with server.client() as client:
        document = client.get("/openapi.json").json()
    statuses = {status for path in document["paths"].values() for one in path.values() for status in one["responses"]}
    assert "422" not in statuses
    ids = [one["operationId"] for path in document["paths"].values() for one in path.values()]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("command", [["serve", "--port", "0"], ["batch", __file__, "no/answers.jsonl"]])
def test_without_its_packages_it_says_what_to_install(command: list[str]) -> None:
    program = f"import sys; sys.modules['fastapi'] = None; from pymixtral.cli import main; main({command!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=LONG)
    assert done.returncode == 2
    assert "pip install 'pymixtral[server]'" in done.stderr


def test_a_name_is_a_part_of_a_line(start: Start) -> None:
    server = start("--name", "a\nb\x1b[31m", wait=False)
    assert "tokens of context" in server.until(r"^Ready: a\\nb\\x1b\[31m, ")
