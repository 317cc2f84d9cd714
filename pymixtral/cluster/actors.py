"""The stages of a pipeline as actors of Ray, each on a host of its own."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from copy import copy
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from pymixtral.cluster.messages import Done, Lost, StageState, Work
from pymixtral.cluster.stages import Stage, StagePlan
from pymixtral.errors import CanceledError, ClosedError, HostLostError, PymixtralError

_PIECE = 90_000
"""Bytes that Ray carries in its messages. What is larger than 100 kB goes through stores of objects, which takes
some 10 ms from host to host, where 3 such pieces take 1.4."""

_MOST_PIECES = 24
"""More take longer than the store."""

_NOTICE_SECONDS = 5
"""How long a pass that has met a loss waits for the news whose it is."""

_CONTROL = 4
"""Calls that an actor answers beside those that compute: open, stay, cancel, state."""


def pieces(message: Done, n: int | None = None) -> list[bytes]:
    """Cut a message.

    Args:
        message: what stages have done.
        n: how many pieces; None: as many as are carried fastest.

    Returns:
        The pieces.
    """
    whole = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    if n is None:
        n = -(-len(whole) // _PIECE)
        n = n if n <= _MOST_PIECES else 1
    size = -(-len(whole) // n)
    return [whole[i * size : (i + 1) * size] for i in range(n)]


def joined(cut: Sequence[bytes]) -> Done:
    """Put a message together.

    Args:
        cut: the pieces that pieces() made.

    Returns:
        The message.
    """
    found: Done = pickle.loads(cut[0] if len(cut) == 1 else b"".join(cut))
    return found


class StageActor:
    """A stage in a process of its own. Its errors are values, as Ray would wrap them."""

    def __init__(self) -> None:
        self._stage: Stage | None = None
        self._end = threading.Event()

    def open(self, plan: StagePlan) -> Exception | None:
        """Make the stage; what goes wrong is returned."""
        try:
            self._stage = Stage(plan)
        except Exception as error:
            return error
        return None

    def run(self, lane: int, n: int, work: Work, *before: bytes) -> list[bytes] | bytes:
        """Compute; see Stage. What comes before and the result are messages in n pieces."""
        assert self._stage
        cut = pieces(self._stage.run(lane, work, joined(before)), n)
        return cut if n > 1 else cut[0]

    def cancel(self, lane: int, number: int) -> None:
        """Cancel work; see Stage."""
        assert self._stage
        self._stage.cancel(lane, number)

    def state(self) -> StageState:
        """Describe the stage; see Stage."""
        assert self._stage
        return self._stage.state()

    def stay(self) -> None:
        """Return never: who waits for this call learns when the actor is gone."""
        self._end.wait()


class ActorChain:
    """The stages after the first, as actors; see pymixtral.cluster.messages.Chain.

    A thread makes them, and then waits until one is gone.

    Args:
        plans: one for each stage, in order.
        lost: is told when the chain is of no more use.
        n_cpus: what each stage reserves of its host.
        spread: "STRICT_SPREAD": each stage on another host, none on this one; "SPREAD" or "PACK":
            where there is room; see Ray's placement groups.
        patience: seconds in which hosts have to be found.

    Attributes:
        is_ready: whether all stages are open.
    """

    def __init__(self, plans: Sequence[StagePlan], lost: Lost, *, n_cpus: float, spread: str, patience: float) -> None:
        self.is_ready = False
        self._plans, self._lost = plans, lost
        self._n_cpus, self._spread, self._patience = n_cpus, spread, patience
        self._changed = threading.Condition()
        self._error: Exception | None = None
        self._closing = False
        self._cancelled = dict.fromkeys(range(plans[0].n_lanes), 0)
        self._actors: list[Any] = []
        self._group: Any = None
        threading.Thread(target=self._live, name="pymixtral-stages", daemon=True).start()

    def wait(self) -> None:
        """Wait until the stages are open.

        Raises:
            PymixtralError: what prevents it.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.is_ready or self._error or self._closing)
            self._check()

    def run(self, lane: int, work: Work, before: Done) -> Done:
        """Let the stages work; see Chain."""
        with self._changed:
            self._changed.wait_for(
                lambda: self.is_ready or self._error or self._closing or self._cancelled[lane] >= work.number
            )
            self._check()
            if not self.is_ready:
                raise CanceledError("expected a result, found that the request was cancelled: ask again")
        parts: list[Any] = pieces(before)
        n = len(parts)
        try:
            for actor in self._actors:
                done = actor.run.options(num_returns=n).remote(lane, n, work, *parts)  # from host to host
                parts = done if n > 1 else [done]
            found = joined(ray.get(parts))
        except RayError as error:
            with self._changed:  # the thread that waits for the actors knows which it is
                self._changed.wait_for(lambda: self._error or self._closing, _NOTICE_SECONDS)
            self._lose(self._of_loss(None, error))
            with self._changed:
                self._check()
            raise
        return found

    def cancel(self, lane: int, number: int) -> None:
        """Cancel work; see Chain."""
        with self._changed:
            self._cancelled[lane] = max(self._cancelled[lane], number)
            self._changed.notify_all()
            actors = self._actors if self.is_ready and not self._closing else []
        for actor in actors:
            with suppress(RayError):
                actor.cancel.remote(lane, number)

    def states(self) -> list[StageState]:
        """Describe the stages.

        Raises:
            HostLostError: if one is gone.
        """
        self.wait()
        try:
            found: list[StageState] = ray.get([actor.state.remote() for actor in self._actors])
        except RayError as error:
            raise self._of_loss(None, error) from error
        return found

    def close(self) -> None:
        """End the actors; see Chain."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._kill()

    def _check(self) -> None:
        if self._error is not None:
            raise copy(self._error)  # each raise adds its frames
        if self._closing:
            raise ClosedError("expected an open pipeline, found one that was closed: open it again")

    def _kill(self) -> None:
        with self._changed:
            actors, group, self._group = self._actors, self._group, None
        if ray.is_initialized():
            for actor in actors:
                with suppress(RayError, ValueError):
                    ray.kill(actor)
            if group is not None:
                with suppress(RayError, ValueError):
                    remove_placement_group(group)

    # --- The thread -------------------------------------------------------------------------------

    def _live(self) -> None:
        try:
            self._open()
            staying = [actor.stay.remote() for actor in self._actors]
            gone, _ = ray.wait(staying, num_returns=1, fetch_local=False)
            try:
                ray.get(gone)  # which says why
            except RayError as error:
                self._lose(self._of_loss(self._plans[staying.index(gone[0])].layers, error))
        except PymixtralError as error:
            self._lose(error)
        except RayError as error:
            self._lose(self._of_loss(None, error))
        except Exception as error:  # of Ray, too, such as of a process that is not connected
            why = " ".join(str(error).split())
            self._lose(HostLostError(f"expected a cluster that starts the stages of the model, found an error: {why}"))
        if not self._closing:
            assert self._error
            self._lost(self, self._error)

    def _open(self) -> None:
        """Finds hosts and opens the stages there.

        Raises:
            HostLostError: if there are too few.
            ClosedError: after close().
            PymixtralError: what a stage finds wrong.
        """
        n = len(self._plans)
        strict = self._spread == "STRICT_SPREAD"
        elsewhere = {"ray.io/node-id": f"!{ray.get_runtime_context().get_node_id()}"}
        group = placement_group(
            [{"CPU": self._n_cpus}] * n,
            strategy=self._spread,
            bundle_label_selector=[elsewhere] * n if strict else None,
        )
        with self._changed:
            self._group = group
        end = time.monotonic() + self._patience
        while not group.wait(timeout_seconds=1):
            with self._changed:
                self._check()
            if time.monotonic() >= end:
                raise HostLostError(
                    f"expected {n} {'other hosts' if strict else 'places'} in the cluster with {self._n_cpus:g} free "
                    f"CPUs each, found too few in {self._patience:g} seconds: start more, or ask for fewer stages"
                )
        actor = ray.remote(StageActor)
        actors = [
            actor.options(
                num_cpus=self._n_cpus,
                max_concurrency=plan.n_lanes + _CONTROL,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=i),
            ).remote()
            for i, plan in enumerate(self._plans)
        ]
        with self._changed:
            self._actors = actors
        if self._closing:
            self._kill()
        for error in ray.get([one.open.remote(plan) for one, plan in zip(actors, self._plans, strict=True)]):
            if error is not None:
                raise error
        with self._changed:
            self.is_ready = True
            self._changed.notify_all()

    def _lose(self, error: Exception) -> None:
        """Ends the chain, with the first error."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()
        self._kill()

    def _of_loss(self, layers: range | None, error: RayError) -> HostLostError:
        of = "a part of the model" if layers is None else f"layers {layers.start} to {layers.stop - 1}"
        return HostLostError(
            f"expected all hosts of the model, found that the one with {of} is gone ({type(error).__name__}), with "
            "what it had of this text: ask again, while another host takes its place"
        )
