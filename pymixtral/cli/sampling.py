"""The options that say how the next token is chosen: one for each field of SamplingParameters."""

from __future__ import annotations

from dataclasses import Field, fields
from functools import partial
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
    "Sequence[int] | None": {"metavar": "ID,ID"},
    "Sequence[Sequence[int]] | None": {"multiple": True, "metavar": "ID,ID"},
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
        callback=partial(_checked, str(field.type)),
        help=field.metadata["help"],
        **_SETTINGS[str(field.type)] | ({"metavar": "TEXT|ID,ID"} if field.name == "bad_words" else {}),
    )


def _checked(kind: str, ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """The value, which SamplingParameters allows: wrong ones are refused before a model is opened."""
    if kind.startswith("Mapping"):
        value = dict(_pair(ctx, param, text) for text in value)
    elif kind == "Sequence[int] | None":
        value = None if value is None else _ids(ctx, param, value)
    elif kind.startswith("Sequence"):
        texts = [text for text in value if param.name == "bad_words" and text.strip("0123456789,- ")]
        value = [_ids(ctx, param, text) for text in value if text not in texts]
        if texts:  # which the model's tokenizer turns into ids
            SamplingParameters(bad_words=value)
            return [*texts, *value]
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


def _ids(ctx: click.Context, param: click.Parameter, text: str) -> list[int]:
    try:
        return [int(id) for id in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"expected token ids with commas, such as 17,42, found {text!r}", ctx, param) from None
