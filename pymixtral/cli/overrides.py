"""The options --experts-used and --override-kv, which several commands have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Value = int | float | bool | str
_TYPES: dict[str, Callable[[str], _Value]] = {"int": int, "float": float, "bool": {"true": True, "false": False}.__getitem__, "str": str}


def _overrides(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> dict[str, _Value]:
    """`KEY=TYPE:VALUE` as {KEY: value}; the last of several for one key counts."""
    found: dict[str, _Value] = {}
    for text in texts:
        key, _, rest = text.partition("=")
        kind, colon, value = rest.partition(":")
        try:
            if not key or not colon:
                raise ValueError
            found[key] = _TYPES[kind](value)
        except (KeyError, ValueError):
            raise click.BadParameter(
                f"expected KEY=TYPE:VALUE with int, float, bool or str, such as llama.expert_used_count=int:3, found {text!r}",
                ctx,
                param,
            ) from None
    return found


def override_options(function: _Function) -> _Function:
    """Adds the options, as parameters `experts_used: int | None` and `overrides: dict`."""
    for option in (
        click.option(
            "--override-kv",
            "overrides",
            metavar="KEY=TYPE:VALUE",
            multiple=True,
            callback=_overrides,
            help="Put VALUE, an int, float, bool or str, in place of the file's metadata.  [may be repeated]",
        ),
        click.option("--experts-used", type=click.IntRange(min=1), help="Experts for each token.  [default: the model's]"),
    ):
        function = option(function)
    return function
