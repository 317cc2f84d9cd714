"""The command `pymixtral batch`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pymixtral.cli.model import opened
from pymixtral.cli.options import (
    context_option,
    force_option,
    json_option,
    model_option,
    opening_options,
    path_type,
)
from pymixtral.cli.packages import check_packages
from pymixtral.cli.text import note, write, write_json
from pymixtral.errors import InvalidArgumentError
from pymixtral.escapes import escaped

if TYPE_CHECKING:
    from pymixtral.server.batch import Batch


@click.command(
    epilog="""\b
Examples:
  pymixtral batch requests.jsonl answers.jsonl
  pymixtral batch -m mixtral-instruct.gguf requests.jsonl answers.jsonl \\
    --max-batch 32

\b
A line of requests.jsonl is {"custom_id": "1",
"url": "/v1/completions", "body": {"prompt": "Once", "max_tokens": 9}}."""
)
@click.argument("requests", type=path_type(exists=True))
@click.argument("output", type=path_type())
@model_option
@force_option
@context_option(runs=True)
@opening_options(shared=True)
@json_option
@click.pass_context
def batch(
    ctx: click.Context,
    requests: Path,
    output: Path,
    model: Path | None,
    force: bool,
    opening: dict[str, Any],
    as_json: bool,
) -> None:
    """Answer a file of requests, in the form of OpenAI's batches.

    OUTPUT gets a line for each line of REQUESTS, in the same order. The same command goes on where
    an earlier one ended. A request that is refused has a line that says why; the exit code is 1
    then.
    """
    check_packages("server", "fastapi", "prometheus_client")
    from pymixtral.server.batch import Batch

    with opened(
        model,
        **opening,
        chats=True,
    ) as opened_model:
        work = Batch(opened_model, requests, output, force=force)
        try:
            work.check()
        except InvalidArgumentError as error:  # of a line, whose fields are no options
            raise click.ClickException(str(error)) from error
        code = 0
        try:
            work.run(2 * opening["max_batch"])
            code = 1 if work.n_failed else 0
        except KeyboardInterrupt:
            code = 130
            if not as_json:
                note(f"{work.n_done} of {work.n_requests} requests are done; the same command goes on from there.")
        if as_json:
            write_json(_plain(work, output))
        elif code != 130:
            write("\n".join(_lines(work, output)))
    ctx.exit(code)


def _plain(work: Batch, output: Path) -> dict[str, Any]:
    return {
        "output": str(output),
        "requests": work.n_requests,
        "done": work.n_done,
        "resumed": work.n_resumed,
        "failed": work.n_failed,
        "seconds": work.seconds,
    }


def _lines(work: Batch, output: Path) -> list[str]:
    before = f", {work.n_resumed} of them from before" if work.n_resumed else ""
    lines = [f"{escaped(str(output))}: {work.n_done} requests in {work.seconds:.1f} s{before}"]
    if work.n_failed:
        lines.append(f"refused: {work.n_failed} of them, whose answers say why")
    return lines
