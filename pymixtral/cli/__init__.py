"""The command `pymixtral`.

A command is imported when it is called, so that help and completion are quick. Wrong input (a
PymixtralError, a file that cannot be read, a wrong option) and too little memory are one line on
standard error and exit code 2. Where nobody reads standard output any more it is exit code 141.
Ctrl-C is exit code 130. What belongs to a process of its own is in pymixtral.__main__.
"""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from mmap import mmap
from typing import Any

import click
from click.shell_completion import CompletionItem

from pymixtral.cli.text import note
from pymixtral.errors import MemoryWarning, PymixtralError

# By name: the module that has a click command of that name, and its line in the help.
_COMMANDS = {
    "generate": ("pymixtral.cli.generate", "Write text that follows a prompt."),
    "chat": ("pymixtral.cli.chat", "Talk with a model."),
    "serve": ("pymixtral.cli.serve", "Serve a model over HTTP, as OpenAI's service does."),
    "batch": ("pymixtral.cli.batch", "Answer a file of requests, in the form of OpenAI's batches."),
    "score": ("pymixtral.cli.score", "Say how likely texts are to follow another one."),
    "embed": ("pymixtral.cli.embed", "Turn texts into vectors."),
    "tokenize": ("pymixtral.cli.tokenize", "Show the tokens of a text."),
    "perplexity": ("pymixtral.cli.perplexity", "Measure how well a model predicts a text."),
    "routing": ("pymixtral.cli.routing", "Show which experts the tokens of texts go to."),
    "evaluate": ("pymixtral.cli.evaluate", "Ask a model the questions of well-known tasks."),
    "bench": ("pymixtral.cli.bench", "Measure the speed of a model on this machine."),
    "inspect": ("pymixtral.cli.inspect", "Show what a model file holds."),
    "plan": ("pymixtral.cli.plan", "Say whether a model fits, and how fast it can be."),
    "deploy": ("pymixtral.cli.deploy", "Show the smallest machines of clouds that hold a model."),
    "doctor": ("pymixtral.cli.doctor", "Show what pymixtral finds on this machine, and measure it."),
    "quantize": ("pymixtral.cli.quantize", "Write a checkpoint as a GGUF file."),
    "calibrate": ("pymixtral.cli.calibrate", "Measure which weights matter, for quantize --imatrix."),
    "prune": ("pymixtral.cli.prune", "Write a model without the experts that it misses least."),
    "convert-adapter": ("pymixtral.cli.convert_adapter", "Write an adapter for PEFT or for llama.cpp."),
    "convert-layout": ("pymixtral.cli.convert_layout", "Merge or split the experts or the files of a model."),
}

_LONGEST = 2000
"""Characters of an error, of which a file name alone can have some hundreds."""

_ROOM = 1 << 28
"""Bytes of address space that every command takes, half of them NumPy's."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(import_module(_COMMANDS[cmd_name][0]), cmd_name.replace("-", "_"))
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in _COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            near = get_close_matches(args[0], _COMMANDS, 1)
            advice = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(_COMMANDS)}"
            raise click.UsageError(f"expected a command, found {args[0]!r}: {advice}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in _COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """As click's, but without importing the commands for their lines."""
        names = [
            CompletionItem(name, help=line) for name, (_, line) in _COMMANDS.items() if name.startswith(incomplete)
        ]
        return names + click.Command.shell_complete(self, ctx, incomplete)

    def make_context(self, info_name: str | None, args: list[str], *more: Any, **extra: Any) -> click.Context:
        with _ending_with_the_reader():  # --help and --version write here
            return super().make_context(info_name, args, *more, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        _check_room()
        try:
            with _ending_with_the_reader():
                return super().invoke(ctx)
        except (PymixtralError, MemoryWarning) as error:  # `python -W error` makes one of the other
            command = self.get_command(ctx, ctx.invoked_subcommand or "")
            assert command is not None  # it raised the error
            raise click.ClickException(in_options(str(error), command)) from error

    def main(  # type: ignore[override]  # click's is overloaded
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = "pymixtral",
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Runs the command line and exits; click's own handling, except that an error is one line."""
        if not standalone_mode:
            return super().main(args, prog_name, standalone_mode=False, **extra)
        try:
            result = super().main(args, prog_name, standalone_mode=False, **extra)
        except click.Abort:  # Ctrl-C; click has ended the line
            sys.exit(128 + signal.SIGINT)
        except click.UsageError as error:
            where = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
            _fail(error.format_message().rstrip(".") + where)
        except click.ClickException as error:
            _fail(error.format_message())
        except OSError as error:
            _fail(str(error))
        except MemoryError as error:
            found = f" ({error})" if str(error) else ""
            _fail(
                f"expected more memory, found none left{found}: end other programs, or choose a "
                "smaller model or context"
            )
        except ImportError as error:  # a library that finds no memory, or is not for this machine
            _fail(f"expected to load a library, found that it could not be: {_cause(error)}")
        sys.exit(result if isinstance(result, int) else 0)  # an int is the code of Context.exit()


def _check_room() -> None:
    """NumPy's OpenBLAS does not fail where it finds no memory when it is loaded: it tries for ever."""
    try:
        mmap(-1, _ROOM).close()
    except OSError as error:
        raise click.ClickException(
            f"expected room for {_ROOM >> 20} MiB of memory, found less ({error.strerror}): "
            "raise `ulimit -v`, or end other programs"
        ) from error


@contextmanager
def _ending_with_the_reader() -> Iterator[None]:
    """Where nobody reads standard output any more, the program ends as the signal SIGPIPE would end
    it.
    """
    try:
        yield
    except BrokenPipeError:
        sys.exit(128 + signal.SIGPIPE)


def in_options(message: str, command: click.Command) -> str:
    """A message of the library, which names Python's arguments, for users of a command.

    A name with an underscore and a flag that is true become the option: n_ctx becomes --context,
    force=True becomes --force. So does a name of one word that the message begins with, as in
    "expected stop to be": elsewhere it may be a word. Names in quotes and in paths stay: they are
    not the library's words.
    """
    for param in command.params:
        if isinstance(param, click.Option) and param.name:
            name = re.escape(param.name) + ("(?:=True)?" if "_" in param.name else "=True")
            option = max(param.opts, key=len)
            message = re.sub(rf"(?<![\w/.'\"-]){name}(?![\w/.'\"=-])", option, message)
            message = re.sub(rf"^(expected ){re.escape(param.name)}(?= to be )", rf"\g<1>{option}", message)
    return message


def _fail(message: str) -> None:
    if len(message) > _LONGEST:  # a value of the command line can be of any length
        message = f"{message[: _LONGEST // 2]}...{message[-_LONGEST // 2 :]}"
    note(f"Error: {message}")
    sys.exit(2)


def _cause(error: BaseException) -> str:
    """The message of the error that began it; those of NumPy around it fill a page."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]  # one of them is
    return str(error)


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    subcommand_metavar="COMMAND [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  pymixtral generate -p "Once upon a time"
  pymixtral generate -m mixtral.gguf -p "The capital of France is" -n 20
  pymixtral chat -m mixtral-instruct.gguf
  pymixtral quantize Mixtral-8x7B-v0.1 mixtral-q8_0.gguf

\b
Completion of commands, options and files in the shell:
  eval "$(_PYMIXTRAL_COMPLETE=bash_source pymixtral)"      in ~/.bashrc
  eval "$(_PYMIXTRAL_COMPLETE=zsh_source pymixtral)"       in ~/.zshrc
  _PYMIXTRAL_COMPLETE=fish_source pymixtral | source       in config.fish""",
)
@click.version_option(package_name="pymixtral")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Run Mixtral models on CPUs.

    The model is a GGUF file: that of -m, else that which the environment variable PYMIXTRAL_MODEL
    names, else a small demo model that comes with the package.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
