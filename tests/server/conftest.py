"""Fixtures of the tests of the server: processes that serve."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from support.serving import Server, Start


@pytest.fixture
def start() -> Iterator[Start]:
    """A function that starts a server; with wait=False before its model is open."""
    servers: list[Server] = []

    def start(*arguments: str, wait: bool = True, **options: Any) -> Server:
        servers.append(Server(*arguments, **options))
        return servers[-1].ready() if wait else servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A server of the demo model, for all tests that change nothing of it."""
    server = Server().ready()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def probe() -> Iterator[Server]:
    """The same with the endpoints of support/probe_server.py."""
    server = Server(probe=True).ready()
    yield server
    server.stop()
