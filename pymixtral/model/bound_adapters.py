"""The adapters that the layers of a model are bound to."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from pymixtral import ops
from pymixtral.arguments import shown
from pymixtral.arrays import F32
from pymixtral.errors import InvalidArgumentError
from pymixtral.files.names import TensorName
from pymixtral.model.adapter import Adapter
from pymixtral.model.config import ModelConfig

Scales = Mapping[Adapter, float]
"""Adapters, and what each counts: 1 as it was trained."""


class BoundAdapters:
    """Adapters as C sees them, bound when they are first used.

    Their columns are ordered by their digests, as what a row of several adapters gives depends on
    their order: so it is the same whichever were used before. Adapters of the same content are one.

    Args:
        layers: of the model.
        config: the model's numbers.
    """

    def __init__(self, layers: Sequence[ops.Layer], config: ModelConfig) -> None:
        self._layers, self._config = layers, config
        self._bound: dict[bytes, Adapter] = {}

    def __len__(self) -> int:
        return len(self._bound)

    def scales(self, counts: Sequence[int], wanted: Sequence[Scales | None]) -> F32 | None:
        """Say what each adapter counts in each row of a batch, and bind those that are new.

        Args:
            counts: rows of each run.
            wanted: the adapters of each run.

        Returns:
            float32 [n_rows, n_adapters]; None if none counts in any row.

        Raises:
            InvalidArgumentError: for another number of runs, and scales that are no finite float32.
            AdapterError: for an adapter that does not fit the model.
        """
        if len(wanted) != len(counts):
            raise InvalidArgumentError(f"expected the adapters of {len(counts)} runs, found those of {len(wanted)}")
        runs = [_by_digest(one or {}) for one in wanted]
        new = {digest: adapter for run in runs for digest, (adapter, _) in run.items() if digest not in self._bound}
        for adapter in new.values():
            adapter.check(self._config)
        if new:
            self._bind({**self._bound, **new})
        if not any(runs):
            return None
        columns = {digest: i for i, digest in enumerate(self._bound)}
        scales = np.zeros((sum(counts), len(columns)), np.float32)
        at = 0
        for count, run in zip(counts, runs, strict=True):
            for digest, (_, scale) in run.items():
                scales[at : at + count, columns[digest]] = scale
            at += count
        return scales

    def release(self, adapter: Adapter) -> None:
        """Let an adapter go, if it is bound; one that is used again is bound again.

        Args:
            adapter: any adapter.
        """
        if adapter.digest in self._bound:
            self._bind({digest: one for digest, one in self._bound.items() if digest != adapter.digest})

    def _bind(self, adapters: Mapping[bytes, Adapter]) -> None:
        """After an interrupt none counts as bound, so that the next use binds all anew."""
        ordered = dict(sorted(adapters.items()))
        self._bound = {}
        pairs: list[dict[TensorName, list[ops.Pair]]] = [defaultdict(list) for _ in self._layers]
        for i, adapter in enumerate(ordered.values()):
            for name, (a, b) in adapter.pairs.items():
                if name.layer is not None:  # check() saw that it is
                    pairs[name.layer][name].append(ops.Pair(i, a, b))
        for layer, of_layer in zip(self._layers, pairs, strict=True):
            layer.adapt(of_layer)
        self._bound = ordered


def _by_digest(scales: Scales) -> dict[bytes, tuple[Adapter, np.float32]]:
    """The adapters that count, by what they hold; what the same one counts several times is added up."""
    found: dict[bytes, tuple[Adapter, list[float]]] = {}
    for adapter, scale in scales.items():
        if not isinstance(adapter, Adapter):
            raise InvalidArgumentError(f"expected an Adapter, found {shown(adapter)}")
        found.setdefault(adapter.digest, (adapter, []))[1].append(_number(scale))
    total = {digest: (adapter, np.float32(math.fsum(some))) for digest, (adapter, some) in found.items()}
    return {digest: pair for digest, pair in total.items() if pair[1]}


def _number(scale: object) -> float:
    try:
        number = float(scale)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not abs(number) <= _LARGEST:
        raise InvalidArgumentError(f"expected a scale of at most {_LARGEST:g} in size, found {shown(scale)}")
    return number


_LARGEST = 1e6
"""Scales of use are about 1."""
