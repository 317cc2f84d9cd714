"""The filters, tests and methods of lists and mappings that templates of chats use.

Source: the documentation of Jinja, "Template Designer Documentation".

None makes more than it has spent for. All take the work that is left first, so that tables of them
have one shape.
"""

# ruff: noqa: ARG001, ARG005 - some have nothing to spend

from __future__ import annotations

import html
import math
import operator
import re
from typing import Any

from pymixtral.text.template_text import Function, cased, formatted, replaced, split_lines, stripped
from pymixtral.text.template_values import (
    TemplateError,
    Undefined,
    Work,
    as_integer,
    attribute_of,
    bounded,
    changed,
    contains,
    equal,
    joined,
    keyed,
    listed,
    numeric,
    printed,
    size,
    to_json,
)


def items(work: Work, value: Any) -> list[Any]:
    """The pairs of a mapping."""
    if isinstance(value, Undefined):
        return []
    if not isinstance(value, dict):
        raise TemplateError(f"asks for the items of a value of type {type(value).__name__}")
    work.spend(len(value))
    return list(value.items())


def _length(work: Work, value: Any) -> int:
    return len(value) if isinstance(value, (str, list, tuple, dict)) else len(listed(work, value))


def _sorted(work: Work, values: Any, reverse: Any = False, case_sensitive: Any = False, attribute: Any = None) -> Any:
    found = [(_sort_key(work, value, attribute, case_sensitive), value) for value in listed(work, values)]
    work.spend(len(found) * 20, characters=sum(len(key) for key, _ in found if isinstance(key, str)) * 20)
    try:
        return [value for _, value in sorted(found, key=lambda pair: pair[0], reverse=bool(reverse))]
    except TypeError:
        raise TemplateError("sorts values of different types") from None


def _sort_key(work: Work, value: Any, name: Any, case_sensitive: Any) -> Any:
    key = value if name is None else attribute_of(work, value, name)
    if not isinstance(key, (str, int, float)):
        raise TemplateError("sorts something else than texts and numbers")
    return str(key).lower() if isinstance(key, str) and not case_sensitive else key


def _dictsort(work: Work, value: Any, case_sensitive: Any = False, by: Any = "key", reverse: Any = False) -> Any:
    if isinstance(value, Undefined):
        raise value.fail()
    return _sorted(work, items(work, value), reverse, case_sensitive, 0 if by == "key" else 1)


def _unique(work: Work, values: Any, case_sensitive: Any = False, attribute: Any = None) -> list[Any]:
    seen: dict[Any, Any] = {}
    for value in listed(work, values):
        seen.setdefault(_sort_key(work, value, attribute, case_sensitive), value)
    return list(seen.values())


def _summed(work: Work, values: Any, attribute_name: Any = None, start: Any = 0) -> Any:
    total = start
    for value in listed(work, values):
        number = value if attribute_name is None else attribute_of(work, value, attribute_name)
        if not isinstance(number, (int, float)) or not isinstance(total, (int, float)):
            raise TemplateError("adds something else than numbers")
        total = bounded(total + number)
    return total


def _extreme(choose: Function) -> Function:
    def extreme(work: Work, values: Any, case_sensitive: Any = False, attribute: Any = None) -> Any:
        found = _sorted(work, values, False, case_sensitive, attribute)
        return choose(found) if found else Undefined("an item of an empty list")

    return extreme


def _joined(work: Work, values: Any, between: Any = "", attribute_name: Any = None) -> str:
    pieces = [
        printed(work, value if attribute_name is None else attribute_of(work, value, attribute_name))
        for value in listed(work, values)
    ]
    separator = printed(work, between)
    work.spend(characters=sum(map(size, pieces)) + len(pieces) * size(separator))
    return joined(pieces, separator)


def _at(index: int) -> Function:
    def at(work: Work, values: Any) -> Any:
        found = listed(work, values)
        return found[index] if found else Undefined("an item of an empty list")

    return at


def _reversed(work: Work, values: Any) -> Any:
    if isinstance(values, str):
        work.spend(characters=len(values))
        return changed(values, str(values)[::-1])
    return listed(work, values)[::-1]


def _default(work: Work, value: Any, default: Any = "", boolean: Any = False) -> Any:
    return default if isinstance(value, Undefined) or (boolean and not value) else value


# --- Numbers --------------------------------------------------------------------------------------


def _int(work: Work, value: Any, default: Any = 0, base: Any = 10) -> Any:
    if isinstance(value, Undefined):
        raise value.fail()
    try:
        if isinstance(value, str):
            return bounded(int(value, as_integer(base))) if len(value) < 100 else default
        return bounded(int(value))
    except (TypeError, ValueError, OverflowError):
        return default


def _float(work: Work, value: Any, default: Any = 0.0) -> Any:
    if isinstance(value, Undefined):
        raise value.fail()
    try:
        return float(value) if not isinstance(value, str) or len(value) < 100 else default
    except (TypeError, ValueError):
        return default


def _round(work: Work, value: Any, precision: Any = 0, method: Any = "common") -> Any:
    if not isinstance(value, (int, float)) or not 0 <= as_integer(precision) <= 15 or not math.isfinite(value):
        raise TemplateError("rounds something else than numbers to 0 to 15 digits")
    if method == "common":
        return round(value, precision)
    if method not in ("ceil", "floor"):
        raise TemplateError("rounds by another method than 'common', 'ceil' and 'floor'")
    return (math.ceil if method == "ceil" else math.floor)(value * 10**precision) / 10**precision


def _abs(work: Work, value: Any) -> Any:
    if not isinstance(value, (int, float)):
        raise TemplateError("takes the magnitude of something else than a number")
    return abs(value)


def _indent(work: Work, value: Any, width: Any = 4, first: Any = False, blank: Any = False) -> str:
    if not isinstance(value, str):
        raise TemplateError("indents something else than text")
    before = printed(work, width) if isinstance(width, str) else " " * min(max(as_integer(width), 0), 100)
    lines = split_lines(work, printed(work, value) + "\n")
    work.spend(len(lines), characters=len(lines) * (len(before) + 1))
    indented = [before + line if line or blank else line for line in lines[1:]]
    return "\n".join([(before if first else "") + lines[0], *indented])


def _escaped(work: Work, text: str) -> str:
    work.spend(characters=6 * len(text))
    return html.escape(text).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")


def _titled(work: Work, value: Any) -> str:
    text = printed(work, value)
    work.spend(len(text))
    words = re.split(r"([-\s({\[<]+)", text)
    return changed(text, "".join(word[:1].upper() + word[1:].lower() for word in words))


FILTERS: dict[str, Function] = {
    "abs": _abs,
    "count": _length,
    "d": _default,
    "default": _default,
    "dictsort": _dictsort,
    "e": lambda work, value: _escaped(work, printed(work, value)),
    "first": _at(0),
    "float": _float,
    "format": lambda work, value, *values, **named: formatted(work, printed(work, value), values, named),
    "indent": _indent,
    "int": _int,
    "items": items,
    "join": _joined,
    "last": _at(-1),
    "length": _length,
    "list": listed,
    "max": _extreme(lambda found: found[-1]),
    "min": _extreme(lambda found: found[0]),
    "replace": replaced,
    "reverse": _reversed,
    "round": _round,
    "safe": printed,
    "sort": _sorted,
    "string": printed,
    "sum": _summed,
    "tojson": to_json,
    "trim": lambda work, value, chars=None: stripped(work, printed(work, value), chars),
    "unique": _unique,
    "title": _titled,
    **{name: cased(name) for name in ("upper", "lower", "capitalize")},
}
FILTERS["escape"] = FILTERS["e"]


def _got(work: Work, value: dict[Any, Any], key: Any, default: Any = None) -> Any:
    return default if isinstance(key, Undefined) else value.get(keyed(key), default)


DICT_METHODS: dict[str, Function] = {
    "get": _got,
    "items": items,
    "keys": listed,
    "values": lambda work, value: [item for _, item in items(work, value)],
}
LIST_METHODS: dict[str, Function] = {
    "index": lambda work, values, item: _index(work, values, item),
    "count": lambda work, values, item: sum(equal(work, value, item) for value in listed(work, values)),
}


def _index(work: Work, values: Any, item: Any) -> int:
    for i, value in enumerate(listed(work, values)):
        if equal(work, value, item):
            return i
    raise TemplateError("asks for the index of what is not in a list")


def compare(work: Work, kind: str, a: Any, b: Any) -> bool:
    """A comparison of two values."""
    if kind in ("eq", "ne"):
        return equal(work, a, b) == (kind == "eq")
    if kind in ("in", "notin"):
        return contains(work, b, a) == (kind == "in")
    if isinstance(a, str) and isinstance(b, str):
        work.spend(characters=min(len(a), len(b)))
    elif not (isinstance(a, (int, float)) and isinstance(b, (int, float))):
        raise TemplateError(f"compares values of types {type(a).__name__} and {type(b).__name__}")
    return bool(_ORDER[kind](a, b))


_ORDER = {"lt": operator.lt, "lteq": operator.le, "gt": operator.gt, "gteq": operator.ge}


def _compares(kind: str) -> Function:
    return lambda work, a, b: compare(work, kind, a, b)


TESTS: dict[str, Function] = {
    "boolean": lambda work, value: isinstance(value, bool),
    "callable": lambda work, value: callable(value),
    "defined": lambda work, value: not isinstance(value, Undefined),
    "divisibleby": lambda work, value, by: as_integer(value) % (as_integer(by) or _zero()) == 0,
    "even": lambda work, value: numeric(value) % 2 == 0,
    "false": lambda work, value: value is False,
    "float": lambda work, value: isinstance(value, float),
    "integer": lambda work, value: isinstance(value, int) and not isinstance(value, bool),
    "iterable": lambda work, value: isinstance(value, (str, list, tuple, dict, Undefined)),
    "lower": lambda work, value: str(printed(work, value)).islower(),
    "mapping": lambda work, value: isinstance(value, dict),
    "none": lambda work, value: value is None,
    "number": lambda work, value: isinstance(value, (int, float)),
    "odd": lambda work, value: numeric(value) % 2 == 1,
    "sameas": lambda work, value, other: value is other,
    "sequence": lambda work, value: isinstance(value, (str, list, tuple, dict, Undefined)),
    "string": lambda work, value: isinstance(value, str),
    "true": lambda work, value: value is True,
    "undefined": lambda work, value: isinstance(value, Undefined),
    "upper": lambda work, value: str(printed(work, value)).isupper(),
    **{name: _compares("eq") for name in ("eq", "equalto", "==")},
    **{name: _compares("ne") for name in ("ne", "!=")},
    **{name: _compares("lt") for name in ("lt", "lessthan", "<")},
    **{name: _compares("lteq") for name in ("le", "<=")},
    **{name: _compares("gt") for name in ("gt", "greaterthan", ">")},
    **{name: _compares("gteq") for name in ("ge", ">=")},
    "in": _compares("in"),
}


def _zero() -> int:
    raise TemplateError("divides by zero")
