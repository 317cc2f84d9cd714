"""The command `pymixtral prune`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pymixtral.cli.choices import CRITERIA
from pymixtral.cli.options import (
    context_option,
    force_option,
    json_option,
    path_type,
    size,
    threads_option,
    windows_option,
)
from pymixtral.cli.text import read_text, table, wrap, write, write_json

if TYPE_CHECKING:
    from pymixtral.evaluation.pruning import Pruning


@click.command(
    epilog="""\b
Examples:
  pymixtral prune mixtral-q8_0.gguf mixtral-6x7b.gguf --experts 6 \\
    --calibration book.txt
  pymixtral prune mixtral-q8_0.gguf mixtral-4x7b.gguf --experts 4 \\
    --calibration prose.txt --calibration code.txt --windows 200

\b
What did it cost?
  pymixtral perplexity -m mixtral-q8_0.gguf -f book.txt --windows 50 \\
    --save-base book.base
  pymixtral perplexity -m mixtral-6x7b.gguf -f book.txt --windows 50 \\
    --kl-against book.base""",
)
@click.argument("source", type=path_type())
@click.argument("dest", type=path_type())
@click.option(
    "--experts", "n_experts", type=click.IntRange(min=2), metavar="N", required=True, help="Experts that stay."
)
@click.option(
    "--calibration",
    "files",
    type=path_type(exists=True),
    metavar="FILE",
    multiple=True,
    help="A text that shows what the model is for; may be repeated.",
)
@click.option(
    "--criterion",
    type=click.Choice(CRITERIA),
    default="reap",
    show_default=True,
    help="Keep the experts that add most, or that the router chooses most often, or any.",
)
@click.option("--seed", type=click.IntRange(0, (1 << 64) - 1), metavar="N", default=0, help="For --criterion random.")
@context_option(lowest=3, default=512)
@windows_option
@click.option(
    "--max-shard-size",
    "max_shard_bytes",
    callback=size,
    metavar="SIZE",
    help="Begin a new file at so many bytes of weights, such as 4G.  [default: one file]",
)
@threads_option
@force_option
@json_option
@click.pass_context
def prune(
    ctx: click.Context,
    /,
    source: Path,
    dest: Path,
    n_experts: int,
    files: tuple[Path, ...],
    criterion: str,
    seed: int,
    n_ctx: int,
    n_windows: int | None,
    max_shard_bytes: int | None,
    n_threads: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write a model without the experts that it misses least.

    SOURCE is a GGUF file, or any file of a model in several. DEST is the file to write. The model
    reads the texts, which should be like those that it will be used for; 100 windows of 512 tokens go
    a long way. Of each layer it keeps the N experts with the highest saliency, the mean over their
    tokens of weight times norm of the output (REAP). These may be others in each layer. Weights are
    copied and not quantized again, and what remains is an ordinary model file.

    The table has the saliency of each expert, in brackets where it was dropped.
    """
    if not files and criterion != "random":
        raise click.UsageError("expected a text (--calibration FILE), found none", ctx)
    from pymixtral.evaluation.pruning import prune as run
    from pymixtral.files.atomic import check_dest

    check_dest(dest, files, force=True)
    result = run(
        source,
        dest,
        n_experts=n_experts,
        texts=[(file.name, read_text(ctx, file)) for file in files],
        criterion=criterion,
        seed=seed,
        n_ctx=n_ctx,
        n_windows=n_windows,
        n_threads=n_threads,
        max_shard_bytes=max_shard_bytes,
        force=force,
    )
    if as_json:
        write_json(_plain(result))
    else:
        write("\n".join(_lines(result)))


def _plain(result: Pruning) -> dict[str, Any]:
    layers = [
        {
            "kept": kept,
            "dropped": [e for e in range(len(scores)) if e not in kept],
            "scores": scores.tolist(),
            **({"tokens": result.use.n_tokens[i].tolist()} if result.use else {}),
        }
        for i, (kept, scores) in enumerate(zip(result.kept, result.scores, strict=True))
    ]
    return {"files": [str(file) for file in result.files], "criterion": result.criterion, "layers": layers}


def _lines(result: Pruning) -> list[str]:
    n_experts = result.scores.shape[1]
    rows = [["layer", *map(str, range(n_experts))]]
    for i, (kept, scores) in enumerate(zip(result.kept, result.scores.tolist(), strict=True)):
        cells = [f"{score:#.3g} " if e in kept else f"({score:#.3g})" for e, score in enumerate(scores)]
        rows.append([str(i), *cells])
    lines = table(rows, ">" * (n_experts + 1))
    lines.append("")
    if result.use and (unseen := [(i, e) for i, e in zip(*(result.use.n_tokens == 0).nonzero(), strict=True)]):
        names = ", ".join(f"{i}.{e}" for i, e in unseen)
        lines.append(wrap(f"No token of the texts went to these experts (layer.expert): {names}."))
    named = ", ".join(str(file) for file in result.files)
    lines.append(f"{named}: {len(result.kept[0])} of {n_experts} experts in each layer, by {result.criterion}")
    return lines
