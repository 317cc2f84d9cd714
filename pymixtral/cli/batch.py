"""The command `pymixtral batch`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pymixtral.cli.bulk import run_job
from pymixtral.cli.model import opened
from pymixtral.cli.options import (
    context_option,
    force_option,
    json_option,
    model_option,
    opening_options,
    path_type,
    served_adapter_option,
)
from pymixtral.cli.packages import check_packages


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
@served_adapter_option
@opening_options(shared=True, adapted=False)
@json_option
@click.pass_context
def batch(
    ctx: click.Context,
    requests: Path,
    output: Path,
    model: Path | None,
    force: bool,
    adapter: dict[str, Any],
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

    with opened(model, **opening, adapters=adapter["adapters"], chats=True) as opened_model:
        job = Batch(opened_model, requests, output, scales=adapter["adapter"], force=force)
        code = run_job(job, output, 2 * opening["max_batch"], as_json=as_json, failed="refused")
    ctx.exit(code)
