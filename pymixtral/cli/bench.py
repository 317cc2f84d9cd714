"""The command `pymixtral bench`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from pymixtral.cli.model import model_path, opened
from pymixtral.cli.options import json_option, model_option, threads_option, tokens_option
from pymixtral.cli.text import table, write, write_json
from pymixtral.escapes import escaped


@click.command(
    epilog="""\b
Examples:
  pymixtral bench
  pymixtral bench -m mixtral-q4_0.gguf --prompt-tokens 2048 -n 64 -r 3
  pymixtral bench -m mixtral-q4_0.gguf -t 8 -r 1 --json > speed.json""",
)
@model_option
@click.option(
    "--prompt-tokens",
    "n_prompt",
    type=click.IntRange(min=1),
    metavar="N",
    default=512,
    show_default=True,
    help="Tokens of the prompt.",
)
@tokens_option("n_generate", 1, default=128, show_default=True, help="Tokens to write.")
@click.option(
    "-r",
    "--repetitions",
    type=click.IntRange(1, 1000),
    metavar="N",
    default=5,
    show_default=True,
    help="Measure N times, and print the medians.",
)
@threads_option
@json_option
@click.pass_context
def bench(
    ctx: click.Context,
    /,
    model: Path | None,
    n_prompt: int,
    n_generate: int,
    repetitions: int,
    n_threads: int | None,
    as_json: bool,
) -> None:
    """Measure the speed of a model on this machine.

    The tokens are random. A prompt is read at once, then tokens are written one by one. Reading a
    prompt is limited by int8 multiplications, writing by the bandwidth of memory. Both limits are
    measured in the same run, and beside each speed is shown how much of its limit it reaches. Run
    it on an idle machine.
    """
    from pymixtral.evaluation.bench import bench as measure
    from pymixtral.files.gguf import GGUFFile
    from pymixtral.model.config import ModelConfig

    path = model_path(model)
    with GGUFFile(path) as file:
        longest = ModelConfig.from_gguf(file).n_ctx_train
    if n_prompt + n_generate > longest:
        raise click.UsageError(
            f"expected --prompt-tokens and -n of at most {longest} tokens together, the model's "
            f"context, found {n_prompt} and {n_generate}",
            ctx,
        )
    with opened(path, n_ctx=n_prompt + n_generate, n_threads=n_threads) as engine:
        result = measure(engine, n_prompt=n_prompt, n_generate=n_generate, repetitions=repetitions)
    if as_json:
        write_json(asdict(result))
        return
    kernels = f"{result.isa}, prefetch {result.prefetch}"
    name = escaped(Path(result.model).name)
    write(f"{name}: {result.n_threads} threads, {kernels}, median of {result.repetitions}")
    rows = [
        ["", "tokens/s", "", "of the machine", "which gives"],
        [
            f"prompt {result.n_prompt}",
            f"{result.prompt_rate:.1f}",
            f"{result.prompt_gmacs:.0f} GMAC/s",
            f"{result.prompt_limit:.0%}",
            f"{result.int8_gmacs:.0f} GMAC/s int8",
        ],
        [
            f"generate {result.n_generate}",
            f"{result.generation_rate:.1f}",
            f"{result.generation_bandwidth:.1f} GB/s",
            f"{result.generation_limit:.0%}",
            f"{result.read_bandwidth:.1f} GB/s read",
        ],
    ]
    write("\n".join(table(rows, "<>>>>")))
