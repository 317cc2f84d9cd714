"""JSON of strangers: read with limits, and refused where two readers could read it in two ways."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from pymixtral.arguments import shown
from pymixtral.server.errors import APIError

MAX_DEPTH = 100
"""Containers inside one another: above any JSON schema that people write."""

MAX_KEYS = 1 << 14
"""Keys of an object: four times what any field takes. Each one that is wrong costs an error's time and memory."""

_MAX_DIGITS = 20
"""Digits of an integer: 64 bits have as many."""

_HALF_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")
"""The beginning of a surrogate, which must have another half."""


def parse_json(data: bytes) -> Any:
    """Read JSON.

    Args:
        data: UTF-8.

    Returns:
        The value. Its numbers are finite, its integers have at most 20 digits, its texts are Unicode,
        its containers are at most MAX_DEPTH deep, and no object has more than MAX_KEYS keys, or one twice.

    Raises:
        APIError: with status 400, for anything else.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        _fail(f"UTF-8, found the byte 0x{data[error.start]:02x} at offset {error.start}")
    try:
        value = json.loads(
            text, parse_constant=_constant, parse_int=_integer, parse_float=_number, object_pairs_hook=_unique
        )
    except RecursionError:
        _fail(f"JSON of at most {MAX_DEPTH} levels, found one that is deeper")
    except ValueError as error:
        _fail(f"JSON, found an error ({error})")
    if _too_deep(value):
        _fail(f"JSON of at most {MAX_DEPTH} levels, found one that is deeper")
    if _HALF_PAIR.search(data):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            _fail("Unicode text, found half of a surrogate pair")
    return value


def _too_deep(value: Any) -> bool:
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return False
    return True


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS + (text[0] == "-"):
        _fail(f"integers of at most {_MAX_DIGITS} digits, found one of {len(text)}")
    return int(text)


def _number(text: str) -> float:
    """A number; 1.0 is an integer, as in JSON Schema, for clients that have floats alone."""
    value = float(text)
    if not math.isfinite(value):
        _fail(f"finite numbers, found {shown(text)}")
    return int(value) if value.is_integer() and abs(value) < 1 << 53 else value


def _constant(name: str) -> NoReturn:
    _fail(f"JSON, found {name}, which it does not have")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_KEYS:
        _fail(f"objects of at most {MAX_KEYS} keys, found one of {len(pairs)}")
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            _fail(f"each key once, found {shown(name)} twice")
        found[name] = value
    return found


def _fail(what: str) -> NoReturn:
    raise APIError(400, f"expected a body of {what}", code="invalid_json")
