"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from pymixtral.units import parse_bytes

# As pymixtral.model.kv_cache has them, which is not imported for a help text.
_KV_TYPES = ("f16", "f32", "q8_0")

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


kv_type_option = click.option(
    "--kv-type", type=click.Choice(_KV_TYPES), default="f16", show_default=True, help="Type of cached keys and values."
)


def size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """The callback of an option that is a size: its bytes."""
    try:
        return None if value is None else parse_bytes(value)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None


def override_options(function: _Function) -> _Function:
    """Adds --experts-used and --override-kv, as parameters `experts_used: int | None` and `overrides: dict`."""
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
