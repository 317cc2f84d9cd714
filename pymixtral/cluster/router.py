"""PrefixRouter: Ray Serve asks it which replica takes a request."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from pymixtral.cluster.prefixes import chosen


class PrefixRouter(RequestRouter):  # type: ignore[misc]  # Ray is not always there
    """Sends texts that begin alike to one replica; see pymixtral.cluster.prefixes.

    It counts the requests of each replica itself: what Serve knows of a replica is forgotten after ten
    seconds, and answers take longer.
    """

    queue_len_response_deadline_s = 1.0
    """A replica that computes on all cores may take that long to say how many requests it has."""

    def initialize_state(self, slack: int) -> None:
        """Begin.

        Args:
            slack: as for chosen().
        """
        self._slack = slack
        self._draw = random.Random()
        self._running: defaultdict[str, set[str]] = defaultdict(set)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Choose replicas for a request: groups, of which the first one that takes requests counts."""
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # else Serve asks again at once, without an end
        replicas = {str(replica.replica_id.unique_id): replica for replica in candidate_replicas}
        if not replicas:
            return []
        prefix = getattr(pending_request.args[0], "prefix", "") if pending_request and pending_request.args else ""
        loads = {name: len(self._running[name]) for name in replicas}
        return [[replicas[name] for name in group] for group in chosen(prefix, loads, self._slack, self._draw)]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, _result: Any) -> None:
        """Count a request that a replica has taken."""
        self._running[str(replica_id.unique_id)].add(pending_request.metadata.internal_request_id)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Count a request that is over."""
        self._running[str(replica_id.unique_id)].discard(internal_request_id)

    def update_replicas(self, replicas: list[Any]) -> None:
        """Take the replicas that there are, and forget what others had."""
        super().update_replicas(replicas)
        names = {str(replica.replica_id.unique_id) for replica in replicas}
        for name in set(self._running) - names:
            del self._running[name]
