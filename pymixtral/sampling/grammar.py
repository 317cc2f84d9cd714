"""Grammars: what a text has to match, as callers say it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from pymixtral.arguments import shown, text_of
from pymixtral.errors import InvalidArgumentError

MAX_TEXT = 1 << 16
"""Characters of a grammar. A compiled one takes some 100 times as many bytes of memory, and a second
at most, but for those that are made to take long."""


class Form(TypedDict, total=False):
    """Keyword arguments that say what the generated text has to match. At most one is given.

    Attributes:
        json_schema: the text is JSON of this JSON Schema, without white space. An object, or its
            text.
        json_object: the text is a JSON object.
        regex: the whole text matches this regular expression, in the syntax of Rust's regex without
            anchors and lazy repetitions.
        choice: the text is one of these.
        lark: the text follows this grammar, in the form of Lark that llguidance reads.
    """

    json_schema: Mapping[str, Any] | str | None
    json_object: bool
    regex: str | None
    choice: Sequence[str] | None
    lark: str | None


NAMES = tuple(Form.__annotations__)


@dataclass(frozen=True)
class Grammar:
    """What a text has to match. grammar_of() makes and checks one.

    Attributes:
        option: the argument that said so, one of NAMES.
        kind: how the text is written.
        text: a JSON Schema, a regular expression or a Lark grammar.
    """

    option: str
    kind: Literal["json", "regex", "lark"]
    text: str


def grammar_of(options: Mapping[str, Any]) -> Grammar | None:
    """Read the keyword arguments of Form. Whether a grammar makes sense, its compiler says.

    Args:
        options: the arguments; others than those of Form are ignored.

    Returns:
        The grammar; None if no argument asks for one.

    Raises:
        InvalidArgumentError: for several of the arguments, another type, what is no JSON, and more than
            MAX_TEXT characters.
    """
    none: dict[str, Any] = {"json_object": False}
    given = [name for name in NAMES if options.get(name) is not None and options[name] is not none.get(name)]
    if not given:
        return None
    if len(given) > 1:
        raise InvalidArgumentError(f"expected one of {', '.join(NAMES)}, found {' and '.join(given)}: leave one out")
    option, value = given[0], options[given[0]]
    if option == "json_schema":
        grammar = Grammar(option, "json", _schema(value))
    elif option == "json_object":
        if value is not True:
            raise InvalidArgumentError(f"expected json_object to be True or False, found {shown(value)}")
        grammar = Grammar(option, "json", '{"type": "object"}')
    elif option == "choice":
        grammar = Grammar(option, "lark", "start: " + " | ".join(map(json.dumps, _choices(value))))
    else:
        grammar = Grammar(option, "regex" if option == "regex" else "lark", _unicode(option, value))
    if len(grammar.text) > MAX_TEXT:
        raise InvalidArgumentError(
            f"expected {option} of at most {MAX_TEXT} characters, found {len(grammar.text)}: make it smaller"
        )
    return grammar


def _schema(value: object) -> str:
    """A schema in one form, whatever the caller's, with the properties in his order."""
    if isinstance(value, str):
        if len(value) > 4 * MAX_TEXT:  # white space is none of the schema
            raise InvalidArgumentError(
                f"expected json_schema of at most {4 * MAX_TEXT} characters, found {len(value)}: make it smaller"
            )
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise InvalidArgumentError(
                f"expected json_schema to be a JSON Schema, found text that is no JSON ({error})"
            ) from None
    if not isinstance(value, Mapping):
        raise InvalidArgumentError(f"expected json_schema to be an object or its text, found {shown(value)}")
    try:
        return _unicode("json_schema", json.dumps(dict(value), ensure_ascii=False, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgumentError(
            f"expected json_schema of what JSON can express, found {shown(value)} ({error})"
        ) from None


def _choices(value: object) -> list[str]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence) or not value:
        raise InvalidArgumentError(f"expected choice to be a list of at least one text, found {shown(value)}")
    if len(value) > MAX_TEXT:
        raise InvalidArgumentError(f"expected choice of at most {MAX_TEXT} characters, found {len(value)} texts")
    choices = [_unicode(f"choice[{i}]", one) for i, one in enumerate(value)]
    if "" in choices:
        raise InvalidArgumentError("expected choice to be a list of texts, found an empty one: leave it out")
    return choices


def _unicode(name: str, value: object) -> str:
    text = text_of(name, value)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(
            f"expected {name} to be Unicode text, found half of a surrogate pair at character {error.start}"
        ) from None
    return text
