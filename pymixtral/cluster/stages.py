"""A stage of a pipeline after the first: some layers of a model, for several micro-batches."""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from pymixtral.cluster.messages import Done, StageState, Work
from pymixtral.cluster.mirrors import Mirror
from pymixtral.cluster.parts import mapped_bytes, part_of
from pymixtral.cluster.turns import Turns
from pymixtral.errors import ModelFileError, NativeError
from pymixtral.files.gguf import GGUFFile
from pymixtral.inspection.machine import memory
from pymixtral.model import residence
from pymixtral.model.config import ModelConfig
from pymixtral.model.forward import Model
from pymixtral.model.page import PageForm
from pymixtral.model.weights import load_weights
from pymixtral.ops import EVERY


@dataclass(frozen=True)
class StagePlan:
    """What a stage is told when it begins.

    Attributes:
        path: the model file, absolute.
        digest: of the first stage's file; see GGUFFile.digest().
        config: the whole model's numbers.
        layers: those of the stage.
        n_lanes: micro-batches; each has a cache.
        n_pages: pages of each cache.
        kv_type: the type of keys and values.
        n_threads: see pymixtral.Mixtral.
        lock: likewise, for the stage's own layers.
        prefault: likewise.
    """

    path: str
    digest: bytes
    config: ModelConfig
    layers: range
    n_lanes: int
    n_pages: int
    kv_type: str
    n_threads: int | None = None
    lock: bool = False
    prefault: bool = False

    @property
    def form(self) -> PageForm:
        """A page of the whole model."""
        return PageForm(self.config.n_layers, self.config.n_kv_heads, self.config.head_dim, self.kv_type)


class _Lane:
    """What a stage has for one micro-batch."""

    def __init__(self, model: Model, cache: Mirror) -> None:
        self.model, self.cache = model, cache
        self.running = self.cancelled = 0


class Stage:
    """Some layers of a model. Threads may call run() for different micro-batches at the same time.

    Args:
        plan: what it is.

    Raises:
        ModelFileError: for a file that cannot be read, or is not the first stage's.
        NativeError: if there is too little memory.
        PymixtralError: as Mixtral.
    """

    def __init__(self, plan: StagePlan) -> None:
        self._plan = plan
        if file_digest(plan.path) != plan.digest:
            raise ModelFileError(
                f"{plan.path}: expected the same file on all hosts, found another one on this: copy it there"
            )
        self._file = GGUFFile(plan.path)
        mapped = mapped_bytes(self._file, plan.layers)
        self._n_bytes = sum(map(len, mapped))
        weights, config = part_of(load_weights(self._file, plan.config), plan.config, plan.layers)
        page = plan.form.n_bytes * len(plan.layers) // plan.config.n_layers
        wanted, usable = plan.n_lanes * plan.n_pages * page, memory().usable
        if wanted > usable:
            raise NativeError(
                f"expected {wanted / 1e9:.2f} GB of memory for keys and values of layers {plan.layers.start} to "
                f"{plan.layers.stop - 1}, found {usable / 1e9:.2f} GB: ask for a shorter context, or kv_type q8_0"
            )
        self._is_last = plan.layers.stop == plan.config.n_layers
        self._turns = Turns()
        self._guard = threading.Lock()
        self._lanes = [
            _Lane(Model(weights, config, n_threads=plan.n_threads), Mirror(plan.layers, plan.form, plan.n_pages))
            for _ in range(plan.n_lanes)
        ]
        if plan.lock:
            residence.lock(mapped)
        if plan.prefault:
            residence.prefault(mapped, self._lanes[0].model.context.n_threads)

    def run(self, lane: int, work: Work, before: Done) -> Done:
        """Repeat what was done to pages, and compute a pass.

        Args:
            lane: the number of the micro-batch.
            work: what to do.
            before: what the stages before have done.

        Returns:
            The same with this stage's part; what goes wrong is in it.
        """
        mine = self._lanes[lane]
        with self._turns:
            failed = None
            for change in work.changes:
                try:
                    mine.cache.repeat(mine.model.context, change)
                except Exception as error:  # of a text that ends with it; a pass does not have that
                    failed = failed or error
            if before.error:
                return Done(error=before.error)
            if before.rows is None:
                pages = [mine.cache.read(page, n) for page, n in work.reads]
                return Done(error=failed, pages=(*before.pages, pages))
            try:
                self._begin(mine, work.number)
                return self._pass(mine, work, before)
            except Exception as error:
                return Done(error=error)
            finally:
                self._end(mine)

    def _pass(self, mine: _Lane, work: Work, before: Done) -> Done:
        assert before.rows is not None
        choices = before.choices
        if work.choices:
            choices = (*choices, mine.model.new_choices(len(before.rows), full=work.choices == "logits"))
        rows = mine.model.forward(
            before.rows,
            [(mine.cache.text(length, pages), count) for count, length, pages in work.runs],
            mine.cache,
            rows=EVERY if work.rows is None or not self._is_last else work.rows,
            choices=choices[-1] if choices else None,
        )
        self._file.check_length()
        return Done(rows, choices=choices)

    def cancel(self, lane: int, number: int) -> None:
        """Cancel work of a micro-batch, and all before it. It does not wait.

        Args:
            lane: the number of the micro-batch.
            number: that of the work, which may come later.
        """
        mine = self._lanes[lane]
        with self._guard:
            mine.cancelled = max(mine.cancelled, number)
            if 0 < mine.running <= mine.cancelled:
                mine.model.cancel()

    def _begin(self, mine: _Lane, number: int) -> None:
        with self._guard:
            mine.running = number
            mine.model.cancel(number <= mine.cancelled)

    def _end(self, mine: _Lane) -> None:
        with self._guard:
            mine.running = 0
            mine.model.cancel(False)

    def state(self) -> StageState:
        """Describe the stage."""
        plan = self._plan
        n_threads = self._lanes[0].model.context.n_threads
        return StageState(os.getpid(), plan.layers, n_threads, self._n_bytes, resident_bytes(self._file))

    def close(self) -> None:
        """End the threads. A second close() does nothing."""
        for lane in self._lanes:
            lane.model.close()


def file_digest(path: str) -> bytes:
    """Compute what tells a model file from others; none of it stays mapped.

    Args:
        path: the file.

    Returns:
        What GGUFFile.digest() gives.

    Raises:
        ModelFileError: for a file that cannot be read.
    """
    with GGUFFile(path) as file:
        return file.digest()


def resident_bytes(file: GGUFFile) -> int:
    """Count the bytes of a mapped file that this process has in memory.

    Args:
        file: the file.

    Returns:
        The bytes; -1 where the system does not say, as outside Linux.
    """
    if not sys.platform.startswith("linux"):
        return -1
    paths = {os.path.realpath(path) for path in file.paths}
    total, counts = 0, False
    with Path("/proc/self/smaps").open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            first, _, rest = line.partition(" ")
            if not first.endswith(":"):  # the head of a mapping: addresses, flags, offset, device, inode, path
                counts = rest.split(maxsplit=4)[-1].rstrip("\n") in paths
            elif counts and first == "Rss:":
                total += int(rest.split()[0]) << 10
    return total
