"""The options that say what a generated text has to match."""

from __future__ import annotations

from typing import Any

import click

from pymixtral.cli.options import Function, path_type
from pymixtral.cli.text import read_text


def structured_options(function: Function) -> Function:
    """Adds them, as the parameters that form_of() reads."""
    for option in reversed(
        [
            click.option(
                "--json-schema", type=path_type(exists=True), metavar="FILE", help="Write JSON of this schema."
            ),
            click.option("--json-object", is_flag=True, help="Write a JSON object."),
            click.option("--regex", metavar="TEXT", help="Write what this regular expression matches."),
            click.option("--choice", metavar="TEXT", multiple=True, help="Write one of these; may be repeated."),
            click.option(
                "--lark", type=path_type(exists=True), metavar="FILE", help="Write what this grammar derives."
            ),
        ]
    ):
        function = option(function)
    return function


def form_of(ctx: click.Context, values: dict[str, Any]) -> dict[str, Any]:
    """Takes the values of the options out of a command's, and makes them Python's arguments.

    Raises:
        UsageError: for several of them.
        InvalidArgumentError: for a file that is not UTF-8, and what no grammar can be.
    """
    from pymixtral.sampling.grammar import NAMES, grammar_of

    form = {name: None if (value := values.pop(name)) in (False, ()) else value for name in NAMES}
    given = [f"--{name.replace('_', '-')}" for name, value in form.items() if value is not None]
    if len(given) > 1:
        raise click.UsageError(f"expected one of {' and '.join(given)}, found all of them", ctx)
    for name in ("json_schema", "lark"):
        if form[name] is not None:
            form[name] = read_text(ctx, form[name])
    grammar_of(form)
    return form
