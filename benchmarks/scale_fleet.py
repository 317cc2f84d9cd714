"""Many machines on a virtual clock: questions that come, machines that come and fail."""

from __future__ import annotations

import heapq
from collections import deque

import numpy as np
from scale_cost import Cost
from scale_machine import Engine, Stages
from scale_routing import POWER_OF_TWO, Router, Routing
from scale_tally import Tally
from scale_workload import Text, Workload

from pymixtral.ops import PAGE

_PAGE_BYTES = 1024
"""Of a page that the prefix cache has, with its ids. Measured, of whole fleets."""

_MOST_BYTES = 4 << 30
"""Of the caches of a fleet, when they are full."""


class Fleet:
    """Engines, questions that come, and the clock.

    Args:
        cost: of a pass.
        n_engines: machines; with a pipeline, pipelines times stages.
        workload: what is asked.
        rate: conversations that begin in a second.
        max_running: texts at once, in each engine.
        seed: of all that is drawn.
        routing: how a question finds its machine.
        n_pages: of each engine; None: what its memory holds.
        n_batch: most tokens of prompts in a pass.
        pace: as of pymixtral.engine.Pace.
        life: seconds that a machine lives on average; 0: for ever.
        repair: seconds until it is back.
        growth: engines that come later, and when.
        leaps: as of Engine.

    Attributes:
        now: seconds since the beginning.
        engines: all of them.
        router: chooses among them.
        tally: what happened since the last call of restart().

    Raises:
        ValueError: if the weights do not fit, too few pages are left for a text, or the simulated caches
            would take gigabytes.
    """

    def __init__(
        self,
        cost: Cost,
        n_engines: int,
        workload: Workload,
        rate: float,
        *,
        max_running: int = 16,
        seed: int = 0,
        routing: Routing = POWER_OF_TWO,
        n_pages: int | None = None,
        n_batch: int = 512,
        pace: float | None = None,
        life: float = 0.0,
        repair: float = 120.0,
        growth: tuple[int, float] = (0, 0.0),
        leaps: bool = True,
    ) -> None:
        n_pages = cost.n_pages // cost.stages if n_pages is None else n_pages
        if n_pages * PAGE < workload.context + PAGE:
            raise ValueError(
                f"expected room for a text of {workload.context} tokens, found {max(n_pages, 0)} pages of {PAGE} "
                f"({cost.config.name}, {cost.mix}, {cost.stages} x {cost.machine.name}): choose a larger machine"
            )
        total = n_engines + growth[0]
        if total * n_pages * _PAGE_BYTES > _MOST_BYTES:
            raise ValueError(
                f"expected caches of at most {_MOST_BYTES >> 30} GiB to simulate, found {total} of {n_pages} pages: "
                "give n_pages"
            )
        self.now = 0.0
        self.workload = workload
        self._rng = np.random.default_rng(seed)
        self._rate = rate
        self._life, self._repair = life, repair
        groups = [Stages(cost) for _ in range(-(-total // cost.stages))]
        self.engines = [
            Engine(groups[i // cost.stages], n_pages, max_running, n_batch, pace, leaps=leaps) for i in range(total)
        ]
        self.router = Router(routing, total, n_engines, seed, self._rng)
        self._number = 0
        self._events: list[tuple[float, int, str, int, int, Text | None]] = []
        self._stranded: deque[Text] = deque()
        self.tally = Tally()
        if rate > 0:
            self._push(self._rng.exponential(1 / rate), "begin")
        if growth[0]:
            self._push(growth[1], "grow")
        if life:
            for i in range(n_engines):
                self._push(self._rng.exponential(life), "fail", i)
        self.restart()

    # --- Time -------------------------------------------------------------------------------------

    def run(self, until: float) -> Tally:
        """Let time pass.

        Args:
            until: when to stop, in seconds since the beginning.

        Returns:
            The tally.
        """
        while self._events and self._events[0][0] <= until:
            self.now, _, kind, i, version, text = heapq.heappop(self._events)
            if kind == "end":
                if self.engines[i].version == version:
                    self._end(i)
            elif kind == "ask":
                assert text
                self.ask(text)
            else:
                getattr(self, f"_{kind}")(i)
        if until < float("inf"):
            self.now = max(self.now, until)
        for engine in self.engines:
            engine.settle(self.now)
        return self.tally

    def drain(self, limit: float = float("inf")) -> Tally:
        """Let no new conversation begin, and time pass until all is answered; see run()."""
        self._rate = self._life = 0.0
        return self.run(limit)

    def restart(self) -> Tally:
        """Begin a new tally, and return it."""
        self.tally = Tally()
        for engine in self.engines:
            engine.tally = self.tally
        return self.tally

    @property
    def next_time(self) -> float:
        """When the next thing happens, infinity if nothing will."""
        return self._events[0][0] if self._events else float("inf")

    @property
    def n_texts(self) -> int:
        """Questions that wait or are being answered."""
        return sum(engine.n_texts for engine in self.engines) + len(self._stranded)

    def _push(self, time: float, kind: str, i: int = -1, version: int = 0, text: Text | None = None) -> None:
        self._number += 1
        heapq.heappush(self._events, (time, self._number, kind, i, version, text))

    # --- What happens -----------------------------------------------------------------------------

    def _begin(self, _: int) -> None:
        """A conversation begins."""
        if self._rate > 0:
            self.ask(Text(self.workload.conversation(self._rng), 0, self.now))
            self._push(self.now + self._rng.exponential(1 / self._rate), "begin")

    def ask(self, text: Text, *, again: bool = False) -> None:
        """Send a question to a machine.

        Args:
            text: the question.
            again: whether it was sent before.
        """
        self.tally.asked += not again
        if not self.router.n_up:
            self._stranded.append(text)
            return
        i = self.router.send(text, self.now)
        engine = self.engines[i]
        engine.add(text)
        end = engine.cut(self.now) if engine.busy else engine.begin(self.now)
        if end is not None:
            self._push(end, "end", i, engine.version)

    def _end(self, i: int) -> None:
        """A pass ends."""
        engine = self.engines[i]
        for text in engine.end(self.now):
            self.router.finish(text, i)
            if text.turn + 1 < len(text.conversation.turns):
                at = self.now + self._rng.exponential(self.workload.think)
                self._push(at, "ask", text=Text(text.conversation, text.turn + 1, at))
        end = engine.begin(self.now)
        if end is not None:
            self._push(end, "end", i, engine.version)

    def _fail(self, i: int) -> None:
        if not self._life:
            return
        self.router.set_up(i, up=False)
        lost = self.engines[i].reset()
        self._push(self.now + self._repair, "return", i)
        for text in lost:
            self.tally.retried += 1
            self.tally.again += text.n_ids > text.n_prompt
            self.ask(Text(text.conversation, text.turn, text.asked), again=True)

    def _return(self, i: int) -> None:
        self.router.set_up(i, up=True)
        if self._life:
            self._push(self.now + self._rng.exponential(self._life), "fail", i)
        while self._stranded:
            self.ask(self._stranded.popleft(), again=True)

    def _grow(self, _: int) -> None:
        self.router.set_up(slice(None), up=True)
