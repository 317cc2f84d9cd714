"""Presence: an actor that lives as long as the program that made it, for actors that must not outlive it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class Presence:
    """The class of the actor."""

    async def stay(self) -> None:
        """Return never: who waits for this call learns when the actor is gone for good."""
        await asyncio.Event().wait()


def present() -> Any:
    """Make the actor. Ray ends it with this program, however that ends; ray.kill() does before.

    It is on this program's node, so that it is not lost with another one.

    Returns:
        Its handle.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    return ray.remote(Presence).options(**options).remote()


async def until_gone(presence: Any) -> None:
    """Wait until an actor is gone.

    Args:
        presence: as present() returns it, in whatever process.
    """
    with suppress(RayError):
        await presence.stay.remote()
