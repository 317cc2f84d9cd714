"""The command `pymixtral perplexity`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pymixtral.cli.options import kv_type_option, override_options
from pymixtral.cli.text import read_text

if TYPE_CHECKING:
    from pymixtral.evaluation.perplexity import Perplexity
    from pymixtral.model.overrides import Override


@click.command(
    epilog="""\b
Examples:
  pymixtral perplexity mixtral-q4_0.gguf -f book.txt
  pymixtral perplexity mixtral-q4_0.gguf -f book.txt -c 2048 \\
    --stride 512 --json

\b
How much does q4_0 lose against f16?
  pymixtral perplexity mixtral-f16.gguf -f book.txt -n 50 \\
    --save-base book.base
  pymixtral perplexity mixtral-q4_0.gguf -f book.txt -n 50 \\
    --kl-against book.base""",
)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-f", "--file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="The text.  [default: standard input]")
@click.option("-c", "--context", type=click.IntRange(min=2), default=512, show_default=True, help="Tokens of a window.")
@click.option("--stride", type=click.IntRange(min=1), help="Move the window by S tokens and score its last S.  [default: see above]")
@click.option("-n", "--windows", type=click.IntRange(min=1), help="Only the first N windows.  [default: the whole text]")
@click.option("--save-base", type=click.Path(path_type=Path), help="Write all predictions to a new file; big: see above.")
@click.option("--kl-against", type=click.Path(path_type=Path), help="Compare the predictions with those in such a file.")
@click.option("-t", "--threads", type=click.IntRange(1, 256), help="Threads to use.  [default: one per core]")
@kv_type_option
@override_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def perplexity(
    ctx: click.Context,
    /,
    model: Path,
    file: Path | None,
    context: int,
    stride: int | None,
    windows: int | None,
    save_base: Path | None,
    kl_against: Path | None,
    threads: int | None,
    kv_type: str,
    experts_used: int | None,
    overrides: dict[str, Override],
    as_json: bool,
) -> None:
    """Measure how well MODEL predicts a text.

    The text is the contents of -f, or standard input (UTF-8; one newline at its end is not part of it). It is cut into windows, which
    the model sees one by one, each begun with the begin-of-text token if the model wants one. The tokens of the second half of each
    window but its first are scored, as llama.cpp does it, so that figures compare; with --stride, the last S of each window.

    A file of --save-base takes 2 bytes for each token scored and each of the vocabulary: at 32000 of these, 64 KB a token.
    """
    text = read_text(ctx, file)
    from pymixtral.cli.text import slow_note
    from pymixtral.evaluation.perplexity import perplexity as measure
    from pymixtral.mixtral import Mixtral

    with Mixtral(model, n_ctx=context, n_threads=threads, kv_type=kv_type, experts_used=experts_used, overrides=overrides) as engine:
        if engine.slow_types:
            click.echo(f"Note: {slow_note(engine.slow_types)}.", err=True)
        result = measure(engine, text, n_ctx=context, stride=stride, n_windows=windows, save_base=save_base, kl_against=kl_against)
    out = json.dumps(asdict(result), indent=2, allow_nan=False) if as_json else "\n".join(_lines(result))
    click.echo(out.encode())  # UTF-8 whatever the locale


def _lines(result: Perplexity) -> list[str]:
    every = f", {result.stride} apart" if result.stride is not None else ""
    lines = [
        f"Perplexity {result.perplexity:.4f} ± {result.standard_error:.4f} (standard error): {result.n_tokens} tokens scored",
        f"in {result.n_windows} windows of {result.n_ctx}{every}; {result.tokens_per_second:.1f} tokens/s, {result.seconds:.1f} s",
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
