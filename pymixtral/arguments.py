"""Arguments that are checked before they are used."""

from __future__ import annotations

import os
from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from pymixtral.errors import InvalidArgumentError


def integer(name: str, value: Any, lowest: int, highest: int | None = None) -> int:
    """Checks an argument that is a whole number.

    Args:
        name: what the message calls it.
        value: an int or an integer of NumPy; a bool is none.
        lowest: the least that is allowed.
        highest: the most that is allowed; None: no limit.

    Raises:
        InvalidArgumentError: for anything else.
    """
    whole = isinstance(value, Integral) and value is not True and value is not False
    if not whole or value < lowest or (highest is not None and value > highest):
        bounds = f"of at least {lowest}" if highest is None else f"from {lowest} to {highest}"
        raise InvalidArgumentError(f"expected {name} to be an integer {bounds}, found {shown(value)}")
    return int(value)


def number(name: str, value: Any, lowest: float, highest: float) -> float:
    """Checks an argument that is a number.

    Args:
        name: what the message calls it.
        value: an int, a float, or a number of NumPy; a bool is none, and NaN is in no range.
        lowest: the least that is allowed.
        highest: the most that is allowed.

    Raises:
        InvalidArgumentError: for anything else.
    """
    real = isinstance(value, Real) and value is not True and value is not False
    plain = value.item() if real and hasattr(value, "item") else value  # NumPy would round the limits to its own type
    if not real or not lowest <= plain <= highest:
        raise InvalidArgumentError(f"expected {name} to be a number from {lowest:g} to {highest:g}, found {shown(value)}")
    return float(value)


def text_of(name: str, value: Any) -> str:
    """Checks an argument that is text.

    Args:
        name: what the message calls it.
        value: a str.

    Raises:
        InvalidArgumentError: for anything else.
    """
    if isinstance(value, (bytes, bytearray)):
        raise InvalidArgumentError(f"expected {name} to be text (str), found {type(value).__name__}: decode them, with .decode()")
    if not isinstance(value, str):
        raise InvalidArgumentError(f"expected {name} to be text (str), found {type(value).__name__} {shown(value)}")
    return value


def path_of(name: str, value: Any) -> Path:
    """Checks an argument that names a file.

    Args:
        name: what the message calls it.
        value: a str, or an os.PathLike of one.

    Raises:
        InvalidArgumentError: for anything else.
    """
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else value
    if not isinstance(path, str):
        raise InvalidArgumentError(f"expected {name} to be a path (str or os.PathLike), found {type(value).__name__} {shown(value)}")
    return Path(path)


def refuse_unknown(names: Iterable[str], known: Iterable[str], what: str) -> None:
    """Refuses keyword arguments that nobody knows, with the known one that looks most like it.

    Args:
        names: those given.
        known: those that there are.
        what: whose arguments they are, such as "generate()".

    Raises:
        InvalidArgumentError: for the first of `names` that is not in `known`.
    """
    known = list(known)
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, 1)
            advice = f"did you mean '{near[0]}'?" if near else f"{what} take {', '.join(known)}"
            raise InvalidArgumentError(f"expected an argument of {what}, found '{name}': {advice}")


def shown(value: object) -> str:
    """A caller's value, fit for a message of one line: its repr, shortened."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
