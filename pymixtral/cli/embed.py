"""The command `pymixtral embed`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pymixtral.cli.choices import POOLINGS
from pymixtral.cli.model import opened
from pymixtral.cli.options import (
    context_option,
    force_option,
    json_option,
    model_option,
    opening_options,
    optional_output_option,
    prompts_options,
)
from pymixtral.cli.text import read_text, shorten, table, write, write_json
from pymixtral.escapes import escaped

if TYPE_CHECKING:
    from pymixtral.arrays import F32
    from pymixtral.mixtral import Mixtral

_TEXTS = 64
"""Texts that the engine has at a time."""


@click.command(
    epilog="""\b
Examples:
  pymixtral embed -p "The king had a daughter." -p "The queen had a son."
  pymixtral embed -m mixtral-q4_0.gguf -f book.txt --normalize -o book.npy
  pymixtral embed -p "The king" --pooling last --json > king.json"""
)
@model_option
@prompts_options
@click.option(
    "--pooling",
    type=click.Choice(POOLINGS),
    default="mean",
    show_default=True,
    help="The mean over a text's tokens, or the last one.",
)
@click.option("--normalize", is_flag=True, help="Make each vector as long as 1.")
@optional_output_option
@force_option
@context_option(runs=True)
@opening_options(kv_type=False)
@json_option
@click.pass_context
def embed(
    ctx: click.Context,
    /,
    model: Path | None,
    texts: tuple[str, ...],
    file: Path | None,
    pooling: str,
    normalize: bool,
    output: Path | None,
    force: bool,
    opening: dict[str, Any],
    as_json: bool,
) -> None:
    """Turn texts into vectors.

    A text is given with -p, or texts are the lines of a file with -f or of standard input, in
    UTF-8. An empty line among them is an empty text. The vector of a text is the mean of the hidden states of
    its tokens after the last norm, or the last one.

    With -o the vectors go to a file of NumPy, float32 with a row for each text; with --json to
    standard output. Without them each line of the output has the length of a vector, its first
    numbers, and its text.
    """
    if texts and file:
        raise click.UsageError("expected -p or -f, found both", ctx)
    if force and not output:
        raise click.UsageError("expected --force with -o, found it alone", ctx)
    lines = list(texts) or _lines(ctx, file)
    from pymixtral.files.atomic import check_dest

    if output:
        check_dest(output, [path for path in (file, model) if path], force)
    with opened(
        model,
        **opening,
    ) as engine:
        vectors = _vectors(engine, lines, pooling, normalize)
    if output:
        _save(vectors, output, force)
    if as_json:
        found = {"output": str(output)} if output else {"embeddings": vectors.tolist()}
        write_json({"pooling": pooling, "texts": len(lines), "dimensions": vectors.shape[1]} | found)
    elif output:
        write(f"{escaped(str(output))}: {len(lines)} vectors of {vectors.shape[1]} numbers")
    else:
        write("\n".join(_rows(lines, vectors)))


def _lines(ctx: click.Context, file: Path | None) -> list[str]:
    text = read_text(ctx, file, "-p TEXT, -f FILE")
    if not text:
        place = escaped(str(file)) if file else "standard input"
        raise click.UsageError(f"expected a text in each line of {place}, found none: -p '' gives an empty one", ctx)
    return text.split("\n")


def _vectors(model: Mixtral, texts: Sequence[str], pooling: str, normalize: bool) -> F32:
    import numpy as np

    from pymixtral.progress import progress_bar

    parts = []
    with progress_bar(total=len(texts), unit=" texts", shown=True) as bar:
        for i in range(0, len(texts), _TEXTS):
            some = texts[i : i + _TEXTS]
            parts.append(model.embed(some, pooling=pooling, normalize=normalize))
            bar.update(len(some))
    return np.concatenate(parts)


def _save(vectors: F32, output: Path, force: bool) -> None:
    import numpy as np

    from pymixtral.files.atomic import replacing

    with replacing(output, force=force) as temporary, temporary.open("wb") as file:
        np.save(file, vectors, allow_pickle=False)


def _rows(texts: Sequence[str], vectors: F32) -> list[str]:
    import numpy as np

    rows = [["length", "first numbers", "", "", "text"]]
    for text, vector in zip(texts, vectors, strict=True):
        numbers = [f"{number:.3f}" for number in vector[:3]]
        rows.append([f"{np.linalg.norm(vector):.3f}", *numbers, shorten(repr(text), 38)])
    return table(rows, ">>>><")
