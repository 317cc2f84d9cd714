"""Arguments that are checked before they are used."""

from __future__ import annotations

import numpy as np

from pymixtral.errors import InvalidArgumentError


def integer(name: str, value: object, lowest: int, highest: int | None = None) -> int:
    """`value`, an int or an integer of NumPy. Raises InvalidArgumentError, which names the argument, for anything else, a bool too, and
    for one outside lowest .. highest."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < lowest or (highest is not None and value > highest):
        bounds = f"of at least {lowest}" if highest is None else f"from {lowest} to {highest}"
        raise InvalidArgumentError(f"expected {name} to be an integer {bounds}, found {value!r}")
    return int(value)
