"""Nodes of a cluster of Ray, as processes of this machine, and what Serve runs there."""

from __future__ import annotations

import re
from typing import Any

CPUS = 4
"""CPUs that Ray takes each node to have, however many there are."""


def add_node(cluster: Any) -> Any:
    """Add a node of CPUS to a ray.cluster_utils.Cluster, and return it."""
    return cluster.add_node(num_cpus=CPUS, object_store_memory=200_000_000, include_dashboard=False)


def applications(name: str = "") -> list[str]:
    """What Serve runs for the commands of a --name, in the cluster that this process is connected to."""
    from ray import serve

    form = re.compile(f"pymixtral{name and '-'}{name}-[0-9a-f]{{8}}")
    return [found for found in serve.status().applications if form.fullmatch(found)]


def n_running(application: str) -> int:
    """Replicas of an application that run."""
    from ray import serve

    states = serve.status().applications[application].deployments["Replica"].replica_states
    return int(states.get("RUNNING", 0))
