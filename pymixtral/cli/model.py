"""Which model a command works with: the one that is named, that of PYMIXTRAL_MODEL, or the demo."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from pymixtral.cli.text import note

if TYPE_CHECKING:
    from pymixtral.mixtral import Mixtral


def is_named(ctx: click.Context) -> bool:
    """Whether the command line names a model, whatever PYMIXTRAL_MODEL says."""
    return ctx.params.get("subject") is not None or ctx.get_parameter_source("model") is ParameterSource.COMMANDLINE


def same_model(ctx: click.Context, subject: Path | None, model: Path | None) -> Path | None:
    """The model of a command that takes it as MODEL and as -m.

    Raises:
        UsageError: where both are given, and differ.
    """
    if subject and model != subject and ctx.get_parameter_source("model") is ParameterSource.COMMANDLINE:
        raise click.UsageError(f"expected one model, found two: {subject} as MODEL and {model} as -m", ctx)
    return subject or model


def model_path(model: Path | None, *, chats: bool = False) -> Path:
    """The file to open, the demo's where there is none; a note on standard error says so.

    Args:
        model: the file that is named.
        chats: whether the demo is the one for conversations.
    """
    if model:
        return model
    from pymixtral.demo import demo_chat_path, demo_path

    note("No model named (-m FILE or PYMIXTRAL_MODEL): using the small demo model.")
    return demo_chat_path() if chats else demo_path()


def note_threads(n_threads: int | None) -> None:
    """Says where -t asks for more threads than can run at once."""
    if n_threads is None:
        return
    from pymixtral import ops

    limits = ops.thread_limits()
    if n_threads > limits.usable:
        cpus = f"{limits.usable} CPU{'' if limits.usable == 1 else 's'}"
        note(
            f"Note: {n_threads} threads share the {cpus} that this process may use, which costs speed; "
            f"without -t there are {limits.default} ({limits.limit})."
        )


def note_control_names(names: Sequence[str]) -> None:
    """Says which names of control tokens a text has that were not taken as such."""
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        verb, tokens = ("is", "it a token") if len(names) == 1 else ("are", "them tokens")
        note(f"Note: {', '.join(names[:3])}{more} {verb} ordinary text; --special makes {tokens}.")


def opened(model: Path | None, *, n_threads: int | None, chats: bool = False, **options: Any) -> Mixtral:
    """The model, ready to use; notes on standard error say why it will be slow.

    Args:
        model: as for model_path().
        n_threads: threads that are asked for.
        chats: as for model_path().
        **options: those of Mixtral.
    """
    from pymixtral.mixtral import Mixtral

    engine = Mixtral(model_path(model, chats=chats), n_threads=n_threads, **options)
    note_threads(n_threads)
    return engine
