"""The command `pymixtral calibrate`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pymixtral.cli.text import read_text, wrap, write

if TYPE_CHECKING:
    from pymixtral.files.importance import ImportanceMatrix


@click.command(
    epilog="""\b
Examples:
  pymixtral calibrate mixtral-q8_0.gguf -f book.txt -o imatrix.gguf
  pymixtral calibrate mixtral-q8_0.gguf -f prose.txt -f code.txt -n 200 \\
    -o imatrix.gguf
  pymixtral calibrate mixtral-q8_0.gguf -f book.txt -o imatrix.gguf --resume
  pymixtral calibrate --merge prose.gguf --merge old.dat -o imatrix.gguf

\b
Then:
  pymixtral quantize Mixtral-8x7B-v0.1 mixtral-q4_k_m.gguf --type q4_k_m \\
    --imatrix imatrix.gguf""",
)
@click.argument("model", type=click.Path(path_type=Path), required=False)
@click.option("-f", "--file", "files", type=click.Path(exists=True, dir_okay=False, path_type=Path), multiple=True, help="A text, UTF-8.")
@click.option("--merge", "merged", type=click.Path(path_type=Path), multiple=True, help="An importance matrix, gguf or dat, to add.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The importance matrix to write, in gguf form; required.")
@click.option("-c", "--context", type=click.IntRange(min=3), default=512, show_default=True, help="Tokens of a window.")
@click.option("-n", "--windows", type=click.IntRange(min=1), help="Only the first N windows.  [default: all texts]")
@click.option("--resume", is_flag=True, help="Go on with OUTPUT where an interrupted calibration with the same texts ended.")
@click.option("--force", is_flag=True, help="Replace OUTPUT if it exists.")
@click.option("-t", "--threads", type=click.IntRange(1, 256), help="Threads to use.  [default: one per core]")
@click.pass_context
def calibrate(
    ctx: click.Context,
    /,
    model: Path | None,
    files: tuple[Path, ...],
    merged: tuple[Path, ...],
    output: Path | None,
    context: int,
    windows: int | None,
    resume: bool,
    force: bool,
    threads: int | None,
) -> None:
    """Measure which weights matter, for quantize --imatrix.

    Runs texts through MODEL, a GGUF file of the best type that fits the machine, and writes how large the inputs of each matrix and of
    each expert were, column by column. Texts should resemble what the model will be used for; 100 windows of 512 tokens go a long way.
    Experts that saw fewer than 256 tokens are named; the quantizer shrinks what they saw towards the layer's mean.

    -f and --merge may be repeated and combined. Ctrl-C keeps the windows that are complete; with --merge they are added, and cannot be
    resumed. llama.cpp's quantizer reads the file too.
    """
    if (model is None) == bool(files) or not (files or merged):
        raise click.UsageError("expected a MODEL and a text (-f), or importance matrices (--merge) alone, or all of these", ctx)
    if output is None:
        raise click.UsageError("expected -o OUTPUT, the importance matrix to write", ctx)
    if resume and merged:
        raise click.UsageError("expected --resume or --merge, found both: merge when the calibration is complete", ctx)
    from pymixtral.errors import InvalidArgumentError
    from pymixtral.files import imatrix
    from pymixtral.files.atomic import check_dest
    from pymixtral.files.gguf import GGUFFile
    from pymixtral.files.importance import merge

    check_dest(output, [*([model] if model else []), *files, *merged], force=True)
    if os.path.lexists(output) and not (force or resume):
        raise InvalidArgumentError(f"{output} exists: choose another name, --resume it or replace it with --force")
    parts = [imatrix.read(path) for path in merged]
    if model:
        with GGUFFile(model) as file:
            check_dest(output, file.paths, force=True)  # all shards
        texts = [(path.name, read_text(ctx, path)) for path in files]
        begun = imatrix.read(output) if resume and output.exists() else None
        parts.insert(0, _measure(model, texts, output, context, windows, begun, threads, parts))
    result = merge(parts) if len(parts) > 1 else parts[0]
    imatrix.write(result, output)
    write("\n".join(_lines(result, output)))


def _measure(
    model: Path,
    texts: list[tuple[str, str]],
    output: Path,
    context: int,
    windows: int | None,
    begun: ImportanceMatrix | None,
    threads: int | None,
    others: Sequence[ImportanceMatrix],
) -> ImportanceMatrix:
    """What there is is written to `output` meanwhile, and when interrupted, with the others added."""
    from pymixtral.evaluation.calibration import calibrate as measure
    from pymixtral.files import imatrix
    from pymixtral.files.importance import merge
    from pymixtral.mixtral import Mixtral

    def save(state: ImportanceMatrix) -> None:
        imatrix.write(merge([state, *others]) if others else state, output)
        more = "with what is merged; these cannot be resumed" if others else "--resume goes on from here"
        click.echo(f"{output}: {state.n_windows} windows so far; {more}", err=True)

    with Mixtral(model, n_ctx=context, n_threads=threads) as engine:
        return measure(engine, texts, n_ctx=context, n_windows=windows, resume=begun, save=save)


def _lines(result: ImportanceMatrix, output: Path) -> list[str]:
    lines = [f"{output}: {len(result.entries)} tensors, {result.n_windows} windows of {result.n_ctx} tokens"]
    for layer, experts in result.hardly_seen().items():
        seen = ", ".join(f"{expert} ({n})" for expert, n in experts.items())
        lines.append(wrap(f"{layer}: hardly seen, shrunk towards the layer's mean: expert {seen} tokens", "  "))
    return lines
