"""The command `pymixtral perplexity`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pymixtral.cli.model import opened
from pymixtral.cli.options import (
    context_option,
    file_option,
    json_option,
    model_option,
    opening_options,
    path_type,
    windows_option,
)
from pymixtral.cli.text import read_text, write, write_json

if TYPE_CHECKING:
    from pymixtral.evaluation.perplexity import Perplexity


@click.command(
    epilog="""\b
Examples:
  pymixtral perplexity -m mixtral-q4_0.gguf -f book.txt
  pymixtral perplexity -m mixtral-q4_0.gguf -f book.txt -c 2048 \\
    --stride 512 --json

\b
How much does q4_0 lose against f16?
  pymixtral perplexity -m mixtral-f16.gguf -f book.txt --windows 50 \\
    --save-base book.base
  pymixtral perplexity -m mixtral-q4_0.gguf -f book.txt --windows 50 \\
    --kl-against book.base""",
)
@model_option
@file_option
@context_option(lowest=3, default=512)
@click.option(
    "--stride", type=click.IntRange(min=1), metavar="S", help="Move the window by S tokens, and score its last S."
)
@windows_option
@click.option("--save-base", type=path_type(), metavar="FILE", help="Write all predictions to a new file, a base.")
@click.option("--kl-against", type=path_type(), metavar="FILE", help="Compare the predictions with those of a base.")
@opening_options()
@json_option
@click.pass_context
def perplexity(
    ctx: click.Context,
    /,
    model: Path | None,
    file: Path | None,
    stride: int | None,
    n_windows: int | None,
    save_base: Path | None,
    kl_against: Path | None,
    opening: dict[str, Any],
    as_json: bool,
) -> None:
    """Measure how well a model predicts a text.

    The text is given in a file with -f, or on standard input, in UTF-8. One newline at its end is
    left out. It is cut into windows, which the model reads one by one. Each begins with the
    begin-of-text token, if the model wants one. The first half of a window and one more token are
    only context; the others are scored. llama.cpp does the same, so the figures compare. With
    --stride, the last S tokens of each window are scored.

    A base takes 2 bytes for each scored token and each token of the vocabulary: 64 KB for a scored
    token with a vocabulary of 32000.
    """
    text = read_text(ctx, file)
    from pymixtral.evaluation.perplexity import perplexity as measure

    with opened(
        model,
        **opening,
    ) as engine:
        result = measure(
            engine,
            text,
            n_ctx=opening["n_ctx"],
            stride=stride,
            n_windows=n_windows,
            save_base=save_base,
            kl_against=kl_against,
        )
    if as_json:
        write_json(asdict(result))
    else:
        write("\n".join(_lines(result)))


def _lines(result: Perplexity) -> list[str]:
    every = f", {result.stride} apart" if result.stride is not None else ""
    lines = [
        f"Perplexity {result.perplexity:.4f} ± {result.standard_error:.4f} (standard error): "
        f"{result.n_tokens} tokens scored",
        f"in {result.n_windows} windows of {result.n_ctx}{every}; {result.tokens_per_second:.1f} "
        f"tokens/s, {result.seconds:.1f} s",
    ]
    if result.kl:
        kl = result.kl
        lines += [
            "",
            f"Base: perplexity {kl.base_perplexity:.4f}; ratio to it {kl.ratio:.5f} ± {kl.ratio_error:.5f}",
            f"KL divergence from the base, nats: mean {kl.mean:.6f} ± {kl.standard_error:.6f}, median {kl.median:.6f},",
            f"99th percentile {kl.p99:.6f}, maximum {kl.maximum:.6f}",
            f"Same most likely token: {kl.top1_agreement:.2%}",
        ]
    return lines
