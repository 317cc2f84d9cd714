"""The command `pymixtral generate`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pymixtral.cli.options import kv_type_option, override_options
from pymixtral.cli.text import read_text, slow_note

if TYPE_CHECKING:
    from pymixtral.engine.completion import Generation
    from pymixtral.model.overrides import Override


def _logit_bias(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[int, float]:
    """`ID=N` as {ID: N}; the last of several for one id counts."""
    bias = {}
    for value in values:
        id, _, number = value.partition("=")
        try:
            bias[int(id)] = float(number)
        except ValueError:
            raise click.BadParameter(f"expected a token id, '=' and a number, such as 17=-2.5, found {value!r}", ctx, param) from None
    return bias


@click.command(
    epilog="""\b
Examples:
  pymixtral generate -p "Once upon a time"
  pymixtral generate -m mixtral-q4_0.gguf -p "The capital of France is" \\
    -n 20 --temperature 0
  pymixtral generate -m mixtral-q4_0.gguf -f chapter.txt --seed 7 \\
    --stop "THE END" > next.txt
  echo "The wolf said:" | pymixtral generate -n 50""",
)
@click.option("-m", "--model", type=click.Path(path_type=Path), help="A GGUF file.  [default: the demo model in the package]")
@click.option("-p", "--prompt", help="The text to continue; may be empty.")
@click.option("-f", "--file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Read the prompt from a file.")
@click.option("-n", "--max-tokens", type=click.IntRange(min=0), help="Tokens to write at most.  [default: until the model ends]")
@click.option("--temperature", type=float, default=0.8, show_default=True, help="0 always takes the most likely token.")
@click.option("--top-k", type=int, default=40, show_default=True, help="Choose among the K most likely tokens; 0: all.")
@click.option("--top-p", type=float, default=0.95, show_default=True, help="Choose among the likeliest tokens of this total probability.")
@click.option("--min-p", type=float, default=0.0, show_default=True, help="Leave out tokens less likely than this part of the likeliest.")
@click.option("--typical-p", type=float, default=1.0, show_default=True, help="Choose among the most typical tokens of this probability.")
@click.option("--repetition-penalty", type=float, default=1.0, show_default=True, help="Makes tokens of the text less likely if above 1.")
@click.option("--presence-penalty", type=float, default=0.0, show_default=True, help="Lowers the logits of tokens of the text.")
@click.option("--frequency-penalty", type=float, default=0.0, show_default=True, help="The same, for each time that they occur.")
@click.option("--penalty-window", type=int, default=64, show_default=True, help="Last tokens that count as the text; 0: all.")
@click.option(
    "--logit-bias", metavar="ID=N", multiple=True, callback=_logit_bias, help="Add N to a token's logit; -inf bans it.  [may be repeated]"
)
@click.option("--ignore-eos", is_flag=True, help="Go on where the model would end.")
@click.option("--seed", type=int, help="The same seed writes the same text.  [default: random]")
@click.option("--stop", multiple=True, help="End before this string; may be given several times.")
@click.option("-t", "--threads", type=click.IntRange(1, 256), help="Threads to use.  [default: one per core]")
@click.option(
    "-c", "--context", type=click.IntRange(min=1), help="Tokens of prompt and text together.  [default: the model's, at most 4096]"
)
@kv_type_option
@override_options
@click.option("--lock", is_flag=True, help="Keep the weights that were read in memory.")
@click.option("--prefault", is_flag=True, help="Read all weights before the prompt.")
@click.pass_context
def generate(
    ctx: click.Context,
    /,
    model: Path | None,
    prompt: str | None,
    file: Path | None,
    max_tokens: int | None,
    stop: tuple[str, ...],
    ignore_eos: bool,
    threads: int | None,
    context: int | None,
    kv_type: str,
    experts_used: int | None,
    overrides: dict[str, Override],
    lock: bool,
    prefault: bool,
    **sampling: Any,
) -> None:
    """Write text that follows a prompt.

    The prompt is -p, the contents of -f, or standard input (UTF-8; one newline at the end of a file or of standard input is not part
    of it). The new text alone goes to standard output as it is written, and a newline in the end; speed and errors go to standard
    error.

    The options that change probabilities apply in this order: logit bias, penalties, top-k, typical-p, top-p, min-p, temperature.
    """
    prompt = _read_prompt(ctx, prompt, file)
    from pymixtral.mixtral import Mixtral

    with Mixtral(
        model,
        n_ctx=context,
        n_threads=threads,
        kv_type=kv_type,
        experts_used=experts_used,
        overrides=overrides,
        lock=lock,
        prefault=_reading() if prefault else False,
    ) as engine:
        if engine.is_demo:
            click.echo(f"No model named (-m): using the demo model of the package, {engine.config.name}.", err=True)
        if engine.slow_types:
            click.echo(f"Note: {slow_note(engine.slow_types)}.", err=True)
        generation = engine.stream(prompt, max_tokens=max_tokens, stop=stop, ignore_eos=ignore_eos, **sampling)
        try:
            _write(generation)
        except KeyboardInterrupt:
            click.echo(_summary(generation) + " (interrupted)", err=True)
            ctx.exit(130)
        click.echo(_summary(generation), err=True)


def _reading() -> Callable[[int, int], None]:
    """A bar on standard error, if that is a terminal."""
    from tqdm import tqdm

    bar = tqdm(unit="B", unit_scale=True, desc="weights", disable=None)

    def progress(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    return progress


def _read_prompt(ctx: click.Context, prompt: str | None, file: Path | None) -> str:
    if prompt is not None and file is not None:
        raise click.UsageError("expected -p or -f, found both", ctx)
    if prompt is not None:
        return prompt
    return read_text(ctx, file, "no prompt: expected -p TEXT, -f FILE, or text on standard input")


def _write(generation: Generation) -> None:
    """To standard output, each piece as it comes; the line is ended whatever happens."""
    out = sys.stdout.buffer  # UTF-8 whatever the locale
    last = ""
    try:
        for piece in generation:
            last = piece
            out.write(piece.encode("utf-8"))
            out.flush()
    except OSError:  # nowhere to write a newline to
        raise
    except BaseException:
        out.write(b"\n")
        out.flush()
        raise
    out.write(b"" if last.endswith("\n") else b"\n")
    out.flush()


def _summary(generation: Generation) -> str:
    """The closing lines. There are rates where a pass has followed the prompt."""
    stats = generation.stats
    n_prompt, n_generated = _tokens(stats.prompt_tokens), _tokens(stats.generated_tokens)
    if not generation.tokens:
        return f"prompt: {n_prompt}; nothing generated"
    rates = f", {stats.tokens_per_second:.1f} tokens/s, {stats.gigabytes_per_second:.1f} GB/s of weights" if stats.passes else ""
    return (
        f"prompt: {n_prompt}, {stats.prompt_tokens_per_second:.1f} tokens/s, first token after {stats.prompt_seconds:.3f} s\n"
        f"generated: {n_generated}{rates}"
    )


def _tokens(n: int) -> str:
    return f"{n} token{'' if n == 1 else 's'}"
