"""What a token costs, by the weights that it passes: Mixtral 8x7B with 1 to 8 experts used, beside
dense models that have the weights that a token passes (12.9B) and all weights (46.7B).

    python benchmarks/active_parameters.py --layers 2 /var/tmp
    python benchmarks/active_parameters.py --layers 4 --type q4_k_m --rounds 5 /var/tmp --json

The three models, of random weights, have the width of Mixtral 8x7B in each of a few layers, and its
vocabulary; a dense one has a feed-forward part as wide as 2 or 8 experts. They are written to the
folder, unless they are there. Settings take turns within a round, and the figures are medians over
the rounds. The first columns are the weights of all 32 layers, all of them and those that a token
passes. A cost is in seconds over those with two experts; beside it stand the multiply-accumulates of
a token of a prompt, which skips the last layer's experts, and the bytes that a generated token reads,
likewise: the nearer, the better cost follows active parameters.
"""

from __future__ import annotations

import json
import statistics
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import synthetic

from pymixtral import Mixtral, ModelConfig
from pymixtral.evaluation.bench import Bench, bench
from pymixtral.inspection.inventory import Inventory
from pymixtral.inspection.published import MODELS

MIXTURE = MODELS["8x7b"]
USED = range(1, MIXTURE.n_experts + 1)


def dense(name: str, n_experts: int) -> ModelConfig:
    """A dense model with the weights of so many experts in each layer."""
    return replace(MIXTURE, name=name, n_experts=1, n_experts_used=1, ffn=n_experts * MIXTURE.ffn)


DENSE = [dense("dense 12.9B", 2), dense("dense 46.7B", 8)]


@dataclass(frozen=True)
class Row:
    """A setting. Rates are tokens/s; costs are seconds over those with two experts, and so are the
    bytes that a generated token reads and the multiply-accumulates of one of a prompt.
    """

    name: str
    whole: float
    whole_active: float
    prompt_rate: float
    generation_rate: float
    prompt_cost: float
    prompt_work: float
    generation_cost: float
    generation_bytes: float
    generation_bandwidth: float


def write_models(folder: Path, layers: int, kind: str) -> dict[str, Path]:
    paths = {}
    for model in (MIXTURE, *DENSE):
        path = folder / f"{model.name.replace(' ', '-')}-{layers}-{kind}.gguf"
        if not path.exists():
            click.echo(f"Writing {path}", err=True)
            synthetic.write(path, replace(model, n_layers=layers), kind, seed=0)
        paths[model.name] = path
    return paths


def measure(paths: dict[str, Path], rounds: int, n_prompt: int, n_generate: int, threads: int | None) -> list[Row]:
    settings = [(f"8x7B, {n} used", replace(MIXTURE, n_experts_used=n), paths[MIXTURE.name]) for n in USED]
    settings += [(model.name, model, paths[model.name]) for model in DENSE]
    with ExitStack() as stack:
        opened = [
            stack.enter_context(
                Mixtral(
                    path,
                    n_ctx=n_prompt + n_generate,
                    n_threads=threads,
                    max_batch=1,
                    experts_used=config.n_experts_used if config.n_experts > 1 else None,
                )
            )
            for _, config, path in settings
        ]
        samples: list[list[Bench]] = [[] for _ in settings]
        for i in range(rounds):
            for sample, model in zip(samples, opened, strict=True):
                sample.append(bench(model, n_prompt=n_prompt, n_generate=n_generate, repetitions=1, progress=False))
            click.echo(f"Round {i + 1} of {rounds}", err=True)
        rates = [
            (
                statistics.median(one.prompt_rate for one in sample),
                statistics.median(one.generation_rate for one in sample),
            )
            for sample in samples
        ]
        prompt, generation = rates[1]
        work, read = opened[1].prompt_weights, opened[1].active_bytes
        rows = []
        for (name, config, _), model, (prompt_rate, generation_rate) in zip(settings, opened, rates, strict=True):
            inventory = Inventory.of_model(config)
            rows.append(
                Row(
                    name=name,
                    whole=inventory.n_weights / 1e9,
                    whole_active=inventory.active_weights / 1e9,
                    prompt_rate=prompt_rate,
                    generation_rate=generation_rate,
                    prompt_cost=prompt / prompt_rate,
                    prompt_work=model.prompt_weights / work,
                    generation_cost=generation / generation_rate,
                    generation_bytes=model.active_bytes / read,
                    generation_bandwidth=generation_rate * model.active_bytes / 1e9,
                )
            )
    return rows


def table(rows: list[Row]) -> str:
    lines = [
        "| model | whole, 10^9 | a token's | prompt, tokens/s | cost | work | generated, tokens/s | cost | bytes "
        "| GB/s |",
        "| --- |" + " --- |" * 9,
    ]
    for row in rows:
        lines.append(
            f"| {row.name} | {row.whole:.1f} | {row.whole_active:.1f} | {row.prompt_rate:.1f} | {row.prompt_cost:.2f} "
            f"| {row.prompt_work:.2f} | {row.generation_rate:.2f} | {row.generation_cost:.2f} "
            f"| {row.generation_bytes:.2f} | {row.generation_bandwidth:.1f} |"
        )
    return "\n".join(lines)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option("--layers", type=click.IntRange(2, 32), default=4, show_default=True, help="Decoder layers.")
@click.option("--type", "kind", type=click.Choice(synthetic.TYPES), default="q4_0", show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--prompt-tokens", type=click.IntRange(1), default=128, show_default=True)
@click.option("-n", "--max-tokens", type=click.IntRange(1), default=32, show_default=True)
@click.option("-t", "--threads", type=click.IntRange(1, 256))
@click.option("--json", "as_json", is_flag=True)
def main(
    folder: Path,
    layers: int,
    kind: str,
    rounds: int,
    prompt_tokens: int,
    max_tokens: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure in FOLDER, where the models are written: 1.9 GB for each layer in q4_0."""
    rows = measure(write_models(folder, layers, kind), rounds, prompt_tokens, max_tokens, threads)
    click.echo(json.dumps([asdict(row) for row in rows], indent=2) if as_json else table(rows))


if __name__ == "__main__":
    main()
