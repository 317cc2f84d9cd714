"""A presence is there until it is ended, whatever befalls its process; test_replicas.py ends its program."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest

from support.serving import LONG, eventually

pytestmark = pytest.mark.ray


@pytest.mark.usefixtures("driver")
def test_a_presence_whose_process_is_killed_comes_back() -> None:
    import ray
    from ray.exceptions import RayError

    from pymixtral.cluster.presence import present, until_gone

    presence = present()

    def pid() -> Any:
        try:
            return ray.get(presence.__ray_call__.remote(lambda _: os.getpid()), timeout=LONG)
        except RayError:  # between the two
            return first

    first: int | None = None
    first = pid()
    assert first

    async def waited() -> None:
        waiting = asyncio.create_task(until_gone(presence))
        await asyncio.sleep(0)
        os.kill(first, signal.SIGKILL)
        await asyncio.to_thread(eventually, lambda: pid() != first, "another process")
        assert not waiting.done()
        ray.kill(presence)
        await asyncio.wait_for(waiting, LONG)

    asyncio.run(waited())
    asyncio.run(asyncio.wait_for(until_gone(presence), LONG))  # who asks later learns it, too
