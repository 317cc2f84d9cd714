"""Nodes of a cluster of Ray, as processes of this machine."""

from __future__ import annotations

from typing import Any

CPUS = 4
"""CPUs that Ray takes each node to have, however many there are."""


def add_node(cluster: Any) -> Any:
    """Add a node of CPUS to a ray.cluster_utils.Cluster, and return it."""
    return cluster.add_node(num_cpus=CPUS, object_store_memory=200_000_000, include_dashboard=False)
