"""The command `pymixtral chat`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pymixtral.cli.choices import CHAT_FORMATS
from pymixtral.cli.model import opened
from pymixtral.cli.options import (
    context_option,
    expert_min_p_option,
    json_option,
    kv_type_option,
    model_option,
    override_options,
    prompt_options,
    threads_option,
    tokens_option,
)
from pymixtral.cli.sampling import sampling_options
from pymixtral.cli.text import read_prompt
from pymixtral.errors import InvalidArgumentError

if TYPE_CHECKING:
    from pymixtral.model.overrides import Override


@click.command(
    epilog="""\b
Examples:
  pymixtral chat
  pymixtral chat -m mixtral-instruct.gguf --system "Answer in one sentence."
  pymixtral chat -m mixtral-instruct.gguf -p "Why is the sky blue?"
  printf 'Who are you?\\nAnd who am I?\\n' | pymixtral chat --seed 1 --json"""
)
@model_option
@prompt_options
@click.option("--system", metavar="TEXT", default="", help="The system text, which says how to answer.")
@click.option(
    "--chat-format",
    type=click.Choice(CHAT_FORMATS),
    metavar="NAME",
    help=f"The form of the conversation: {', '.join(CHAT_FORMATS)}.  [default: the one that fits the model]",
)
@tokens_option("max_tokens", 1, default=1024, show_default=True, help="Tokens of an answer at most.")
@sampling_options
@context_option(runs=True)
@threads_option
@kv_type_option
@override_options
@expert_min_p_option
@json_option
@click.pass_context
def chat(
    ctx: click.Context,
    /,
    model: Path | None,
    prompt: str | None,
    file: Path | None,
    system: str,
    chat_format: str | None,
    max_tokens: int,
    n_ctx: int | None,
    n_threads: int | None,
    kv_type: str,
    experts_used: int | list[int] | None,
    expert_min_p: float,
    overrides: dict[str, Override],
    as_json: bool,
    **sampling: Any,
) -> None:
    """Talk with a model.

    On a terminal, type a message and press Enter; /help lists the commands. Ctrl-C stops an answer,
    Ctrl-D leaves.

    With -p or -f there is one message and one answer. In a pipe, each line of standard input is a
    message, which is answered before the next one is read; empty lines are left out, and nothing in
    a line is a command. Answers go to standard output, all else to standard error. With --json each
    answer is a line of JSON.

    Without a model, a demo answers that knows nothing but the words of tales.
    """
    messages: Iterable[str] | None = None  # those that are typed
    if prompt is not None or file is not None:
        messages = [read_prompt(ctx, prompt, file)]
    elif sys.stdin is None or not sys.stdin.isatty():
        messages = _lines(ctx)
    from pymixtral.cli.chat_terminal import converse
    from pymixtral.cli.history import History
    from pymixtral.cli.talk import Talk

    history = History(system)
    with opened(
        model,
        chats=True,
        n_ctx=n_ctx,
        n_threads=n_threads,
        max_batch=1,
        kv_type=kv_type,
        experts_used=experts_used,
        expert_min_p=expert_min_p,
        overrides=overrides,
    ) as engine:
        engine.chat_format(chat_format)  # a model without one is refused before anything is read
        options = {"chat_format": chat_format, "max_tokens": max_tokens, **sampling}
        talk = Talk(engine, history, options, as_json=as_json)
        if messages is None:
            converse(talk, ctx.command)
            return
        for message in messages:
            talk.history.ask(message)
            talk.answer()


def _lines(ctx: click.Context) -> Iterator[str]:
    """The lines of standard input that are not empty, each as soon as it is there."""
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None:
        raise click.UsageError("no message: expected -p TEXT, -f FILE, or lines on standard input", ctx)
    for i, line in enumerate(stream, 1):
        try:
            text = line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InvalidArgumentError(
                f"expected UTF-8 on standard input, found the byte 0x{line[error.start]:02x} in line {i}"
            ) from None
        if text.strip():
            yield text
