"""Stages of a pipeline as objects of this process, and messages that are pickled as between hosts."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path
from typing import Any

from pymixtral.cluster.messages import Done, Lost, StageState, Work
from pymixtral.cluster.pipeline import PipelinedMixtral
from pymixtral.cluster.stages import Stage, StagePlan
from pymixtral.errors import HostLostError


class LocalChain:
    """See pymixtral.cluster.messages.Chain. `work` is what was asked for, and `lanes` by which micro-batches."""

    def __init__(self, plans: list[StagePlan], lost: Lost) -> None:
        self.stages = [Stage(sent(plan)) for plan in plans]
        self.is_ready = True
        self.work: list[Work] = []
        self.lanes: list[int] = []
        self._error: HostLostError | None = None
        self._lost = lost
        self._lock = threading.Lock()

    def run(self, lane: int, work: Work, before: Done) -> Done:
        with self._lock:
            self.work.append(work)
            self.lanes.append(lane)
        for stage in self.stages:
            before = sent(stage.run(lane, sent(work), sent(before)))
            if self._error:
                raise self._error
        return before

    def lose(self) -> None:
        """Lets a host be lost, as if a thread had noticed it."""
        self._error = HostLostError("expected all hosts, found that one is gone: ask again")
        thread = threading.Thread(target=self._lost, args=(self, self._error))
        thread.start()
        thread.join()

    def cancel(self, lane: int, number: int) -> None:
        for stage in self.stages:
            stage.cancel(lane, number)

    def wait(self) -> None:
        pass

    def states(self) -> list[StageState]:
        return [stage.state() for stage in self.stages]

    def close(self) -> None:
        for stage in self.stages:
            stage.close()


def sent(message: Any) -> Any:
    """The message as another process has it."""
    return pickle.loads(pickle.dumps(message))


def open_local(path: Path, n_stages: int = 2, **options: Any) -> PipelinedMixtral:
    """A pipeline in this process."""
    return PipelinedMixtral(path, n_stages, LocalChain, **options)
