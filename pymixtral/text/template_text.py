"""The methods of texts that templates of chats use. None makes more than it has spent for.

Source: the documentation of Jinja, "Template Designer Documentation".

All take the work that is left first, so that tables of them have one shape.
"""

# ruff: noqa: ARG005 - some have nothing to spend

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from pymixtral.text.template_values import (
    TemplateError,
    Text,
    Undefined,
    Work,
    as_integer,
    attribute_of,
    changed,
    cut,
    joined,
    listed,
    printed,
    size,
)

Function = Callable[..., Any]


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
    limit = -1 if count is None else as_integer(count)
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
    limit = as_integer(limit)
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
        value = given.pop(0) if name is None else attribute_of(work, named or values, name)
        pieces.append(printed(work, value) if kind == "s" else str(as_integer(value)))
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


def cased(name: str) -> Function:
    """A method of a text that changes its letters."""

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
        return int(getattr(str(text), name)(part, *map(as_integer, bounds)))

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


def split_lines(work: Work, text: str, keep: Any = False) -> list[str]:
    """The lines of a text, with their ends or without."""
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
    "splitlines": split_lines,
    "replace": replaced,
    "startswith": lambda work, text, affix: _affix(work, text, affix, str.startswith),
    "endswith": lambda work, text, affix: _affix(work, text, affix, str.endswith),
    "removeprefix": lambda work, text, affix: _without(text, affix, False),
    "removesuffix": lambda work, text, affix: _without(text, affix, True),
    "join": _join,
    "format": str_format,
    **{name: cased(name) for name in ("upper", "lower", "title", "capitalize")},
    **{name: _search(name) for name in ("find", "rfind", "index", "count")},
    **{name: _asked(name) for name in ("isdigit", "isalpha", "isalnum", "isspace", "isupper", "islower")},
}
