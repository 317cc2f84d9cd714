"""The first stage of a pipeline, which looks like a whole model to the engine."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np

from pymixtral import ops
from pymixtral.arrays import F32, I32, U8
from pymixtral.cluster.messages import Chain, Done, Work
from pymixtral.cluster.mirrors import MirroredCache
from pymixtral.cluster.turns import Turns
from pymixtral.errors import UnsupportedError
from pymixtral.model.bound_adapters import Scales
from pymixtral.model.config import ModelConfig
from pymixtral.model.forward import Model, Rows
from pymixtral.model.kv_cache import KVCache, Sequence, n_pages_for
from pymixtral.model.page import PageForm
from pymixtral.model.weights import ModelWeights
from pymixtral.ops import EVERY


@dataclass(frozen=True)
class First:
    """What the micro-batches of a pipeline share in its first stage.

    Attributes:
        weights: of its layers; see part_of().
        config: the numbers of its part.
        n_layers: layers of the whole model.
        n_threads: see pymixtral.Mixtral.
        turns: who may compute now.
    """

    weights: ModelWeights
    config: ModelConfig
    n_layers: int
    n_threads: int
    turns: Turns


class PipelinedModel(Model):
    """A model whose first layers are here, and whose others are in the stages of a chain.

    It serves one micro-batch. Each has a context of its own, so that it can be cancelled alone, but
    one at a time computes.

    Args:
        first: the first stage.
        chain: the other stages.
        lane: the number of the micro-batch.

    Raises:
        PymixtralError: as Model.
    """

    def __init__(self, first: First, chain: Chain, lane: int) -> None:
        super().__init__(first.weights, first.config, n_threads=first.n_threads)
        self._chain, self._lane = chain, lane
        self._turns, self._n_layers = first.turns, first.n_layers
        self._number = 0
        self._cache: MirroredCache | None = None

    def new_cache(self, n_tokens: int, kv_type: str = "f16") -> KVCache:
        """Make the cache that the other stages mirror; there is one alone.

        Args:
            n_tokens: positions of the sequence.
            kv_type: as it was said to the other stages.

        Returns:
            The cache, empty.

        Raises:
            UnsupportedError: when it is asked for a second one, as by observers.
            NativeError: if there is no memory.
        """
        c = self.config
        if self._cache is not None:
            raise _unsupported("a computation beside the engine's, such as a calibration")
        form = PageForm(self._n_layers, c.n_kv_heads, c.head_dim, kv_type)
        self._cache = MirroredCache(range(c.n_layers), form, n_pages_for(n_tokens), self._read)
        return self._cache

    def forward(
        self,
        inputs: I32 | F32,
        runs: Seq[tuple[Sequence, int]],
        cache: KVCache,
        *,
        layers: range | None = None,
        rows: Rows = EVERY,
        observers: Seq[ops.Observer] | None = None,
        choices: ops.Choices | None = None,
        adapters: Seq[Scales | None] | None = None,
    ) -> F32:
        """Compute one pass through all stages; see Model.forward().

        Args:
            inputs: token ids, int32 [n].
            runs: see Model.forward().
            cache: that of new_cache().
            layers: None.
            rows: see Model.forward().
            observers: None.
            choices: see Model.forward().
            adapters: None.

        Returns:
            The wanted rows after the last layer, float32 [n wanted, hidden].

        Raises:
            HostLostError: if a stage is gone.
            UnsupportedError: for some layers, observers or adapters.
            PymixtralError: as Model.forward().
        """
        if layers is not None or observers is not None or adapters is not None:
            raise _unsupported("some layers, observers or adapters")
        mine = None if choices is None else self._own_choices(len(inputs), choices)
        lengths = [sequence.length for sequence, _ in runs]
        self._number += 1
        with self._turns:
            hidden = super().forward(inputs, runs, cache, choices=mine)
        try:
            work = Work(
                self._number,
                runs=[(n, length, one.pages) for (one, n), length in zip(runs, lengths, strict=True)],
                rows=rows,
                choices="" if choices is None else "experts" if choices.logits is None else "logits",
            )
            done = self._run(work, Done(hidden, choices=() if mine is None else (mine,)))
        except BaseException:
            for (sequence, _), length in zip(runs, lengths, strict=True):
                sequence.truncate(length)
            raise
        if choices is not None:
            _join(choices, done.choices)
        assert done.rows is not None
        return done.rows

    def _own_choices(self, n_tokens: int, choices: ops.Choices) -> ops.Choices:
        return super().new_choices(n_tokens, full=choices.logits is not None)

    def new_choices(self, n_tokens: int, *, full: bool, n_layers: int | None = None) -> ops.Choices:
        """Make what forward() fills with the routers' choices; see Model."""
        return super().new_choices(n_tokens, full=full, n_layers=n_layers or self._n_layers)

    def shift(self, sequence: Sequence, first: int, n: int, make_free: Callable[[int], None] | None = None) -> None:
        """Drop whole pages of a sequence, in all stages; see Model."""
        with self._turns:
            super().shift(sequence, first, n, make_free)
        self._number += 1
        self._run(Work(self._number), Done())  # so that what goes wrong there is this text's

    def logits(self, hidden: F32) -> F32:
        """Compute logits; see Model."""
        with self._turns:
            return super().logits(hidden)

    def cancel(self, on: bool = True) -> None:
        """Cancel the pass that is running, in all stages, and all later ones; see Model."""
        super().cancel(on)  # before the number is read: a pass that begins meanwhile sees it
        if on:
            self._chain.cancel(self._lane, self._number)

    def _read(self, pages: list[tuple[int, int]]) -> list[list[U8]]:
        self._number += 1
        return list(self._run(Work(self._number, reads=pages), Done()).pages)

    def _run(self, work: Work, before: Done) -> Done:
        """Sends work, with what was done to pages before it.

        Raises:
            HostLostError: if a stage is gone.
            Exception: what went wrong there.
        """
        assert self._cache is not None
        changes = self._cache.changes
        work.changes.extend(changes)
        done = self._chain.run(self._lane, work, before)
        del changes[: len(work.changes)]  # all stages have repeated them, whatever went wrong
        if done.error:
            raise done.error
        return done


def _join(choices: ops.Choices, parts: Seq[ops.Choices]) -> None:
    """Fills the choices of all layers with those of the stages."""
    np.concatenate([part.experts for part in parts], axis=1, out=choices.experts)
    np.concatenate([part.weights for part in parts], axis=1, out=choices.weights)
    if choices.logits is not None:
        np.concatenate([part.logits for part in parts if part.logits is not None], axis=1, out=choices.logits)


def _unsupported(what: str) -> UnsupportedError:
    return UnsupportedError(
        f"expected a model in one process for {what}, found one in the stages of a pipeline: open it without them"
    )
