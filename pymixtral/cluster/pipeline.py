"""A model over several hosts, by its layers."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NoReturn

from pymixtral.arguments import integer, number
from pymixtral.arrays import U8
from pymixtral.cluster.connection import check_ray
from pymixtral.cluster.lanes import Lanes
from pymixtral.cluster.messages import Chain, Lost, StageState
from pymixtral.cluster.parts import layer_bytes, layer_ranges, mapped_bytes, part_bytes, part_of
from pymixtral.cluster.pipelined_model import First, PipelinedModel
from pymixtral.cluster.stages import StagePlan, file_digest, resident_bytes
from pymixtral.cluster.turns import Turns
from pymixtral.engine.engine import Engine
from pymixtral.errors import UnsupportedError
from pymixtral.files.gguf import GGUFFile
from pymixtral.memory import CacheSize, cache_size
from pymixtral.mixtral import Mixtral
from pymixtral.model.forward import Model
from pymixtral.model.weights import ModelWeights

Begin = Callable[[list[StagePlan], Lost], Chain]
"""Begins to make the stages after the first, and returns at once."""

MAX_LANES = 16
"""The most micro-batches."""


class PipelinedMixtral(Mixtral):
    """A model whose first layers are in this process, and whose others are in other stages.

    It is used as Mixtral is, and gives the same bits. Adapters, observe() and what it needs are
    refused; timed() has this process's time alone.

    Args:
        path: as for Mixtral; all stages open the file under the same absolute path.
        n_stages: parts of the model, this process's among them, at least 2.
        begin: makes the others.
        micro_batches: groups of requests that are computed by turns, so that all stages work at once,
            1 to 16; None: as many as stages. Each has a part of cache_bytes and of max_batch.
        **options: those of Mixtral. cache_bytes are those of all stages together; lock and prefault
            mean each stage's own layers, n_threads each stage's threads.

    Attributes:
        stage_layers: the layers of each stage.

    Raises:
        InvalidArgumentError: for more stages than layers, and as Mixtral.
        UnsupportedError: for adapters.
        PymixtralError: as Mixtral.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        n_stages: int,
        begin: Begin,
        *,
        micro_batches: int | None = None,
        **options: Any,
    ) -> None:
        self._n_stages = integer("n_stages", n_stages, 2)
        self._n_lanes = integer("micro_batches", n_stages if micro_batches is None else micro_batches, 1, MAX_LANES)
        self._begin = begin
        self._asked = options
        if options.get("adapters") or options.get("adapter"):
            raise _no_adapters()
        super().__init__(path, **options)

    @property
    def chain(self) -> Chain:
        """The other stages, as they are now.

        Raises:
            ClosedError: after close().
            HostLostError: while there are none.
        """
        assert isinstance(self.core.engine, Lanes)
        return self.core.engine.chain

    def stages(self) -> list[StageState]:
        """Describe the stages, this process first.

        Raises:
            ClosedError: after close().
            HostLostError: while a host is gone.
        """
        mapped, file = mapped_bytes(self.core.file, self.stage_layers[0]), self.core.file
        own = StageState(os.getpid(), self.stage_layers[0], self.n_threads, sum(map(len, mapped)), resident_bytes(file))
        return [own, *self.chain.states()]

    def load_adapter(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse an adapter.

        Raises:
            UnsupportedError: always.
        """
        raise _no_adapters()

    # --- What Mixtral asks ------------------------------------------------------------------------

    def _cache_size(self, file: GGUFFile, **asked: Any) -> CacheSize:
        sizes, beside = layer_bytes(file, self.config.n_layers)
        self.stage_layers = layer_ranges(sizes, beside, self._n_stages)
        return cache_size(
            self.config,
            max(part_bytes(self.stage_layers, sizes, beside)),
            n_caches=self._n_lanes,
            n_layers=max(map(len, self.stage_layers)),
            **asked,
        )

    def _model(self, weights: ModelWeights, n_threads: int | None) -> Model:
        self._weights, self._part = part_of(weights, self.config, self.stage_layers[0])
        return Model(self._weights, self._part, n_threads=n_threads)  # for its numbers: each lane has its own

    def _mapped(self, file: GGUFFile) -> Iterable[mmap.mmap | U8]:
        return mapped_bytes(file, self.stage_layers[0])

    def _engine(self, model: Model, **options: Any) -> Engine:
        model.close()
        first = First(self._weights, self._part, self.config.n_layers, self.n_threads, Turns())
        path = str(self.path.absolute())
        plans = [
            StagePlan(
                path,
                file_digest(path),
                self.config,
                layers,
                self._n_lanes,
                options["n_pages"],
                self.kv_type,
                self._asked.get("n_threads"),
                lock=bool(self._asked.get("lock")),
                prefault=bool(self._asked.get("prefault")),
            )
            for layers in self.stage_layers[1:]
        ]
        name = str(self.path)
        options["max_running"] = -(-options["max_running"] // self._n_lanes)

        def lane(chain: Chain, number: int) -> Engine:
            return Engine(PipelinedModel(first, chain, number), name, **options)

        return Lanes(name, partial(self._begin, plans), lane, self._n_lanes)


def open_pipeline(
    path: str | os.PathLike[str] | None = None,
    n_stages: int = 2,
    *,
    micro_batches: int | None = None,
    stage_cpus: float = 1,
    spread: str = "STRICT_SPREAD",
    patience: float = 60,
    **options: Any,
) -> PipelinedMixtral:
    """Open a model over several hosts of a cluster of Ray, which this process is connected to.

    Args:
        path: as for PipelinedMixtral.
        n_stages: likewise; the first stage is in this process.
        micro_batches: likewise.
        stage_cpus: CPUs that each further stage reserves of its host.
        spread: "STRICT_SPREAD": each stage on a host of its own; "SPREAD": so if there are enough;
            "PACK": on as few as there is room.
        patience: seconds in which hosts have to be found, here and after a loss.
        **options: those of Mixtral.

    Returns:
        The model, with all stages open.

    Raises:
        HostLostError: if there are too few hosts, or one is gone already.
        UnsupportedError: if Ray is missing, and for adapters.
        PymixtralError: as Mixtral, on whichever host.
    """
    check_ray()
    from pymixtral.cluster.actors import ActorChain

    patience, stage_cpus = number("patience", patience, 1, 1e6), number("stage_cpus", stage_cpus, 0, 1e6)

    def begin(plans: list[StagePlan], lost: Lost) -> Chain:
        return ActorChain(plans, lost, n_cpus=stage_cpus, spread=spread, patience=patience)

    model = PipelinedMixtral(path, n_stages, begin, micro_batches=micro_batches, **options)
    try:
        model.chain.wait()
    except BaseException:
        model.close()
        raise
    return model


def _no_adapters() -> UnsupportedError:
    return UnsupportedError(
        "expected a pipeline without adapters, found some: merge the adapter into the checkpoint and quantize that"
    )
