"""How often each expert is chosen, as a table of plain characters for a terminal of 80 columns."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pymixtral.arrays import F64

_ROOM = 72
"""Columns for the experts, beside those for the number of the layer."""

_SHADES = " .:-=+*#%@"


def table(shares: F64) -> str:
    """Draw how often each expert of each layer was chosen.

    Args:
        shares: float64 [n_layers, n_experts]; each layer adds up to 1.

    Returns:
        Lines of at most 80 characters: a head, and one for each layer, in which up to 12 experts have
            percent and bars, and more have a character each, 72 in a line.
    """
    n_experts = shares.shape[1]
    most = shares.max()
    cell = min(_ROOM // n_experts, 9)
    if cell < 6:
        head = f"Of {n_experts} experts, from ' ' (never) to '{_SHADES[-1]}' ({100 * most:.0f}%):"
        rows = ["".join(_shade(share / most) for share in layer) for layer in shares.tolist()]
    else:
        head = "expert " + "".join(f"{i:3}".ljust(cell) for i in range(n_experts))
        rows = ["".join(_percent(share, most, cell) for share in layer) for layer in shares.tolist()]
    lines = [head]
    for i, row in enumerate(rows):
        first, *more = (row[at : at + _ROOM] for at in range(0, len(row), _ROOM))
        lines += [f"{i:5}  {first}", *(f"{'':7}{part}" for part in more)]
    return "\n".join(line.rstrip() for line in lines)


def _percent(share: float, most: float, width: int) -> str:
    bar = "#" * round((width - 5) * share / most)
    return f"{100 * share:3.0f} {bar}".ljust(width)


def _shade(part: float) -> str:
    return _SHADES[math.ceil(part * (len(_SHADES) - 1))]
