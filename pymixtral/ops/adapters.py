"""Low-rank adapters as C sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pymixtral.arrays import F32
from pymixtral.ops.native import ffi
from pymixtral.ops.views import as_input, check_shape, pointer


class Pair(NamedTuple):
    """What an adapter adds to a matrix W of rows x cols: y = W x + transpose(b) (a x).

    Attributes:
        adapter: the adapter's column in the scales of a batch.
        a: float32 [rank, cols], of a rank from 1 to 1024.
        b: float32 [rank, rows].
    """

    adapter: int
    a: F32
    b: F32


class Delta:
    """What adapters add to one matrix, made once for many products.

    Args:
        rows: of the matrix.
        cols: of the matrix.
        pairs: of different adapters, which are put in ascending order.

    Attributes:
        struct: the C struct pmx_delta.

    Raises:
        InvalidArgumentError: for pairs of another shape.
    """

    def __init__(self, rows: int, cols: int, pairs: Sequence[Pair]) -> None:
        self._keep = [ffi.new("pmx_low_rank[]", len(pairs))]
        for view, (adapter, given_a, given_b) in zip(self._keep[0], sorted(pairs, key=lambda p: p.adapter), strict=True):
            a, b = as_input(given_a, 2), as_input(given_b, 2)
            check_shape("a", a.shape, (len(a), cols))
            check_shape("b", b.shape, (len(a), rows))
            view.a, view.b = pointers = pointer(a), pointer(b)
            view.rank, view.adapter = len(a), adapter
            self._keep += pointers
        self.struct = ffi.new("pmx_delta *", {"pairs": self._keep[0], "n_pairs": len(pairs)})
