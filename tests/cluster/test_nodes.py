"""A cluster of three nodes that loses one."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from support.nodes import CPUS, add_node, applications, n_running
from support.serving import Server, eventually

pytestmark = pytest.mark.ray


def test_a_node_that_is_lost(driver: Any) -> None:
    """Three replicas, each of which needs most of a node. Where one is lost the others answer; another one is taken."""
    node = add_node(driver)
    try:
        server = Server("--ray", driver.address, "--replicas", "3", "-t", str(CPUS - 1), "--name", "spread")
        try:
            server.ready()
            with server.client() as client, ThreadPoolExecutor(9) as pool:

                def ask(i: int) -> int:
                    body = {"prompt": f"Tale {i}. " * 8, "max_tokens": 100, "ignore_eos": True}
                    return client.post("/v1/completions", json=body).status_code

                answers = [pool.submit(ask, i) for i in range(9)]
                driver.remove_node(node, allow_graceful=False)
                answers += [pool.submit(ask, i) for i in range(9)]
                assert {answer.result() for answer in answers} == {200}
            node = add_node(driver)
            (application,) = applications("spread")
            eventually(lambda: n_running(application) == 3, "three replicas")
            server.send(signal.SIGTERM)
            assert server.wait() == 0
            assert not applications("spread")
        finally:
            server.stop()
    finally:
        driver.remove_node(node)
