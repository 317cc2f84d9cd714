"""The engine of a pipeline: several micro-batches, so that all stages work at the same time.

While one micro-batch is in the second stage, another one is in the first. Each has an engine of its
own, with scheduler, pages and prefix cache. A request stays in one.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from copy import copy

from pymixtral.cluster.messages import Chain, Lost
from pymixtral.engine.engine import Engine
from pymixtral.engine.loop import Call, Loop, closed
from pymixtral.engine.requests import Abort, Request
from pymixtral.engine.stats import EngineStats
from pymixtral.engine.watch import Interest
from pymixtral.errors import ClosedError, HostLostError, PymixtralError
from pymixtral.ops import PAGE

_REMEMBERED = 4096
"""Beginnings of texts whose micro-batch is remembered."""

_AHEAD = 4
"""So many texts more than the least busy micro-batch has are too many, wherever a prefix is cached."""

_LONGEST_PAUSE = 30.0
"""Seconds between two attempts to get stages."""


class _Interests(Interest):
    """The caller's interest in requests of several engines."""

    __slots__ = ("parts",)

    def __init__(self, parts: list[Interest]) -> None:
        self.parts = parts


class Lanes(Engine):
    """Looks like an engine, and gives each request to one of several: the micro-batches of a pipeline.

    A request goes where the beginning of its text went before, or else where the fewest are. When a
    stage is gone, with its keys and values, all engines end with an error for their requests, and new
    ones begin with new stages. Requests that come meanwhile wait in these until the stages are there,
    or the chain gives up.

    Args:
        name: the model's name in messages.
        begin: begins to make the other stages, and returns at once.
        engine: makes the engine of a micro-batch, given the stages and its number.
        n_lanes: the number of micro-batches.

    Raises:
        PymixtralError: whatever `begin` and `engine` raise.
    """

    def __init__(
        self, name: str, begin: Callable[[Lost], Chain], engine: Callable[[Chain, int], Engine], n_lanes: int
    ) -> None:
        self._pid, self._name = os.getpid(), name
        self._begin, self._engine, self._n_lanes = begin, engine, n_lanes
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._lost: PymixtralError | None = None
        self._engines: list[Engine] = []
        self._chains: list[Chain] = []  # the one in use; a list, as the finalizer must not hold this object
        self._pause = 0.0
        self._before = EngineStats.together(())  # of engines that have ended
        self._ending_loops: list[Loop] = []
        self._lane_of: weakref.WeakKeyDictionary[Request, Engine] = weakref.WeakKeyDictionary()
        self._begun: OrderedDict[Hashable, int] = OrderedDict()
        self._ending = weakref.finalize(self, _close_all, self._chains)
        self._ending.atexit = False
        self._start()

    @property
    def chain(self) -> Chain:
        """The other stages.

        Raises:
            ClosedError: after close().
            HostLostError: while there are none.
        """
        self._running()
        return self._chains[0]

    # --- As an engine -----------------------------------------------------------------------------

    def submit(self, requests: Sequence[Request], others: Sequence[Request] = ()) -> Interest:
        """Send requests; see Engine.

        Args:
            requests: new requests.
            others: siblings of those.

        Returns:
            What the caller holds while he wants them.

        Raises:
            HostLostError: while a host is gone.
            PymixtralError: as Engine.submit().
        """
        engines = self._running()
        loads = [_load(engine) for engine in engines]
        groups: dict[int, list[Request]] = {}
        for request in requests:
            lane = self._choose(request, loads)
            loads[lane] += 1 + len(request.siblings)
            groups.setdefault(lane, []).append(request)
        parts = []
        for engine in engines:
            if threading.current_thread() is engine._thread:
                return engine.submit(requests, others)  # which refuses it
        try:
            for lane, group in groups.items():
                siblings = [other for request in group for other in request.siblings]
                for request in (*group, *siblings):
                    self._lane_of[request] = engines[lane]
                parts.append(engines[lane].submit(group, siblings))
        except ClosedError as error:
            raise self._instead(error, engines) from None
        return _Interests(parts)

    def interrupt(self, request: Request, reason: Abort = "cancelled") -> None:
        """End a request soon; see Engine.

        Args:
            request: it may have ended already.
            reason: why.
        """
        engine = self._lane_of.get(request)
        if engine is not None:
            engine.interrupt(request, reason)

    def forget(self) -> None:
        """Empty the prefix caches; see Engine."""
        engines = self._running()
        try:
            for engine in engines:
                engine.forget()
        except ClosedError as error:
            raise self._instead(error, engines) from None

    def stats(self) -> EngineStats:
        """Describe the state of all micro-batches together, and the work since the beginning."""
        self.check_process()
        if self._closing.is_set():
            raise closed(self._name)
        with self._lock:
            loops = [loop for engine in self._engines if (loop := engine._loop)]
            past = [loop.stats().past for loop in self._ending_loops]
            return EngineStats.together([self._before, *past, *(loop.stats() for loop in loops)])

    def close(self, reason: BaseException | None = None) -> None:
        """End all requests, threads and stages; see Engine."""
        if os.getpid() != self._pid:
            return
        self._closing.set()
        with self._lock:
            engines, self._engines = self._engines, []
        for engine in engines:
            engine.close(reason)
        self._ending()

    def _open(self) -> Loop:
        """The first engine's loop, which calls functions."""
        engines = self._running()
        try:
            return engines[0]._open()
        except ClosedError as error:
            raise self._instead(error, engines) from None

    def _instead(self, error: ClosedError, engines: list[Engine]) -> PymixtralError:
        """What a caller is told who has met engines that were closed meanwhile: why."""
        with self._lock:
            is_lost = self._engines is not engines and not self._closing.is_set()
        return copy(self._lost) if is_lost and self._lost else error

    def _running(self) -> list[Engine]:
        self.check_process()
        if self._closing.is_set():
            raise closed(self._name)
        with self._lock:
            if not self._engines:
                raise copy(self._lost) if self._lost else closed(self._name)  # a copy: each raise adds its frames
            return self._engines

    def _choose(self, request: Request, loads: list[int]) -> int:
        if isinstance(request, Call):
            return 0
        least = min(range(len(loads)), key=lambda lane: loads[lane])
        if request.n_ids < PAGE:
            return least
        key = (request.namespace, request.ids[:PAGE].tobytes())
        with self._lock:
            lane = self._begun.pop(key, least)
            if loads[lane] > loads[least] + _AHEAD:
                lane = least
            self._begun[key] = lane
            if len(self._begun) > _REMEMBERED:
                self._begun.popitem(last=False)
        return lane

    # --- Beginning, and beginning again -----------------------------------------------------------

    def _start(self) -> None:
        chain = self._begin(_told(self))
        engines: list[Engine] = []
        try:
            for lane in range(self._n_lanes):
                engines.append(self._engine(chain, lane))
        except BaseException:
            for engine in engines:
                engine.close()
            chain.close()
            raise
        with self._lock:
            if not self._closing.is_set():
                self._engines, self._chains[:] = engines, [chain]
                self._begun.clear()
                return
        for engine in engines:
            engine.close()
        chain.close()

    def _replace(self, chain: Chain, error: Exception) -> None:
        """Ends what has lost a stage, and begins again. The chain's own thread does it."""
        lost = error if isinstance(error, PymixtralError) else HostLostError(str(error))
        with self._lock:
            if self._closing.is_set() or chain not in self._chains:
                return
            self._lost, engines, self._engines = lost, self._engines, []
            self._ending_loops = [loop for engine in engines if (loop := engine._loop)]
        for engine in engines:
            engine.close(lost)
        with self._lock:
            past = [loop.stats().past for loop in self._ending_loops]
            self._before, self._ending_loops = EngineStats.together([self._before, *past]), []
        chain.close()
        self._pause = 0.0 if chain.is_ready else min(2 * self._pause or 1.0, _LONGEST_PAUSE)
        while not self._closing.wait(self._pause):
            try:
                self._start()
                break
            except Exception as again:  # such as no memory
                self._lost = again if isinstance(again, PymixtralError) else lost
                self._pause = min(2 * self._pause or 1.0, _LONGEST_PAUSE)


def _load(engine: Engine) -> int:
    loop = engine._loop
    if loop is None:
        return 0
    stats = loop.stats()
    return stats.waiting + stats.prefilling + stats.decoding


def _told(lanes: Lanes) -> Lost:
    """Tells an object, which it does not hold, of the loss."""
    reference = weakref.ref(lanes)

    def lost(chain: Chain, error: Exception) -> None:
        found = reference()
        if found is not None:
            found._replace(chain, error)

    return lost


def _close_all(chains: list[Chain]) -> None:
    for chain in chains:
        chain.close()
