"""Which model a command works with: the one that is named, that of PYMIXTRAL_MODEL, or the demo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from pymixtral.cli.text import slow_note

if TYPE_CHECKING:
    from pymixtral.mixtral import Mixtral


def is_named(ctx: click.Context) -> bool:
    """Whether the command line names a model, whatever PYMIXTRAL_MODEL says."""
    return ctx.params.get("subject") is not None or ctx.get_parameter_source("model") is ParameterSource.COMMANDLINE


def same_model(ctx: click.Context, subject: Path | None, model: Path | None) -> Path | None:
    """The model of a command that takes it as MODEL and as -m.

    Raises:
        UsageError: where both are given, and differ.
    """
    if subject and model != subject and ctx.get_parameter_source("model") is ParameterSource.COMMANDLINE:
        raise click.UsageError(f"expected one model, found two: {subject} as MODEL and {model} as -m", ctx)
    return subject or model


def model_path(model: Path | None) -> Path:
    """The file to open, the demo's where there is none; a note on standard error says so."""
    if model:
        return model
    from pymixtral.demo import demo_path

    click.echo("No model named (-m FILE or PYMIXTRAL_MODEL): using the small demo model.", err=True)
    return demo_path()


def opened(model: Path | None, **options: Any) -> Mixtral:
    """The model, ready to use; a note on standard error says if it will be slow. options: those of Mixtral."""
    from pymixtral.mixtral import Mixtral

    engine = Mixtral(model_path(model), **options)
    if engine.slow_types:
        click.echo(f"Note: {slow_note(engine.slow_types)}.", err=True)
    return engine
