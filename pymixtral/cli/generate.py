"""The command `pymixtral generate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pymixtral.cli.bulk import run_job
from pymixtral.cli.model import model_path, note_control_names, opened
from pymixtral.cli.options import (
    context_option,
    force_option,
    json_option,
    logprobs_options,
    model_option,
    opening_options,
    path_type,
    prompt_options,
    ray_option,
    special_option,
    texts_output_option,
    tokens_option,
)
from pymixtral.cli.packages import check_packages
from pymixtral.cli.sampling import sampling_options
from pymixtral.cli.structured import form_of, structured_options
from pymixtral.cli.text import note, read_prompt, write_data, write_json
from pymixtral.cli.work import bar, full, n_tokens, note_lines, plain_stats, summary

if TYPE_CHECKING:
    from pymixtral.bulk.generate import Bulk
    from pymixtral.engine.completion import Completion
    from pymixtral.engine.stream import Generation


_DEMO_TOKENS = 200
"""The demo writes tales without an end: so many tokens of one, where -n does not say how many."""


@click.command(
    epilog="""\b
Examples:
  pymixtral generate -p "Once upon a time"
  pymixtral generate -m mixtral-q4_0.gguf -p "The capital of France is" \\
    -n 20 --temperature 0
  pymixtral generate -m mixtral-q4_0.gguf -f chapter.txt -n 500 \\
    --seed 7 --stop "THE END" > next.txt
  echo "The wolf said:" | pymixtral generate -n 50
  pymixtral generate -p "The wolf said:" -n 20 --samples 3
  pymixtral generate -p "The wolf was" --choice " good" --choice " bad"

\b
Many prompts, each a line such as {"prompt": "Once", "max_tokens": 9}:
  pymixtral generate --prompts prompts.jsonl -o texts.jsonl -n 100

\b
The same on the nodes of a cluster, which share the folder of the files:
  pymixtral generate --prompts prompts.parquet -o texts.jsonl -n 100 --ray""",
)
@model_option
@prompt_options
@click.option(
    "--prompts", type=path_type(exists=True), metavar="FILE", help="Read many prompts from JSON lines or Parquet."
)
@texts_output_option
@ray_option
@force_option
@tokens_option("max_tokens", 0, help="Tokens to write at most.  [default: until the model ends; of the demo 200]")
@click.option("--stop", metavar="TEXT", multiple=True, help="End before this text; may be repeated.")
@click.option("--ignore-eos", is_flag=True, help="Go on where the model would end the text.")
@special_option
@click.option(
    "--samples",
    "n",
    type=click.IntRange(1, 128),
    metavar="N",
    default=1,
    show_default=True,
    help="Write N texts of the prompt.",
)
@structured_options
@sampling_options
@logprobs_options
@click.option(
    "--prompt-lookup",
    type=click.IntRange(0, 16),
    metavar="N",
    default=0,
    show_default=True,
    help="Propose up to N tokens that the text may repeat. It changes only the speed.",
)
@click.option("--timeout", type=float, metavar="SECONDS", help="End the text after this time.")
@context_option(runs=True)
@click.option(
    "--context-shift",
    type=click.IntRange(min=0),
    metavar="N",
    help="When the context is full, keep its first N tokens and drop half of the others.",
)
@opening_options(shared=True)
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
    prompts: Path | None,
    output: Path | None,
    address: str | None,
    force: bool,
    max_tokens: int | None,
    stop: tuple[str, ...],
    ignore_eos: bool,
    parse_special: bool,
    n: int,
    logprobs: int | None,
    prompt_logprobs: int | None,
    prompt_lookup: int,
    timeout: float | None,
    context_shift: int | None,
    lock: bool,
    prefault: bool,
    opening: dict[str, Any],
    as_json: bool,
    **others: Any,
) -> None:
    """Write text that follows a prompt.

    The prompt is given with -p, in a file with -f, or on standard input, in UTF-8. One newline at
    the end of a file or of standard input is left out. The new text goes to standard output as it
    is written; speed and errors go to standard error. With --json the output comes when the text is
    complete.

    With --prompts there are many prompts, and their texts go to the file -o as JSON lines, in the
    order of the prompts. A line has a "prompt", a text or token ids, perhaps an "id" that its text
    gets too, and options that it has alone, with the names that they have in Python; a row of a
    Parquet file is such a line. After Ctrl-C the same command goes on where it ended. The exit code
    is 1 if there is no text for some prompt.

    With --ray the nodes of a cluster compute them. Each process there has -t threads, by default as
    many as the smallest node has CPUs, and without -c the model's whole context. All nodes need the
    files under the same names. The same command goes on after Ctrl-C or a loss of nodes.
    """
    _check_usage(ctx)
    if address is not None:
        check_packages("ray", "ray", "pyarrow")
    if model is None and max_tokens is None:
        max_tokens = _DEMO_TOKENS
    if address is not None and opening["n_ctx"] is None:
        model = model_path(model)
        opening["n_ctx"] = _whole_context(model)
    if not prompts:
        from_pipe = prompt is None and file is None
        prompt = read_prompt(ctx, prompt, file)
        if from_pipe and not prompt:
            raise click.UsageError("expected a prompt on standard input, found none: -p '' begins from nothing", ctx)
    options: dict[str, Any] = {
        "max_tokens": max_tokens,
        "stop": stop,
        "ignore_eos": ignore_eos,
        "parse_special": parse_special,
        "logprobs": logprobs,
        "prompt_logprobs": prompt_logprobs,
        "prompt_lookup": prompt_lookup,
        "timeout": timeout,
        "context_shift": context_shift,
        **form_of(ctx, others),
        **others,
    }
    with (
        bar("weights", "B") as weights_read,
        bar("prompt", " tokens") as prompt_read,
        opened(
            model,
            **opening | ({"n_threads": 1} if address is not None else {}),
            lock=lock and address is None,
            prefault=weights_read if prefault and address is None else False,
        ) as engine,
    ):
        if prompts:
            assert output
            bulk: Bulk
            if address is None:
                from pymixtral.bulk.generate import Bulk as Alone

                bulk = Alone(engine, prompts, output, force=force, n=n, **options)
            else:
                from pymixtral.cluster.batch import ClusterBulk

                opening |= {"lock": lock, "prefault": prefault}
                bulk = ClusterBulk(
                    engine, prompts, output, opening=opening, address=address, force=force, n=n, **options
                )
            n_in_flight = 2 * opening["max_batch"]
            ctx.exit(run_job(bulk, output, n_in_flight, as_json=as_json, failed="without a text", with_tokens=True))
        assert prompt is not None
        if n > 1:
            texts = engine.generate(prompt, n=n, **options).choices
            (_show_texts_json if as_json else _show_texts)(texts)
            reasons = {text.finish_reason for text in texts}
        else:
            generation = engine.stream(prompt, progress=prompt_read, **options)
            if not parse_special:
                note_control_names(engine.control_names(prompt))
            show = _show_json if as_json else _show
            try:
                show(generation)
            except KeyboardInterrupt:
                if not as_json:
                    note_lines(summary(generation) + " (interrupted)")
                ctx.exit(130)
            if not as_json:
                note_lines(summary(generation))
            reasons = {generation.finish_reason}
        if "context" in reasons:
            note(full(engine))
        if "deadline" in reasons:
            note(f"The time of {timeout:g} s was over; a longer --timeout lets the text go on.")


def _check_usage(ctx: click.Context) -> None:
    given = ctx.params
    if given["prompts"]:
        for name, option in (("prompt", "-p"), ("file", "-f")):
            if given[name] is not None:
                raise click.UsageError(f"expected --prompts or {option}, found both", ctx)
        if not given["output"]:
            raise click.UsageError("expected a file for the texts of --prompts, found none: name one with -o", ctx)
    elif given["output"] or given["force"] or given["address"] is not None:
        option = "-o" if given["output"] else "--force" if given["force"] else "--ray"
        raise click.UsageError(
            f"expected {option} with --prompts, found it alone: one text goes to standard output", ctx
        )
    elif not given["as_json"]:
        for name in ("logprobs", "prompt_logprobs"):
            if given[name] is not None:
                option = f"--{name.replace('_', '-')}"
                raise click.UsageError(f"expected {option} with --json or --prompts, found it alone", ctx)


def _whole_context(model: Path) -> int:
    """The model's own context: as far as the memory of this host allows says nothing of those that compute."""
    from pymixtral.files.gguf import GGUFFile
    from pymixtral.model.config import ModelConfig

    with GGUFFile(model) as file:
        return ModelConfig.from_gguf(file).n_ctx_train


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
    from pymixtral.bulk.generate import plain
    from pymixtral.engine.completion import Completion

    text = ""
    try:
        for piece in generation:
            text += piece
    finally:
        so_far = Completion(
            text, generation.tokens, "cancelled", generation.stats, logprobs=generation.logprobs or None
        )
        fields = plain(generation.completion or so_far)
        if not generation.completion:
            fields["finish_reason"] = None
        write_json(fields | {"stats": plain_stats(generation.stats)})


def _show_texts(texts: Sequence[Completion]) -> None:
    """Writes several texts of a prompt, each below a line with its number, and a summary."""
    for i, text in enumerate(texts, 1):
        end = "" if text.text.endswith("\n") else "\n"
        write_data(f"--- {i} of {len(texts)} ---\n{text.text}{end}", keep="\n\t")
    stats = texts[0].stats
    n_generated, n_passes = (
        sum(getattr(text.stats, name) for text in texts) for name in ("generated_tokens", "passes")
    )
    seconds = max(text.stats.generation_seconds for text in texts)
    rate = f", {n_passes / seconds:.1f} tokens/s together" if n_passes else ""
    note(f"prompt: {n_tokens(stats.prompt_tokens)}, {stats.prompt_tokens_per_second:.1f} tokens/s")
    note(f"generated: {n_tokens(n_generated)} in {len(texts)} texts{rate}")


def _show_texts_json(texts: Sequence[Completion]) -> None:
    from pymixtral.bulk.generate import plain

    first, *others = ({**plain(replace(text, others=())), "stats": plain_stats(text.stats)} for text in texts)
    write_json(first | {"others": others})
