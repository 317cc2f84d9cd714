"""A cluster whose head is killed while it serves."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from support.nodes import add_node
from support.serving import LONG, Server, eventually

pytestmark = pytest.mark.ray

ENDLESS: dict[str, Any] = {"prompt": "Once", "max_tokens": 1_000_000, "ignore_eos": True, "context_shift": 64}


@pytest.fixture
def mortal(token: None) -> Iterator[Any]:  # noqa: ARG001
    """A cluster of its own, of a head and another node."""
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    for _ in range(2):
        add_node(cluster)
    yield cluster
    for node in cluster.list_all_nodes():
        node.kill_all_processes(check_alive=False, allow_graceful=False)


def test_a_head_that_is_killed(mortal: Any) -> None:
    """Requests end, those that are computed and those that come. SIGTERM ends the server without a drain."""
    server = Server("--ray", mortal.address, "--replicas", "2", "-t", "3", "--drain", str(10 * LONG)).ready()
    try:
        with server.client() as client, ThreadPoolExecutor(6) as pool:
            wholes = [pool.submit(client.post, "/v1/completions", json=ENDLESS) for _ in range(4)]
            eventually(lambda: server.metric("num_requests_running") == 4, "all texts are computed")
            with client.stream("POST", "/v1/completions", json={**ENDLESS, "stream": True}) as stream:
                lines = stream.iter_lines()
                next(lines)
                for processes in mortal.head_node.all_processes.values():
                    for one in processes:
                        os.kill(one.process.pid, signal.SIGKILL)
                assert "cluster_lost" in [line for line in lines if line][-1]
            for whole in wholes:
                answer = whole.result()
                assert (answer.status_code, answer.json()["error"]["code"]) == (503, "cluster_lost")
            assert client.post("/v1/completions", json=ENDLESS).json()["error"]["code"] == "cluster_lost"
            health = client.get("/health")
            assert (health.status_code, health.json()["status"]) == (503, "lost")
            assert client.get("/livez").status_code == 200
        server.send(signal.SIGTERM)
        assert server.wait() == 0
    finally:
        server.stop()


def test_a_head_that_is_stopped(mortal: Any) -> None:
    """The system takes its connections, and Ray would wait for its answers for ever. SIGTERM ends the server."""
    server = Server("--ray", mortal.address, "--replicas", "2", "-t", "3").ready()
    (head,) = (one.process.pid for one in mortal.head_node.all_processes["gcs_server"])
    os.kill(head, signal.SIGSTOP)
    try:
        with server.client() as client:
            answer = client.post("/v1/completions", json={"prompt": "Once", "max_tokens": 3})
            assert answer.status_code == 200
        server.send(signal.SIGTERM)
        assert server.wait() == 0
    finally:
        os.kill(head, signal.SIGCONT)
        server.stop()
