"""What Ray Serve asks a router for. Its interface is an alpha one: a release that changes it fails here."""

from __future__ import annotations

from dataclasses import fields
from inspect import signature

import pytest

pytestmark = pytest.mark.ray


@pytest.mark.parametrize("name", ["choose_replicas", "on_request_routed", "on_request_completed", "update_replicas"])
def test_the_router_has_the_methods_that_ray_calls(name: str) -> None:
    from ray.serve.request_router import RequestRouter

    from pymixtral.cluster.router import PrefixRouter

    ours, rays = (signature(getattr(one, name)).parameters.values() for one in (PrefixRouter, RequestRouter))
    assert [(one.name.lstrip("_"), one.kind) for one in ours] == [(one.name, one.kind) for one in rays]


def test_the_router_finds_what_it_reads_of_ray() -> None:
    from ray.serve.request_router import PendingRequest, RequestRouter

    assert {"args", "metadata", "routing_context"} <= {field.name for field in fields(PendingRequest)}
    context = next(field for field in fields(PendingRequest) if field.name == "routing_context").default_factory
    assert context().should_backoff is False  # type: ignore[misc,operator]
    assert RequestRouter.queue_len_response_deadline_s > 0
    assert callable(RequestRouter.initialize_state)
