"""Files of prompts or requests: how `generate --prompts` and `batch` work them off."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pymixtral.cli.text import note, write, write_json
from pymixtral.errors import InvalidArgumentError
from pymixtral.escapes import escaped

if TYPE_CHECKING:
    from pymixtral.bulk.job import Job


def run_job(
    job: Job[Any], output: Path, n_in_flight: int, *, as_json: bool, failed: str, with_tokens: bool = False
) -> int:
    """Makes all records of a file, and says how it went.

    Args:
        job: the files.
        output: the file of records.
        n_in_flight: lines that the engine has at a time.
        as_json: say it in JSON.
        failed: what became of lines whose record is an error.
        with_tokens: say how many tokens were generated.

    Returns:
        The exit code.
    """
    try:
        job.check()
    except InvalidArgumentError as error:  # of a line, whose names are not those of options
        raise click.ClickException(str(error)) from error
    code = 0
    try:
        job.run(n_in_flight)
        code = 1 if job.n_failed else 0
    except KeyboardInterrupt:
        code = 130
    lines = f"{job.noun}s"
    if as_json:
        counts = {lines: job.n_lines, "done": job.n_done, "resumed": job.n_resumed, "failed": job.n_failed}
        tokens = {"generated_tokens": job.n_tokens} if with_tokens else {}
        write_json({"output": str(output), **counts, **tokens, "seconds": job.seconds})
    elif code == 130:
        note(f"{job.n_done} of {job.n_lines} {lines} are done; the same command goes on from there.")
    else:
        time = "" if with_tokens else f" in {job.seconds:.1f} s"
        before = f", {job.n_resumed} of them from before" if job.n_resumed else ""
        write(f"{escaped(str(output))}: {job.n_done} {lines}{time}{before}")
        if job.n_tokens:
            rate = job.n_tokens / job.seconds
            write(f"generated: {job.n_tokens} tokens in {job.seconds:.1f} s, {rate:.1f} tokens/s")
        if job.n_failed:
            write(f"{failed}: {job.n_failed} of them, whose records say why")
    return code
