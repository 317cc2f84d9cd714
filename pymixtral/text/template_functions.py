"""The filters, tests and methods that templates of chats use. None makes more than it has spent for.

Source: the documentation of Jinja, "Template Designer Documentation".

All take the work that is left first, so that tables of them have one shape.
"""

# ruff: noqa: ARG001, ARG005 - some have nothing to spend

from __future__ import annotations

import html
import math
import operator
import re
from collections.abc import Callable
from typing import Any

from pymixtral.text.template_values import (
    Namespace,
    TemplateError,
    Text,
    Undefined,
    Work,
    bounded,
    changed,
    contains,
    cut,
    equal,
    is_scalar,
    joined,
    keyed,
    listed,
    numeric,
    printed,
    size,
    to_json,
)

Function = Callable[..., Any]


# --- Text -----------------------------------------------------------------------------------------


def stripped(work: Work, text: str, characters: Any = None, *, left: bool = True, right: bool = True) -> str:
    """strip(), lstrip(), rstrip() and the filter trim."""
    work.spend(characters=size(text))
    if characters is not None and not isinstance(characters, str):
        raise TemplateError("strips something else than characters")
    begin = len(text) - len(str(text).lstrip(characters)) if left else 0
    end = len(str(text).rstrip(characters)) if right else len(text)
    return cut(text, begin, max(begin, end))


def replaced(work: Work, text: Any, old: Any, new: Any, count: Any = None) -> str:
    """replace(), as a method and as a filter."""
    text, old, new = printed(work, text), printed(work, old), printed(work, new)
    limit = -1 if count is None else _whole(count)
    work.spend(characters=len(text))
    found = len(text) + 1 if not old else str(text).count(old)
    found = found if limit < 0 else min(found, limit)
    work.spend(found, characters=size(text) + found * size(new))
    if not old:
        return str(text).replace(old, new, limit)
    return joined(split(work, text, old, found), new) if found else text


def split(work: Work, text: str, separator: Any = None, limit: Any = -1, *, right: bool = False) -> list[str]:
    """split() and rsplit()."""
    work.spend(characters=size(text))
    limit = _whole(limit)
    if separator is not None and not (isinstance(separator, str) and separator):
        raise TemplateError("splits a text at something else than text")
    if right or separator is None:
        parts = str(text).rsplit(separator, limit) if right else str(text).split(separator, limit)
        work.spend(len(parts))
        return parts if not isinstance(text, Text) or len(text.own) != 1 else [changed(text, part) for part in parts]
    parts, at = [], 0
    while limit != 0 and (found := text.find(separator, at)) >= 0:
        work.spend()
        parts.append(cut(text, at, found))
        at, limit = found + len(separator), limit - 1
    return [*parts, cut(text, at, len(text))]


def formatted(work: Work, text: str, values: Any, named: dict[str, Any] | None = None) -> str:
    """`text % values`, and the filter format: %s and %d without widths."""
    given = list(values) if isinstance(values, tuple) else [values]
    pieces: list[str] = []
    for part in _literals(text, r"%(?:\((\w+)\))?(.)"):
        if isinstance(part, str):
            pieces.append(part)
            continue
        name, kind = part
        if kind == "%":
            pieces.append(changed(text, "%"))
            continue
        if kind not in "sdi" or (name is None and not given):
            raise TemplateError("formats text by something else than %s and %d")
        value = given.pop(0) if name is None else attribute(work, named or values, name)
        pieces.append(printed(work, value) if kind == "s" else str(_whole(value)))
    if given and not named and not isinstance(values, dict):
        raise TemplateError("formats text by fewer places than values")
    work.spend(len(pieces), characters=sum(map(size, pieces)))
    return joined(pieces)


def str_format(work: Work, text: str, *values: Any, **named: Any) -> str:
    """text.format(): {}, {0} and {name} without more."""
    pieces: list[str] = []
    number = 0
    for part in _literals(text, r"(\{\{|\}\}|\{(\w*)\}|[{}])"):
        if isinstance(part, str):
            pieces.append(part)
            continue
        whole, key = part
        if whole in ("{{", "}}"):
            pieces.append(changed(text, whole[0]))
            continue
        if key is None:
            raise TemplateError("formats text by something else than {}, {0} and {name}")
        if key == "":
            key, number = str(number), number + 1
        if key.isdigit():
            value = values[int(key)] if len(key) < 4 and int(key) < len(values) else Undefined(key)
        else:
            value = named.get(key, Undefined(key))
        pieces.append(printed(work, value))
    work.spend(len(pieces), characters=sum(map(size, pieces)))
    return joined(pieces)


def _literals(text: str, pattern: str) -> list[str | tuple[Any, ...]]:
    """The text between the matches of a pattern, and their groups."""
    parts: list[str | tuple[Any, ...]] = []
    at = 0
    for match in re.finditer(pattern, text, re.DOTALL):
        parts += [cut(text, at, match.start()), match.groups()]
        at = match.end()
    return [*parts, cut(text, at, len(text))]


def _affix(work: Work, text: str, affix: Any, test: Callable[[str, Any], bool]) -> bool:
    affixes = affix if isinstance(affix, tuple) else (affix,)
    if not all(isinstance(one, str) for one in affixes):
        raise TemplateError("asks for a beginning or an end that is no text")
    work.spend(len(affixes), characters=sum(map(len, affixes)))
    return test(text, tuple(map(str, affixes)))


def _case(name: str) -> Function:
    def change(work: Work, value: Any) -> str:
        text = printed(work, value)
        work.spend(characters=3 * len(text))
        return changed(text, getattr(str(text), name)())

    return change


def _search(name: str) -> Function:
    def search(work: Work, text: str, part: Any, *bounds: Any) -> int:
        if not isinstance(part, str) or len(bounds) > 2:
            raise TemplateError("searches a text for something else than text")
        work.spend(characters=len(text))
        return int(getattr(str(text), name)(part, *map(_whole, bounds)))

    return search


def _asked(name: str) -> Function:
    def ask(work: Work, text: str) -> bool:
        work.spend(characters=len(text))
        return bool(getattr(str(text), name)())

    return ask


def _without(text: str, affix: Any, at_end: bool) -> str:
    if not isinstance(affix, str):
        raise TemplateError("removes a beginning or an end that is no text")
    if affix and (text.endswith(affix) if at_end else text.startswith(affix)):
        return cut(text, 0, len(text) - len(affix)) if at_end else cut(text, len(affix), len(text))
    return text


def _lines(work: Work, text: str, keep: Any = False) -> list[str]:
    lines = str(text).splitlines(bool(keep))
    work.spend(len(lines), characters=len(text))
    return lines


def _join(work: Work, between: str, values: Any) -> str:
    pieces = listed(work, values)
    if not all(isinstance(piece, str) for piece in pieces):
        raise TemplateError("joins something else than texts")
    work.spend(characters=sum(map(size, pieces)) + len(pieces) * size(between))
    return joined(pieces, between)


STR_METHODS: dict[str, Function] = {
    "strip": stripped,
    "lstrip": lambda work, text, characters=None: stripped(work, text, characters, right=False),
    "rstrip": lambda work, text, characters=None: stripped(work, text, characters, left=False),
    "split": lambda work, text, sep=None, maxsplit=-1: split(work, text, sep, maxsplit),
    "rsplit": lambda work, text, sep=None, maxsplit=-1: split(work, text, sep, maxsplit, right=True),
    "splitlines": _lines,
    "replace": replaced,
    "startswith": lambda work, text, affix: _affix(work, text, affix, str.startswith),
    "endswith": lambda work, text, affix: _affix(work, text, affix, str.endswith),
    "removeprefix": lambda work, text, affix: _without(text, affix, False),
    "removesuffix": lambda work, text, affix: _without(text, affix, True),
    "join": _join,
    "format": str_format,
    **{name: _case(name) for name in ("upper", "lower", "title", "capitalize")},
    **{name: _search(name) for name in ("find", "rfind", "index", "count")},
    **{name: _asked(name) for name in ("isdigit", "isalpha", "isalnum", "isspace", "isupper", "islower")},
}


# --- Lists and mappings ---------------------------------------------------------------------------


def attribute(work: Work, value: Any, name: Any) -> Any:
    """`value.name`, as filters that take an attribute's name find it: dots lead further."""
    for part in str(name).split(".") if isinstance(name, str) else [name]:
        work.spend()
        if isinstance(value, dict):
            value = value.get(part, Undefined(part)) if is_scalar(part) else Undefined(part)
        elif isinstance(value, (list, tuple)) and isinstance(part, (int, str)) and str(part).isdigit():
            value = value[int(part)] if len(str(part)) < 10 and int(part) < len(value) else Undefined(part)
        elif isinstance(value, Namespace):
            value = value.values.get(str(part), Undefined(part))
        else:
            value = Undefined(part)
    return value


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
    key = value if name is None else attribute(work, value, name)
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
        number = value if attribute_name is None else attribute(work, value, attribute_name)
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
        printed(work, value if attribute_name is None else attribute(work, value, attribute_name))
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


def _whole(value: Any) -> int:
    if not isinstance(value, int):
        raise TemplateError(f"needs an integer, and has a value of type {type(value).__name__}")
    return bounded(value)  # type: ignore[no-any-return]


def _int(work: Work, value: Any, default: Any = 0, base: Any = 10) -> Any:
    if isinstance(value, Undefined):
        raise value.fail()
    try:
        if isinstance(value, str):
            return bounded(int(value, _whole(base))) if len(value) < 100 else default
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
    if not isinstance(value, (int, float)) or not 0 <= _whole(precision) <= 15 or not math.isfinite(value):
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
    before = printed(work, width) if isinstance(width, str) else " " * min(max(_whole(width), 0), 100)
    lines = _lines(work, printed(work, value) + "\n")
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
    **{name: _case(name) for name in ("upper", "lower", "capitalize")},
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
    "divisibleby": lambda work, value, by: _whole(value) % (_whole(by) or _zero()) == 0,
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
