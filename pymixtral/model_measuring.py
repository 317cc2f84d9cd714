"""What is measured inside a model: the inputs of its matrices, the time of its parts, its bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from operator import sub

import numpy as np

from pymixtral import ops
from pymixtral.arrays import F32, I32, U8, Ids
from pymixtral.core import Core
from pymixtral.model.forward import Model


class ModelMeasuring:
    """The part of Mixtral that observes and times passes."""

    kv_type: str
    core: Core
    _n_batch: int
    _timed: dict[int, list[ops.PartTime]]

    def observers(self) -> list[ops.Observer]:
        """Make empty observers for observe().

        Returns:
            One for each layer.

        Raises:
            ClosedError: after close().
        """
        return self.core.engine.call(lambda model: [ops.Observer(layer) for layer in model.layers])

    def observe(self, tokens: Ids, observers: Sequence[ops.Observer]) -> F32:
        """Run a text through the model and add up the squared inputs of its matrices.

        This is for calibration; see pymixtral.evaluation.calibration. Other requests wait meanwhile.

        Args:
            tokens: 1 to n_ctx ids.
            observers: one for each layer; they are added to. After an exception they hold a part of
                the text.

        Returns:
            The input of the output matrix, float32 [n_tokens, hidden].

        Raises:
            InvalidArgumentError: for ids outside the vocabulary.
            ContextLengthError: for more than n_ctx ids.
            NonFiniteError: if the model's weights lead to NaN or infinity.
            ClosedError: after close().
        """
        self.core.engine.check_open()
        ids = self.core.factory.checked_ids("tokens", tokens)
        return self.core.engine.call(partial(_observe, ids, observers, self._n_batch, self.kv_type))

    @contextmanager
    def timed(self) -> Iterator[list[ops.PartTime]]:
        """Divide the time that C takes in a `with` block among the parts of a pass.

        Blocks may overlap, in one thread or in several.

        Returns:
            The manager of a list, which has what each part took when the block ends. What other
            callers ask of the model meanwhile is in it.

        Raises:
            ClosedError: after close().
        """
        parts: list[ops.PartTime] = []
        try:
            self.core.engine.call(partial(self._begin_timing, parts))
            yield parts
        finally:  # also where Ctrl-C meets the call above, which is done all the same, or not
            self.core.engine.call(partial(self._end_timing, parts))

    def _begin_timing(self, parts: list[ops.PartTime], model: Model) -> None:
        """Notes the times so far, which begin with the first of several blocks."""
        if not self._timed:
            ops.start_timing(model.context)
        self._timed[id(parts)] = ops.read_timing(model.context)

    def _end_timing(self, parts: list[ops.PartTime], model: Model) -> None:
        """Gives a block that has begun its times. They end with the last block."""
        if began := self._timed.pop(id(parts), None):
            times = (ops.read_timing if self._timed else ops.stop_timing)(model.context)
            parts += map(sub, times, began)

    def mapped(self) -> list[U8]:
        """Show the model's files as they are mapped into memory, to measure how fast they are read.

        Returns:
            The bytes of each file, read-only. A file stays mapped as long as somebody has its bytes.

        Raises:
            ClosedError: after close().
        """
        self.core.engine.check_open()
        return [np.frombuffer(mapped, np.uint8) for mapped in self.core.file.maps.values()]


def _observe(ids: I32, observers: Sequence[ops.Observer], n_batch: int, kv_type: str, model: Model) -> F32:
    cache = model.new_cache(len(ids), kv_type)
    sequence = cache.new_sequence()
    parts = []
    for begin in range(0, len(ids), n_batch):
        piece = ids[begin : begin + n_batch]
        parts.append(model.forward(piece, [(sequence, len(piece))], cache, observers=observers))
    return model.head_input(np.concatenate(parts))
