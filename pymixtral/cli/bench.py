"""The command `pymixtral bench`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from pymixtral.cli.text import table, write, write_json


@click.command(
    epilog="""\b
Examples:
  pymixtral bench
  pymixtral bench -m mixtral-q4_0.gguf -p 512 -n 128
  pymixtral bench -m mixtral-q4_0.gguf -t 8 --json > speed.json""",
)
@click.option("-m", "--model", type=click.Path(path_type=Path), help="A GGUF file.  [default: the demo model in the package]")
@click.option("-p", "--prompt", type=click.IntRange(min=1), default=512, show_default=True, help="Tokens of the prompt.")
@click.option("-n", "--generate", type=click.IntRange(min=1), default=128, show_default=True, help="Tokens to generate.")
@click.option("-r", "--repetitions", type=click.IntRange(min=1), default=5, show_default=True, help="Medians are of so many.")
@click.option("-t", "--threads", type=click.IntRange(1, 256), help="Threads to use.  [default: one per core]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def bench(
    ctx: click.Context, /, model: Path | None, prompt: int, generate: int, repetitions: int, threads: int | None, as_json: bool
) -> None:
    """Measure the speed of a model here, and how much of the machine it uses.

    Random tokens: a prompt at once, then one by one. The percentages are of the int8 products and of the memory read bandwidth measured
    in the same run: a prompt is bound by the former, generation by the latter. Run it on an idle machine.
    """
    from pymixtral.demo import demo_path
    from pymixtral.evaluation.bench import bench as measure
    from pymixtral.files.gguf import GGUFFile
    from pymixtral.mixtral import Mixtral
    from pymixtral.model.config import ModelConfig

    with GGUFFile(model or demo_path()) as file:
        longest = ModelConfig.from_gguf(file).n_ctx_train
    if prompt + generate > longest:
        raise click.UsageError(
            f"expected -p and -n of at most {longest} tokens together, the model's context, found {prompt} and {generate}", ctx
        )
    with Mixtral(model, n_ctx=prompt + generate, n_threads=threads) as engine:
        result = measure(engine, n_prompt=prompt, n_generate=generate, repetitions=repetitions)
    if as_json:
        write_json(asdict(result))
        return
    write(f"{Path(result.model).name}: {result.n_threads} threads, {result.isa}, median of {result.repetitions}")
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
