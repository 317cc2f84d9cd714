"""Fixtures of the tests of clusters: real ones of Ray, whose nodes are processes of this machine."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pymixtral import Mixtral
from support.nodes import add_node


@pytest.fixture(scope="session")
def token() -> Iterator[None]:
    """A token for clusters, and a folder."""
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # short, as names of sockets must be
    before = dict(os.environ)
    os.environ |= {
        "RAY_TMPDIR": folder,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    }
    from ray._private.authentication_test_utils import reset_auth_token_state

    reset_auth_token_state()  # a module of tests may have imported Ray, which reads the variables then
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def cluster(token: None) -> Iterator[Any]:  # noqa: ARG001
    """A cluster of two nodes, with a token; `address` is what ray.init takes. It is connected to nobody."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        for _ in range(2):
            add_node(cluster)
        yield cluster
    finally:
        ray.shutdown()
        for node in cluster.list_all_nodes():
            cluster.remove_node(node, allow_graceful=False)  # which a loaded machine takes too long for
        cluster.shutdown()


@pytest.fixture(scope="session")
def driver(cluster: Any) -> Any:
    """The same, to which the process of the tests is connected."""
    import ray

    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    return cluster


@pytest.fixture(scope="module")
def alone(tiny_q8_0: Path) -> Iterator[Mixtral]:
    """A model in one process, whose texts those of pipelines are compared with."""
    with Mixtral(tiny_q8_0, n_ctx=256, n_threads=1, max_batch=1) as model:
        yield model
