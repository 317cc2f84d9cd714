"""The oracle's low-rank adapters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pymixtral.arrays import F32, IdArray
from pymixtral.files.names import TensorName
from pymixtral.reference.arithmetic import finite, fma, sum8

if TYPE_CHECKING:
    from pymixtral.model.adapter import Adapter, LowRank


def adapted(y: F32, x: F32, pairs: Sequence[tuple[LowRank, F32]]) -> F32:
    """Add what adapters make of the same rows to a finished product.

    Args:
        y: the product of a matrix with x, float32 [n_tokens, rows].
        x: float32 [n_tokens, cols].
        pairs: the adapters' pairs for the matrix, in their order, each with what it counts in each
            row, float32 [n_tokens].

    Returns:
        float32 [n_tokens, rows].

    Raises:
        NonFiniteError: with the row.
    """
    y = y.copy()
    with np.errstate(over="ignore", invalid="ignore"):
        for (a, b), scales in pairs:
            rows = np.flatnonzero(scales)
            t = sum8(x[rows, None], a) * scales[rows, None]
            for r in range(len(a)):
                y[rows] = fma(t[:, r, None], b[r], y[rows])
    return finite(y, "a product with adapters")


class Deltas:
    """What adapters add to the matrices of a layer, in some rows.

    Args:
        adapters: each with what it counts in each row, float32 [n_tokens], in the order in which they
            are added.
        layer: the layer's number.
        mixed: whether the layer has several experts.
    """

    def __init__(self, adapters: Sequence[tuple[Adapter, F32]], layer: int, *, mixed: bool) -> None:
        self._adapters, self._layer, self._mixed = adapters, layer, mixed

    def of(self, stem: str, expert: int | None = None) -> list[tuple[LowRank, F32]]:
        """Find the pairs of a matrix.

        Args:
            stem: which matrix, such as "attn_q".
            expert: the expert's number; None for what is no expert's.

        Returns:
            The pairs, as adapted() takes them.
        """
        name = TensorName(stem, self._layer, expert=expert if self._mixed else None)
        return [(adapter.pairs[name], scales) for adapter, scales in self._adapters if name in adapter.pairs]

    def rows(self, rows: slice | NDArray[np.bool_] | IdArray) -> Deltas:
        """The same for some of the rows."""
        return Deltas([(adapter, scales[rows]) for adapter, scales in self._adapters], self._layer, mixed=self._mixed)


NONE = Deltas([], 0, mixed=False)
"""No adapters."""
