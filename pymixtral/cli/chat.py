"""The command `pymixtral chat`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from pymixtral.cli.choices import CHAT_FORMATS
from pymixtral.cli.model import opened
from pymixtral.cli.options import (
    context_option,
    json_option,
    model_option,
    opening_options,
    prompt_options,
    tokens_option,
)
from pymixtral.cli.sampling import sampling_options
from pymixtral.cli.structured import form_of, structured_options
from pymixtral.cli.text import read_prompt
from pymixtral.errors import InvalidArgumentError


@click.command(
    epilog="""\b
Examples:
  pymixtral chat
  pymixtral chat -m mixtral-instruct.gguf --system "Answer in one sentence."
  pymixtral chat -m mixtral-instruct.gguf -p "Why is the sky blue?"
  pymixtral chat -p "Is the wolf good?" --choice yes --choice no
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
@structured_options
@sampling_options
@context_option(runs=True)
@opening_options()
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
    opening: dict[str, Any],
    as_json: bool,
    **others: Any,
) -> None:
    """Talk with a model.

    On a terminal, type a message and press Enter; /help lists the commands. Ctrl-C stops an answer,
    Ctrl-D leaves.

    With -p or -f there is one message and one answer. In a pipe, each line of standard input is a
    message, which is answered before the next one is read; empty lines are left out, and nothing in
    a line is a command. Answers go to standard output, all else to standard error. With --json each
    answer is a line of JSON.

    With --json-schema, --json-object, --regex, --choice or --lark every answer has that form.

    Without a model, a demo answers that knows nothing but the words of tales.
    """
    form = form_of(ctx, others)
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
        **opening,
        chats=True,
        max_batch=1,
    ) as engine:
        engine.chat_format(chat_format)  # a model without one is refused before anything is read
        options = {"chat_format": chat_format, "max_tokens": max_tokens, **form, **others}
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
