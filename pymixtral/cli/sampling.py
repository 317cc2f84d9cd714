"""The options that say how the next token is chosen: one for each field of SamplingParameters."""

from __future__ import annotations

from dataclasses import Field, fields
from typing import Any

import click

from pymixtral.cli.options import Function
from pymixtral.sampling.parameters import SamplingParameters

# By the type of the field, which is text: what click makes the option of.
_SETTINGS: dict[str, dict[str, Any]] = {
    "float": {"type": float, "metavar": "X", "show_default": True},
    "int": {"type": int, "metavar": "N", "show_default": True},
    "int | None": {"type": int, "metavar": "N"},
    "Mapping[int, float] | None": {"multiple": True, "metavar": "ID=N"},
}


def sampling_options(function: Function) -> Function:
    """Adds them, as parameters with the names of the fields."""
    for field in reversed(fields(SamplingParameters)):
        function = _option(field)(function)
    return function


def _option(field: Field[Any]) -> Any:
    return click.option(
        f"--{field.name.replace('_', '-')}",
        default=field.default,
        callback=_checked,
        help=field.metadata["help"],
        **_SETTINGS[str(field.type)],
    )


def _checked(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """The value, which SamplingParameters allows: wrong ones are refused before a model is opened."""
    if isinstance(value, tuple):
        value = dict(_pair(ctx, param, text) for text in value)
    assert param.name is not None
    return getattr(SamplingParameters(**{param.name: value}), param.name)


def _pair(ctx: click.Context, param: click.Parameter, text: str) -> tuple[int, float]:
    id, _, number = text.partition("=")
    try:
        return int(id), float(number)
    except ValueError:
        raise click.BadParameter(
            f"expected a token id, '=' and a number, such as 17=-2.5, found {text!r}", ctx, param
        ) from None
