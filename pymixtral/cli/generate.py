"""The command `pymixtral generate`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pymixtral.cli.model import note_control_names, opened
from pymixtral.cli.options import (
    context_option,
    json_option,
    kv_type_option,
    model_option,
    override_options,
    prompt_options,
    special_option,
    threads_option,
    tokens_option,
)
from pymixtral.cli.sampling import sampling_options
from pymixtral.cli.text import note, read_prompt, write_data, write_json

if TYPE_CHECKING:
    from tqdm import tqdm

    from pymixtral.engine.stream import Generation
    from pymixtral.mixtral import Mixtral
    from pymixtral.model.overrides import Override


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
@model_option
@prompt_options
@tokens_option("max_tokens", 0, help="Tokens to write at most.  [default: until the model ends]")
@click.option("--stop", metavar="TEXT", multiple=True, help="End before this text; may be repeated.")
@click.option("--ignore-eos", is_flag=True, help="Go on where the model would end the text.")
@special_option
@sampling_options
@context_option()
@threads_option
@kv_type_option
@override_options
@click.option("--lock", is_flag=True, help="Keep in memory the weights that have been read.")
@click.option("--prefault", is_flag=True, help="Read all weights before the prompt.")
@json_option
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
    parse_special: bool,
    n_ctx: int | None,
    n_threads: int | None,
    kv_type: str,
    experts_used: int | None,
    overrides: dict[str, Override],
    lock: bool,
    prefault: bool,
    as_json: bool,
    **sampling: Any,
) -> None:
    """Write text that follows a prompt.

    The prompt is given with -p, in a file with -f, or on standard input, in UTF-8. One newline at
    the end of a file or of standard input is left out. The new text goes to standard output as it
    is written; speed and errors go to standard error. With --json the output comes when the text is
    complete.
    """
    prompt = read_prompt(ctx, prompt, file)
    with (
        _bar("weights", "B") as weights_read,
        _bar("prompt", " tokens") as prompt_read,
        opened(
            model,
            n_ctx=n_ctx,
            n_threads=n_threads,
            kv_type=kv_type,
            experts_used=experts_used,
            overrides=overrides,
            lock=lock,
            prefault=weights_read if prefault else False,
        ) as engine,
    ):
        generation = engine.stream(
            prompt,
            max_tokens=max_tokens,
            stop=stop,
            ignore_eos=ignore_eos,
            parse_special=parse_special,
            progress=prompt_read,
            **sampling,
        )
        if not parse_special:
            note_control_names(engine.control_names(prompt))
        show = _show_json if as_json else _show
        try:
            show(generation)
        except KeyboardInterrupt:
            if not as_json:
                _note_lines(_summary(generation) + " (interrupted)")
            ctx.exit(130)
        if not as_json:
            _note_lines(_summary(generation))
        if generation.finish_reason == "context":
            note(_full(engine))


@contextmanager
def _bar(name: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A function that shows how much is done, of how much: a bar in a terminal, which goes when all
    is done.
    """
    from pymixtral.progress import progress_bar

    with ExitStack() as stack:
        bars: list[tqdm[Any]] = []

        def progress(done: int, total: int) -> None:
            if not bars:
                bar = progress_bar(label=name, total=total, unit=unit, unit_scale=True, leave=False, shown=True)
                bars.append(stack.enter_context(bar))
            bars[0].update(done - bars[0].n)
            if done == total:
                stack.close()

        yield progress


def _show(generation: Generation) -> None:
    """Writes each piece to standard output as it comes, and ends the line whatever happens."""
    last = ""
    try:
        for piece in generation:
            last = piece
            write_data(piece, keep="\n\t")
    except OSError:  # nowhere to write a newline to
        raise
    except BaseException:
        write_data("\n", keep="\n")
        raise
    if not last.endswith("\n"):
        write_data("\n", keep="\n")


def _show_json(generation: Generation) -> None:
    """Writes everything at once. After an interrupt it is what there is, with null as
    finish_reason.
    """
    text = ""
    try:
        for piece in generation:
            text += piece
    finally:
        stats = generation.stats
        rates = {
            "prompt_tokens_per_second": stats.prompt_tokens_per_second,
            "tokens_per_second": stats.tokens_per_second,
            "gigabytes_per_second": stats.gigabytes_per_second,
        }
        write_json(
            {
                "text": text,
                "tokens": generation.tokens,
                "finish_reason": generation.finish_reason,
                "stats": asdict(stats) | rates,
            }
        )


def _summary(generation: Generation) -> str:
    """The closing lines. They have rates where a pass has followed the prompt."""
    stats = generation.stats
    n_prompt, n_generated = _tokens(stats.prompt_tokens), _tokens(stats.generated_tokens)
    if not generation.tokens:
        return f"prompt: {n_prompt}; nothing generated"
    rates = (
        f", {stats.tokens_per_second:.1f} tokens/s, {stats.gigabytes_per_second:.1f} GB/s of weights"
        if stats.passes
        else ""
    )
    return (
        f"prompt: {n_prompt}, {stats.prompt_tokens_per_second:.1f} tokens/s, first token after "
        f"{stats.prompt_seconds:.3f} s\n"
        f"generated: {n_generated}{rates}"
    )


def _note_lines(text: str) -> None:
    for line in text.splitlines():
        note(line)


def _full(engine: Mixtral) -> str:
    """Why a text ended before the model or -n ended it."""
    most = engine.config.n_ctx_train
    advice = f"--context makes it longer, up to {most}" if engine.n_ctx < most else "the model was trained for no more"
    return f"The context of {engine.n_ctx} tokens is full; {advice}."


def _tokens(n: int) -> str:
    return f"{n} token{'' if n == 1 else 's'}"
