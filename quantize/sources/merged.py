"""Adapters that are added to the weights of a checkpoint while it is read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pymixtral.adapters.opening import open_adapter
from pymixtral.arguments import number, path_of, shown
from pymixtral.arrays import F32, F64, I64
from pymixtral.errors import InvalidArgumentError
from pymixtral.files.names import TensorName
from pymixtral.model.adapter import Adapter
from pymixtral.model.config import ModelConfig

from .targets import Target

_Path = str | os.PathLike[str]

_LARGEST_SCALE = 1000.0


@dataclass(frozen=True, eq=False)
class Merged:
    """Adapters that are added to the weights of a checkpoint.

    Attributes:
        adapters: with what each is multiplied by.
    """

    adapters: tuple[tuple[Adapter, float], ...] = ()

    @classmethod
    def open(cls, given: Iterable[_Path | tuple[_Path, float]], config: ModelConfig) -> Merged:
        """Open adapters.

        Args:
            given: a path, or a path and a scale, for each.
            config: the numbers of the checkpoint's model.

        Raises:
            InvalidArgumentError: one is neither, or a scale is out of range.
            PymixtralError: as of open_adapter().
        """
        if isinstance(given, str | os.PathLike):
            raise InvalidArgumentError(f"expected adapters to be a list of paths, found {shown(given)}")
        found = []
        for one in given:
            path, scale = one if isinstance(one, tuple) and len(one) == 2 else (one, 1.0)
            factor = number("the scale of adapters", scale, -_LARGEST_SCALE, _LARGEST_SCALE)
            found.append((open_adapter(path_of("adapters", path), config), factor))
        return cls(tuple(found))

    def changes(self, target: Target, source: str | None = None) -> bool:
        """Whether a tensor of the file, or what comes from one of its sources, is changed."""
        names = [_matrix(target, one) for one in (target.sources if source is None else (source,))]
        return any(name in adapter.pairs for adapter, _ in self.adapters for name in names)

    def add(self, weights: F32, target: Target, source: str, rows: slice | I64) -> F32:
        """Add what the adapters change, in float64 with one rounding.

        Args:
            weights: float32 [n, cols].
            target: the tensor of the file that they go to.
            source: the one of its sources that they come from.
            rows: which they are, in the file's order.

        Returns:
            float32 [n, cols]; `weights` itself where nothing changes.
        """
        name, sums = _matrix(target, source), None
        for adapter, scale in self.adapters:
            if name is None or (pair := adapter.pairs.get(name)) is None:
                continue
            columns: F64 = pair.b[:, rows].T * np.float64(scale)
            sums = weights.astype(np.float64) if sums is None else sums
            sums += columns @ pair.a.astype(np.float64)
        if sums is None:
            return weights
        with np.errstate(over="ignore"):  # the encoder refuses infinity by name
            return sums.astype(np.float32)

    def notes(self, targets: Sequence[Target]) -> tuple[str, ...]:
        """What a user should know, a sentence each."""
        if not self.adapters:
            return ()
        n = sum(self.changes(target) for target in targets)
        parts = ", ".join(f"{adapter.source} (times {scale:g})" for adapter, scale in self.adapters)
        return (f"{n} tensors are sums of the source's and of what adapters add: {parts}",)


def _matrix(target: Target, source: str) -> TensorName | None:
    """The matrix that a source of a tensor is: one expert's of a merged one."""
    name = TensorName.parse(target.name)
    return name.of_expert(target.sources.index(source)) if name is not None and name.merged else name
