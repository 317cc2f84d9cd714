"""The command `pymixtral bench`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pymixtral.cli.model import model_path, opened
from pymixtral.cli.options import adapter_option, json_option, model_option, threads_option, tokens_option
from pymixtral.cli.text import table, wrap, write, write_json
from pymixtral.escapes import escaped

if TYPE_CHECKING:
    from pymixtral.evaluation.time_line import TimeLine


@click.command(
    epilog="""\b
Examples:
  pymixtral bench
  pymixtral bench -m mixtral-q4_0.gguf --prompt-tokens 2048 -n 64 -r 3
  pymixtral bench -m mixtral-q4_0.gguf --trace
  pymixtral bench -m mixtral-q4_0.gguf --adapter tales-lora.gguf
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
@click.option("--trace", "time_line", is_flag=True, help="Show where the time of a written token goes.")
@threads_option
@adapter_option
@json_option
@click.pass_context
def bench(
    ctx: click.Context,
    /,
    model: Path | None,
    n_prompt: int,
    n_generate: int,
    repetitions: int,
    time_line: bool,
    n_threads: int | None,
    adapter: dict[str, Any],
    as_json: bool,
) -> None:
    """Measure the speed of a model on this machine.

    The tokens are random. A prompt is read at once, then tokens are written one by one. Reading a
    prompt is limited by int8 multiplications, writing by the bandwidth of memory. Both limits are
    measured in the same run, and beside each speed is shown how much of its limit it reaches. What an
    adapter computes takes time, but does not count as work. Run it on an idle machine.
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
    with opened(path, n_ctx=n_prompt + n_generate, n_threads=n_threads, **adapter) as engine:
        result = measure(engine, n_prompt=n_prompt, n_generate=n_generate, repetitions=repetitions, time_line=time_line)
    if as_json:
        write_json(asdict(result))
        return
    kernels = f"{result.isa}, prefetch {result.prefetch}"
    name = escaped(Path(result.model).name)
    write(f"{name}: {result.n_threads} threads, {kernels}, median of {result.repetitions}")
    if result.adapters:
        named = " and ".join(f"{escaped(name)} times {scale:g}" for name, scale in result.adapters.items())
        write(wrap(f"with the adapter{'s' if len(result.adapters) > 1 else ''} {named}"))
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
    if result.time_line:
        write("\n".join(["", *_time_line(result.time_line)]))


_NAMES = {"qkv": "queries, keys, values", "rope": "rotation, cache", "gate_up": "gate, up", "other": "between (C)"}


def _time_line(line: TimeLine) -> list[str]:
    """A table of the parts of a token's time, and what it lacks, in words."""
    rows = [["a token", "us", "of it", "GB/s", "of limit", "alone", "late", "waiting"]]
    parts = sorted(line.parts, key=lambda one: one.name == "other")  # which comes last
    for one in parts:
        read = [f"{one.bandwidth:.1f}", f"{one.limit:.0%}"] if one.n_bytes else ["", ""]
        lost = [f"{part:.1%}" if part else "" for part in (one.alone, one.late, one.waiting)]
        rows.append([_NAMES.get(one.name, one.name), f"{one.microseconds:.1f}", f"{one.part:.1%}", *read, *lost])
    loss = line.loss
    rows.append(["Python", f"{loss.python * line.microseconds:.1f}", f"{loss.python:.1%}", "", "", "", "", ""])
    read = [f"{line.limit * line.read_bandwidth:.1f}", f"{line.limit:.0%}"]
    lost = [f"{part:.1%}" for part in (sum(one.alone for one in parts), loss.late, loss.waiting)]
    rows.append(["sum", f"{line.microseconds:.1f}", "100.0%", *read, *lost])
    gigabytes, bandwidth = line.n_bytes / 1e9, line.read_bandwidth
    causes = {
        "weights are read more slowly": loss.reading,
        "one thread works alone": loss.alone,
        "threads share work without weights": loss.other,
        "threads come late": loss.late,
        "threads wait for the last one": loss.waiting,
        "Python": loss.python,
    }
    named = ", ".join(f"{part:.1%} {name}" for name, part in sorted(causes.items(), key=lambda one: -one[1]))
    text = f"Reading {gigabytes:.4g} GB at {bandwidth:.1f} GB/s takes {line.limit:.1%} of that. The others: {named}."
    return [*table(rows, "<>>>>>>>"), "", wrap(text)]
