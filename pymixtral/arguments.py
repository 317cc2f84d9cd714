"""Checks of arguments: each returns the value, or raises an error that names the argument."""

from __future__ import annotations

import os
from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from pymixtral.errors import InvalidArgumentError
from pymixtral.escapes import escaped


def integer(name: str, value: Any, lowest: int, highest: int | None = None) -> int:
    """Check an argument that is a whole number.

    Args:
        name: the argument's name in the message.
        value: an int or an integer of NumPy, not a bool.
        lowest: the least that is allowed.
        highest: the most that is allowed; None: no limit.

    Returns:
        The value as an int.

    Raises:
        InvalidArgumentError: for another type, or a value out of range.
    """
    whole = isinstance(value, Integral) and _is_plain(value)
    if not whole or value < lowest or (highest is not None and value > highest):
        bounds = f"of at least {lowest}" if highest is None else f"from {lowest} to {highest}"
        raise InvalidArgumentError(f"expected {name} to be an integer {bounds}, found {shown(value)}")
    return int(value)


def number(name: str, value: Any, lowest: float, highest: float) -> float:
    """Check an argument that is a number.

    Args:
        name: the argument's name in the message.
        value: an int, a float or a number of NumPy, not a bool. NaN is out of every range.
        lowest: the least that is allowed.
        highest: the most that is allowed.

    Returns:
        The value as a float.

    Raises:
        InvalidArgumentError: for another type, or a value out of range.
    """
    real = isinstance(value, Real) and _is_plain(value)
    plain = value.item() if real and hasattr(value, "item") else value  # NumPy would round the limits to its own type
    if not real or not lowest <= plain <= highest:
        raise InvalidArgumentError(
            f"expected {name} to be a number from {lowest:g} to {highest:g}, found {shown(value)}"
        )
    return float(value)


def text_of(name: str, value: Any) -> str:
    """Check an argument that is text.

    Args:
        name: the argument's name in the message.
        value: a str.

    Returns:
        The value.

    Raises:
        InvalidArgumentError: for another type.
    """
    if isinstance(value, (bytes, bytearray)):
        raise InvalidArgumentError(
            f"expected {name} to be text (str), found {type(value).__name__}: decode it, with .decode()"
        )
    if not isinstance(value, str):
        raise InvalidArgumentError(f"expected {name} to be text (str), found {type(value).__name__} {shown(value)}")
    return value


def path_of(name: str, value: Any) -> Path:
    """Check an argument that names a file.

    Args:
        name: the argument's name in the message.
        value: a str, or an os.PathLike that gives one.

    Returns:
        The value as a Path.

    Raises:
        InvalidArgumentError: for another type.
    """
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else value
    if not isinstance(path, str):
        raise InvalidArgumentError(
            f"expected {name} to be a path (str or os.PathLike), found {type(value).__name__} {shown(value)}"
        )
    if not path:  # Python takes the empty one for the directory
        raise InvalidArgumentError(f"expected {name} to be the name of a file, found {shown(path)}")
    return Path(path)


def refuse_unknown(names: Iterable[str], known: Iterable[str], what: str, otherwise: str | None = None) -> None:
    """Refuse unknown keyword arguments.

    Args:
        names: the arguments given.
        known: the arguments that exist.
        what: the function that they are for, such as "generate()".
        otherwise: what to do where no known name looks like it; None: the known names.

    Raises:
        InvalidArgumentError: for the first of `names` that is not in `known`; it suggests the known
            name that looks most like it.
    """
    known = list(known)
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, 1)
            advice = f"did you mean '{near[0]}'?" if near else otherwise or f"{what} take {', '.join(known)}"
            raise InvalidArgumentError(f"expected an argument of {what}, found {shown(name)}: {advice}")


def shown(value: object) -> str:
    """Show a caller's value in a message of one line.

    Args:
        value: anything.

    Returns:
        Its repr, cut to 80 characters.
    """
    try:
        text = " ".join(repr(value).split())
    except Exception:  # of the value's own __repr__, or an int of thousands of digits
        text = f"a value of type {type(value).__name__}"
    text = escaped(text)
    return text if len(text) <= 80 else text[:77] + "..."


def _is_plain(value: Any) -> bool:
    """Whether a value of a number's type is a number: True and False are none, nor are NumPy's spans of time."""
    return value is not True and value is not False and getattr(getattr(value, "dtype", None), "kind", "i") in "iuf"
