"""A server as a process of its own, for tests that ask it."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import httpx

from support.paths import ROOT

LONG = 120.0
"""Seconds that are enough for anything, however busy the machine is."""

PROBE = str(Path(__file__).with_name("probe_server.py"))


class Server:
    """`pymixtral serve`, running.

    Args:
        *arguments: of the command.
        probe: with the endpoints of support/probe_server.py.
        settings: limits in the place of Settings' own; only with probe.
        env: more environment variables.

    Attributes:
        url: its address; "" if it has ended before it had one.
        process: its process.
        lines: what it has written to standard error.
    """

    def __init__(
        self,
        *arguments: str,
        probe: bool = False,
        settings: dict[str, Any] | None = None,
        env: dict[str, str] | None = None,
    ) -> None:
        program = [PROBE] if probe else ["-m", "pymixtral"]
        variables = {
            **{name: value for name, value in os.environ.items() if name not in ("WEB_CONCURRENCY", "PYMIXTRAL_MODEL")},
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
            "PROBE_SETTINGS": json.dumps(settings or {}),
            **(env or {}),
        }
        self.process = subprocess.Popen(
            [sys.executable, *program, "serve", "--port", "0", *arguments],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=variables,
            text=True,
        )
        self.lines: list[str] = []
        self._written: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        found = re.fullmatch("Serving on (http://.*)", self.line())
        self.url = found[1] if found else ""

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            self._written.put(self.lines[-1])
        self._written.put("")

    def line(self) -> str:
        """The next line of standard error; "" at its end."""
        return self._written.get(timeout=LONG)

    def until(self, pattern: str) -> str:
        """The next line of standard error in which a pattern is found."""
        while line := self.line():
            if re.search(pattern, line):
                return line
        raise AssertionError(f"the server has ended without {pattern!r}: {self.lines}")

    def ready(self) -> Server:
        """Itself, once its model is open."""
        self.until("^Ready")
        return self

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        url = httpx.URL(self.url)
        assert url.port
        return url.host, url.port

    def client(self, **options: Any) -> httpx.Client:
        """A client of it."""
        return httpx.Client(base_url=self.url, timeout=LONG, trust_env=False, **options)

    def connect(self, data: bytes = b"") -> socket.socket:
        """A connection on which some bytes were sent."""
        connection = socket.create_connection(self.address, timeout=LONG)
        connection.sendall(data)
        return connection

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's values, of those with these labels."""
        from prometheus_client.parser import text_string_to_metric_families

        with self.client() as client:
            text = client.get("/metrics").text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == f"pymixtral:{name}" and labels.items() <= sample.labels.items()
        )

    def send(self, number: int) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """The exit status, once it has ended and all that it wrote was read."""
        status = self.process.wait(LONG)
        self._reader.join(LONG)
        return status

    def stop(self) -> None:
        """End it, in whatever state it is."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.wait()


class Start(Protocol):
    """Starts a server that ends with the test; see support.serving.Server."""

    def __call__(self, *arguments: str, wait: bool = True, **options: Any) -> Server: ...


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Waits until something is so."""
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end, f"still not so: {what}"
        time.sleep(0.01)


def post(path: str, body: Any, **headers: str) -> bytes:
    """The bytes of a request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = {"host": "127.0.0.1", "content-type": "application/json", "content-length": str(len(data)), **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + data


def read_all(connection: socket.socket) -> bytes:
    """What comes until the server closes the connection, in whatever way."""
    data = b""
    try:
        while piece := connection.recv(1 << 16):
            data += piece
    except ConnectionResetError:
        pass
    return data
