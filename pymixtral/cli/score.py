"""The command `pymixtral score`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from pymixtral.cli.model import opened
from pymixtral.cli.options import (
    context_option,
    json_option,
    model_option,
    opening_options,
    prompt_options,
)
from pymixtral.cli.text import read_prompt, shorten, table, write, write_json


@click.command(
    epilog="""\b
Examples:
  pymixtral score -p "The king had a" --continuation " daughter" \\
    --continuation " telephone"
  pymixtral score -m mixtral-q4_0.gguf -f chapter.txt \\
    --continuation " The end." --json"""
)
@model_option
@prompt_options
@click.option(
    "--continuation",
    "continuations",
    metavar="TEXT",
    multiple=True,
    required=True,
    help="A text that may follow; may be repeated.",
)
@context_option(runs=True)
@opening_options()
@json_option
@click.pass_context
def score(
    ctx: click.Context,
    /,
    model: Path | None,
    prompt: str | None,
    file: Path | None,
    continuations: tuple[str, ...],
    opening: dict[str, Any],
    as_json: bool,
) -> None:
    """Say how likely texts are to follow another one.

    The text before them is given with -p, in a file with -f, or on standard input, in UTF-8. One
    newline at the end of a file or of standard input is left out. It is computed once for all
    continuations, which begin where it ends: most of them with a space.

    Each line of the output has the natural logarithm of the probability of a continuation, the mean
    of its tokens', their number, and whether each of them is the most likely one at its place.
    """
    prompt = read_prompt(ctx, prompt, file)
    with opened(
        model,
        **opening,
    ) as engine:
        scores = engine.score(prompt, continuations)
    found = list(zip(continuations, scores, strict=True))
    if as_json:
        write_json(
            [
                {"continuation": text, "per_token": score.logprob / len(score.tokens)} | asdict(score)
                for text, score in found
            ]
        )
        return
    rows = [["logprob", "per token", "tokens", "greedy", "continuation"]]
    for text, score in found:
        n = len(score.tokens)
        greedy = "yes" if score.greedy else "no"
        rows.append([f"{score.logprob:.3f}", f"{score.logprob / n:.3f}", str(n), greedy, shorten(repr(text), 40)])
    write("\n".join(table(rows, ">>><<")))
