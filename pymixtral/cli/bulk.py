"""`pymixtral generate --prompts`: a file of prompts becomes a file of texts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pymixtral.cli.text import note, write, write_json
from pymixtral.escapes import escaped

if TYPE_CHECKING:
    from pymixtral.bulk.generate import Bulk
    from pymixtral.mixtral import Mixtral


def generate_all(
    model: Mixtral, prompts: Path, output: Path, n_in_flight: int, *, force: bool, as_json: bool, **options: Any
) -> int:
    """Generates the texts of all prompts, and says how it went.

    Args:
        model: generates.
        prompts: the file of prompts.
        output: the file of texts.
        n_in_flight: prompts that the engine has at a time.
        force: begin anew.
        as_json: say it in JSON.
        **options: of Mixtral.generate().

    Returns:
        The exit code.
    """
    from pymixtral.bulk.generate import Bulk
    from pymixtral.errors import InvalidArgumentError

    bulk = Bulk(model, prompts, output, force=force, **options)
    try:
        bulk.check()
    except InvalidArgumentError as error:  # of a line, whose options have the names that they have in Python
        raise click.ClickException(str(error)) from error
    try:
        bulk.run(n_in_flight)
    except KeyboardInterrupt:
        if as_json:
            write_json(_plain(bulk, output))
        else:
            note(f"{bulk.n_done} of {bulk.n_prompts} prompts are done; the same command goes on from there.")
        return 130
    if as_json:
        write_json(_plain(bulk, output))
    else:
        write("\n".join(_lines(bulk, output)))
    return 1 if bulk.n_failed else 0


def _plain(bulk: Bulk, output: Path) -> dict[str, Any]:
    return {
        "output": str(output),
        "prompts": bulk.n_prompts,
        "done": bulk.n_done,
        "resumed": bulk.n_resumed,
        "failed": bulk.n_failed,
        "generated_tokens": bulk.n_tokens,
        "seconds": bulk.seconds,
    }


def _lines(bulk: Bulk, output: Path) -> list[str]:
    before = f", {bulk.n_resumed} of them from before" if bulk.n_resumed else ""
    lines = [f"{escaped(str(output))}: {bulk.n_done} prompts{before}"]
    if bulk.n_tokens:
        lines.append(
            f"generated: {bulk.n_tokens} tokens in {bulk.seconds:.1f} s, {bulk.n_tokens / bulk.seconds:.1f} tokens/s"
        )
    if bulk.n_failed:
        lines.append(f"without a text: {bulk.n_failed} of them, whose records say why")
    return lines
