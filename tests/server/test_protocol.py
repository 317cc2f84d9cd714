"""Connections: heads and bodies that come slowly, are too large or make no sense; too many of them."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from typing import cast

import pytest

from pymixtral.server.protocol import prepare
from pymixtral.server.serve import listen
from support.serving import LONG, Server, Start, eventually, post, read_all

GET = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n"
SHORT = {"prompt": "Once", "max_tokens": 2}


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def test_slow_heads_and_bodies_are_ended(start: Start) -> None:
    server = start(probe=True, settings={"header_seconds": 0.5, "body_seconds": 0.5, "idle_seconds": 0.5})
    silent, half, idle = server.connect(), server.connect(GET[:20]), server.connect(GET)
    after_blank, second = server.connect(GET), server.connect(GET)
    for connection in (idle, after_blank, second):
        answer = b""
        while not answer.endswith(b"}"):
            answer += connection.recv(1 << 16)
    after_blank.sendall(b"\r\n")  # a byte, so that the connection is idle no more, and no request
    second.sendall(GET[:20])
    for connection in (silent, half, idle, after_blank, second):
        assert read_all(connection) == b""
    body = server.connect(post("/probe/whole", SHORT)[:-1])
    answer = read_all(body)
    assert status(answer) == 408
    assert b'"timeout_error"' in answer


def test_pieces_are_sent_at_once() -> None:
    class Transport:
        def get_extra_info(self, name: str) -> socket.socket:
            assert name == "socket"
            return accepted

    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            prepare(cast("asyncio.Transport", Transport()))
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_a_head_that_trickles_is_ended(start: Start) -> None:
    server = start(settings={"header_seconds": 0.5}, probe=True)
    connection = server.connect(b"GET /livez HTTP/1.1\r\n")
    over = threading.Event()

    def trickle() -> None:
        try:
            while not over.wait(0.05):
                connection.sendall(b"x: y\r\n")
        except OSError:
            pass

    thread = threading.Thread(target=trickle)
    thread.start()
    assert read_all(connection) == b""
    over.set()
    thread.join(LONG)


@pytest.mark.parametrize("line", [b"x: " + b"y" * 1000 + b"\r\n", b"x" * 1000], ids=["many", "one"])
def test_a_large_head_is_refused(server: Server, line: bytes) -> None:
    connection = server.connect(b"GET /livez HTTP/1.1\r\n")
    answer: list[bytes] = []
    thread = threading.Thread(target=lambda: answer.append(read_all(connection)))
    thread.start()
    try:
        for _ in range(100_000):
            connection.sendall(line)
    except OSError:
        pass
    thread.join(LONG)
    assert answer[0] == b"" or status(answer[0]) in (400, 431)  # "": the connection was reset before it was read
    with server.client() as client:
        assert client.get("/livez").status_code == 200


def test_a_large_body_is_refused_and_a_smaller_one_is_not(start: Start) -> None:
    server = start(probe=True, settings={"max_body": 100_000})
    with server.client() as client:

        def pieces(n: int) -> list[bytes]:
            return [b'{"prompt": "Once", "max_tokens": 2'] + [b" " * 1000] * n + [b"}"]

        kind = {"content-type": "application/json"}
        assert client.post("/probe/whole", content=b"".join(pieces(90)), headers=kind).status_code == 200
        assert client.post("/probe/whole", content=iter(pieces(90)), headers=kind).status_code == 200
        for content in (b"".join(pieces(400)), iter(pieces(400))):
            refused = client.post("/probe/whole", content=content, headers=kind)
            assert (refused.status_code, refused.json()["error"]["code"]) == (413, "body_too_large")
        assert client.post("/probe/whole", json=SHORT).status_code == 200
    early = server.connect(post("/probe/whole", b"", **{"content-length": "1" + "0" * 18}))
    assert status(early.recv(1 << 16)) == 413  # before there is a body


def test_bodies_that_are_no_json(probe: Server) -> None:
    with probe.client() as client:
        for content in (b"{", b"\xff\xfe", b'{"prompt": "\xff"}', b"[" * 200_000, b"1" * 5000, b"NaN"):
            for path in ("/probe/whole", "/probe/stream"):
                answer = client.post(path, content=content, headers={"content-type": "application/json"})
                assert 400 <= answer.status_code <= 500
                assert answer.json()["error"]["message"]
        for kind in ("text/plain", "", "application/x-www-form-urlencoded"):
            answer = client.post("/probe/whole", content=b"{}", headers={"content-type": kind})
            assert answer.status_code == 415


@pytest.mark.parametrize(
    "data",
    [b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x00" * 100, b"GET /\xff HTTP/1.1\r\n\r\n"],
    ids=["tls", "no path", "version", "zeros", "no ascii"],
)
def test_what_is_no_http(server: Server, data: bytes) -> None:
    connection = server.connect(data)
    connection.settimeout(LONG)
    answer = connection.recv(1 << 16)
    assert answer == b"" or status(answer) == 400
    with server.client() as client:
        assert client.get("/livez").status_code == 200


def test_both_lengths_at_once_are_refused(probe: Server) -> None:
    body = json.dumps(SHORT).encode()
    connection = probe.connect(post("/probe/whole", body, **{"transfer-encoding": "chunked"}))
    assert status(connection.recv(1 << 16)) == 400


def test_an_upgrade_is_not_made(server: Server) -> None:
    with server.client() as client:
        for name in ("websocket", "h2c"):
            answer = client.get("/livez", headers={"connection": "upgrade", "upgrade": name})
            assert answer.status_code == 200
    assert not [line for line in server.lines if "pgrade" in line]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("at_once", [False, True])
def test_a_body_behind_an_upgrade_is_read(probe: Server, chunked: bool, at_once: bool) -> None:
    """As Java's client sends it; and what is pipelined behind it."""
    body = json.dumps(SHORT).encode()
    upgrade = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2-settings": "AAEAAEAA"}
    data = post("/probe/whole", body, **upgrade)
    if chunked:
        data = data.replace(b"content-length: %d" % len(body), b"transfer-encoding: chunked")
        data = (
            data.removesuffix(body) + b"5\r\n" + body[:5] + b"\r\n%x\r\n" % len(body[5:]) + body[5:] + b"\r\n0\r\n\r\n"
        )
    data += data + GET.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
    connection = probe.connect(data if at_once else b"")
    if not at_once:
        for i in range(len(data)):
            connection.sendall(data[i : i + 1])
    answer = read_all(connection)
    assert answer.count(b"HTTP/1.1 200 OK") == 3
    assert answer.endswith(b'{"status":"ok"}')


def test_old_and_pipelined_requests(server: Server) -> None:
    old = server.connect(b"GET /livez HTTP/1.0\r\n\r\n")
    assert read_all(old).startswith(b"HTTP/1.1 200")
    pipelined = server.connect(GET * 3 + GET.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
    assert read_all(pipelined).count(b'{"status":"ok"}') == 4


def test_idle_connections_give_way(start: Start) -> None:
    server = start(settings={"max_connections": 20, "header_seconds": 1000}, probe=True)
    streaming = server.connect(post("/probe/stream", {"prompt": "Once", "max_tokens": None}))
    assert streaming.recv(1)
    many = [server.connect() for _ in range(100)]
    for connection in many[:-30]:
        assert read_all(connection) == b""
    with server.client() as client:
        assert client.get("/livez").status_code == 200
    assert streaming.recv(1)
    streaming.close()
    eventually(lambda: server.metric("num_requests_running") == 0, "it has ended")
    for connection in many:
        connection.close()
