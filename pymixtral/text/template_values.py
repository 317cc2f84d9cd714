"""What a template computes with: text that knows its writer, and operations with a bounded cost."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any

CHARACTERS_A_STEP = 16
"""Characters that cost as much as one step of a template: copying is much faster than a step."""

MAX_DEPTH = 64
"""Levels of lists and mappings that are printed or compared."""

_LARGEST = 1 << 63


class TemplateError(Exception):
    """A template that fails: the message is for the reader."""


class TemplateLimitError(TemplateError):
    """A template that computes too much."""


class Work:
    """What a template may still do.

    Args:
        steps: operations, or CHARACTERS_A_STEP characters each.
    """

    def __init__(self, steps: int) -> None:
        self.left = steps

    def spend(self, steps: int = 1, *, characters: int = 0) -> None:
        """Take some of it, before the work is done.

        Raises:
            TemplateLimitError: nothing is left.
        """
        self.left -= steps + characters // CHARACTERS_A_STEP
        if self.left < 0:
            raise TemplateLimitError("computes too much")


class Text(str):
    """A string that knows which of its characters the template wrote, and not a message.

    A str that is no Text is a message's, all of it. What operations do not follow is taken for a
    message's, too, so that no message can pass for the template.

    Attributes:
        own: begin and end of each run of the template's characters, in order, with others between
            any two.
    """

    own: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, text: str, own: Iterable[tuple[int, int]] | None = None) -> Text:
        """Make one; without `own`, all of it is the template's."""
        made = cls(text)
        made.own = tuple(own) if own is not None else ((0, len(text)),) if text else ()
        return made


def own_runs(text: str) -> tuple[tuple[int, int], ...]:
    """The runs of a string that the template wrote."""
    return text.own if isinstance(text, Text) else ()


def joined(pieces: Iterable[str], between: str = "") -> str:
    """A concatenation that knows the writers of its parts."""
    parts: list[str] = []
    for piece in pieces:
        if parts and between:
            parts.append(between)
        parts.append(piece)
    if not any(map(own_runs, parts)):
        return "".join(parts)
    own: list[tuple[int, int]] = []
    at = 0
    for part in parts:
        for begin, end in own_runs(part):
            if own and own[-1][1] == at + begin:
                own[-1] = own[-1][0], at + end
            else:
                own.append((at + begin, at + end))
        at += len(part)
    return Text.of("".join(parts), own)


def cut(text: str, begin: int, end: int) -> str:
    """A part of a string that knows the writers of its characters."""
    runs = own_runs(text)
    own = []
    for i in range(max(bisect_left(runs, (begin, begin)) - 1, 0), len(runs)):
        if runs[i][0] >= end:
            break
        if runs[i][1] > begin:
            own.append((max(runs[i][0], begin) - begin, min(runs[i][1], end) - begin))
    return Text.of(text[begin:end], own) if own else str(text)[begin:end]


def size(text: str) -> int:
    """The characters that it costs to copy a string with its runs."""
    return len(text) + CHARACTERS_A_STEP * len(own_runs(text)) // 2


def changed(text: str, result: str) -> str:
    """The result of an operation on characters: the template's if the whole text was."""
    return Text.of(result) if own_runs(text) == ((0, len(text)),) else result


class Undefined:
    """A name, an attribute or an item that there is not.

    Args:
        what: its name.
    """

    def __init__(self, what: object) -> None:
        self.what = what

    def __bool__(self) -> bool:
        return False

    def fail(self) -> TemplateError:
        """The error of using it."""
        return TemplateError(f"uses {self.what!r:.80}, which is undefined")


class Namespace:
    """What namespace() makes: attributes that a loop may set."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values


def is_scalar(value: object) -> bool:
    """Whether a value is of one piece."""
    return value is None or isinstance(value, (str, int, float))


def keyed(value: Any) -> Any:
    """Refuse keys of several parts, whose hash may take any time."""
    if not is_scalar(value):
        raise TemplateError("has a key that is no text and no number")
    return value


def numeric(value: Any) -> Any:
    """Refuse what is no number."""
    if isinstance(value, Undefined):
        raise value.fail()
    if not isinstance(value, (int, float)):
        raise TemplateError(f"computes with a value of type {type(value).__name__}")
    return value


def bounded(value: Any) -> Any:
    """Refuse integers beyond 64 bits, whose arithmetic takes any time."""
    if isinstance(value, int) and not -_LARGEST <= value < _LARGEST:
        raise TemplateError("computes an integer beyond 64 bits")
    return value


def as_integer(value: Any) -> int:
    """An integer, in its bounds."""
    if not isinstance(value, int):
        raise TemplateError(f"needs an integer, and has a value of type {type(value).__name__}")
    return bounded(value)  # type: ignore[no-any-return]


def listed(work: Work, value: Any) -> list[Any]:
    """The items of a value that is iterated."""
    if isinstance(value, Undefined):
        return []
    if isinstance(value, str):
        work.spend(len(value))
        return [cut(value, i, i + 1) for i in range(len(value))]
    if isinstance(value, (list, tuple, dict)):
        work.spend(len(value))
        return list(value)
    raise TemplateError(f"iterates over a value of type {type(value).__name__}")


def attribute_of(work: Work, value: Any, name: Any) -> Any:
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


def printed(work: Work, value: Any) -> str:
    """A value as text."""
    if isinstance(value, str):
        return value
    if isinstance(value, Undefined):
        return ""
    if isinstance(value, (list, tuple, dict)):
        _measure(work, value, 0, 2)
        return repr(value)
    if is_scalar(value):
        return str(value)
    raise TemplateError(f"prints a value of type {type(value).__name__}")


def to_json(
    work: Work,
    value: Any,
    indent: int | None = None,
    ensure_ascii: bool = False,
    separators: Sequence[str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The filter tojson, as transformers has it."""
    if isinstance(value, Undefined):
        raise value.fail()
    if indent is not None and not (type(indent) is int and 0 <= indent <= 8):
        raise TemplateError("indents JSON by something else than 0 to 8 spaces")
    if separators is not None and [len(separators), *map(type, separators)] not in ([2, str, str], [2, Text, Text]):
        raise TemplateError("separates JSON by something else than two strings")
    if separators is not None and max(map(len, separators)) > 4:
        raise TemplateError("separates JSON by long strings")
    _measure(work, value, 0, indent or 2)
    try:
        return json.dumps(
            value,
            indent=indent,
            ensure_ascii=bool(ensure_ascii),
            separators=tuple(separators) if separators is not None else None,  # type: ignore[arg-type]  # two of them
            sort_keys=bool(sort_keys),
        )
    except (TypeError, ValueError) as error:
        raise TemplateError(f"writes JSON of what JSON cannot express ({error})") from None


def equal(work: Work, a: Any, b: Any, depth: int = 0) -> bool:
    """Whether two values are equal."""
    work.spend()
    if depth > MAX_DEPTH:
        raise TemplateLimitError("compares lists of too many levels")
    if isinstance(a, str) and isinstance(b, str):
        work.spend(characters=min(len(a), len(b)))
        return str.__eq__(a, b)
    if isinstance(a, (list, tuple)) and type(a) is type(b):
        return len(a) == len(b) and all(equal(work, x, y, depth + 1) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return len(a) == len(b) and all(key in b and equal(work, a[key], b[key], depth + 1) for key in a)
    if isinstance(a, Undefined) or isinstance(b, Undefined):
        return isinstance(a, Undefined) and isinstance(b, Undefined)
    return bool(a == b) if is_scalar(a) and is_scalar(b) else a is b


def contains(work: Work, container: Any, item: Any) -> bool:
    """Whether a value is in another."""
    if isinstance(container, str):
        if not isinstance(item, str):
            raise TemplateError(f"searches a text for a value of type {type(item).__name__}")
        work.spend(characters=len(container))
        return str.__contains__(container, item)
    if isinstance(container, dict):
        return not isinstance(item, Undefined) and keyed(item) in container
    return any(equal(work, value, item) for value in listed(work, container))


def _measure(work: Work, value: Any, depth: int, indent: int) -> None:
    """Spend what it costs to write a value, in which the same list may stand many times."""
    work.spend(1 + indent * depth // CHARACTERS_A_STEP)
    if depth > MAX_DEPTH:
        raise TemplateLimitError("writes lists of too many levels")
    if isinstance(value, str):
        work.spend(characters=10 * len(value))  # "\U000e0001"
    elif isinstance(value, (list, tuple)):
        for item in value:
            _measure(work, item, depth + 1, indent)
    elif isinstance(value, dict):
        for key, item in value.items():
            work.spend(characters=10 * len(key) if isinstance(key, str) else 8)
            _measure(work, item, depth + 1, indent)
    elif isinstance(value, Undefined):
        raise value.fail()
    elif not is_scalar(value):
        raise TemplateError(f"writes a value of type {type(value).__name__}")
