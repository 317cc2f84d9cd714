"""The command `pymixtral calibrate`."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pymixtral.cli.model import is_named, model_path, opened
from pymixtral.cli.options import (
    context_option,
    files_option,
    force_option,
    json_option,
    model_option,
    output_option,
    path_type,
    threads_option,
    windows_option,
)
from pymixtral.cli.text import note, read_text, wrap, write, write_json
from pymixtral.escapes import escaped

if TYPE_CHECKING:
    from pymixtral.files.atomic import Identity
    from pymixtral.files.importance import ImportanceMatrix


@click.command(
    epilog="""\b
Examples:
  pymixtral calibrate -m mixtral-q8_0.gguf -f book.txt -o imatrix.gguf
  pymixtral calibrate -m mixtral-q8_0.gguf -f prose.txt -f code.txt \\
    --windows 200 -o imatrix.gguf
  pymixtral calibrate -m mixtral-q8_0.gguf -f book.txt -o imatrix.gguf \\
    --resume
  pymixtral calibrate --merge prose.gguf --merge old.dat -o imatrix.gguf

\b
Then:
  pymixtral quantize Mixtral-8x7B-v0.1 mixtral-q4_k_m.gguf --type q4_k_m \\
    --imatrix imatrix.gguf""",
)
@model_option
@files_option
@output_option
@context_option(lowest=3, default=512)
@windows_option
@click.option(
    "--merge",
    "merged",
    type=path_type(),
    metavar="FILE",
    multiple=True,
    help="Add an importance matrix, a gguf or dat file; may be repeated.",
)
@click.option(
    "--resume", is_flag=True, help="Go on where a calibration with the same texts and output was interrupted."
)
@threads_option
@force_option
@json_option
@click.pass_context
def calibrate(
    ctx: click.Context,
    /,
    model: Path | None,
    files: tuple[Path, ...],
    output: Path,
    n_ctx: int,
    n_windows: int | None,
    merged: tuple[Path, ...],
    resume: bool,
    n_threads: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """Measure which weights matter, for quantize --imatrix.

    The texts are cut into windows, which the model reads one by one. Take a model in the best type
    that fits this machine, and texts like those that it will be used for; 100 windows of 512 tokens
    go a long way. The output is an importance matrix: how large the inputs of each weight matrix
    were, column by column, for each expert by itself. Experts that saw fewer than 256 tokens are
    named.

    Ctrl-C keeps the windows that are complete. --merge alone adds up matrices that were measured
    before. llama.cpp's quantizer can use the output, too.
    """
    if not (files or merged) or (is_named(ctx) and not files):
        raise click.UsageError(
            "expected a model (-m) and a text (-f), or importance matrices (--merge), or all of these", ctx
        )
    if resume and merged:
        raise click.UsageError("expected --resume or --merge, found both: merge when the calibration is complete", ctx)
    from pymixtral.errors import OutputError
    from pymixtral.files import imatrix
    from pymixtral.files.atomic import Identity, check_dest
    from pymixtral.files.gguf import GGUFFile
    from pymixtral.files.importance import merge

    check_dest(output, [*files, *merged], force=True)
    if os.path.lexists(output) and not (force or resume):
        raise OutputError(
            f"{output}: expected a new file, found one that exists: choose another name, --resume it, "
            "or replace it with --force"
        )
    target = _Output(output, force, Identity.of(output) if resume else None)
    parts = [imatrix.read(path) for path in merged]
    if files:
        path = model_path(model)
        with GGUFFile(path) as file:
            check_dest(output, file.paths, force=True)  # all shards
        texts = [(text.name, read_text(ctx, text)) for text in files]
        begun = imatrix.read(output) if resume and output.exists() else None
        parts.insert(0, _measure(path, texts, target, n_ctx, n_windows, begun, n_threads, parts))
    result = merge(parts) if len(parts) > 1 else parts[0]
    target.write(result)
    if target.path != output:
        raise OutputError(
            f"{output}: expected a new file, found one that appeared meanwhile: it was kept, and the "
            f"result is {target.path}"
        )
    if as_json:
        write_json(_plain(result, output))
    else:
        write("\n".join(_lines(result, output)))


class _Output:
    """The file of the result, which is written under way, too.

    It replaces what it wrote itself, what --resume read, and, with --force, what else is there.
    What somebody else put in its place meanwhile it keeps: the result then goes to a new name.
    """

    def __init__(self, path: Path, force: bool, own: Identity | None) -> None:
        self.path = self._asked = path
        self._force, self._own = force, own

    def write(self, matrix: ImportanceMatrix) -> None:
        from pymixtral.errors import OutputError
        from pymixtral.files import imatrix

        for n in itertools.count(2):
            try:
                self._own = imatrix.write(matrix, self.path, force=self._force, own=self._own)
            except OutputError as error:
                if error.errno != errno.EEXIST:
                    raise
                self.path = self._asked.with_name(f"{self._asked.stem}-{n}{self._asked.suffix}")
                self._own = None
            else:
                return


def _measure(
    model: Path,
    texts: list[tuple[str, str]],
    target: _Output,
    n_ctx: int,
    n_windows: int | None,
    begun: ImportanceMatrix | None,
    n_threads: int | None,
    others: Sequence[ImportanceMatrix],
) -> ImportanceMatrix:
    """Runs the texts. Windows that are complete are written from time to time and when interrupted,
    with the others added.
    """
    from pymixtral.evaluation.calibration import calibrate as measure
    from pymixtral.files.importance import merge

    def save(state: ImportanceMatrix) -> None:
        target.write(merge([state, *others]) if others else state)
        more = "with what is merged; these cannot be resumed" if others else "--resume goes on from here"
        note(f"{target.path}: {state.n_windows} windows so far; {more}")

    with opened(model, n_ctx=n_ctx, n_threads=n_threads) as engine:
        return measure(engine, texts, n_ctx=n_ctx, n_windows=n_windows, resume=begun, save=save)


def _plain(result: ImportanceMatrix, output: Path) -> dict[str, Any]:
    return {
        "output": str(output),
        "tensors": len(result.entries),
        "windows": result.n_windows,
        "context": result.n_ctx,
        "hardly_seen": result.hardly_seen(),
    }


def _lines(result: ImportanceMatrix, output: Path) -> list[str]:
    measured = f"{len(result.entries)} tensors, {result.n_windows} windows of {result.n_ctx} tokens"
    lines = [f"{escaped(str(output))}: {measured}"]
    for layer, experts in result.hardly_seen().items():
        seen = ", ".join(f"{expert} ({n})" for expert, n in experts.items())
        lines.append(wrap(f"{layer}: hardly seen, shrunk towards the layer's mean: expert {seen} tokens", "  "))
    return lines
