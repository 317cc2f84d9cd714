"""The command `pymixtral`.

A command is imported when it is called, so that help and completion are quick. Wrong input (a
PymixtralError, a file that cannot be read, a wrong option) is one line on standard error and exit
code 2. Ctrl-C is exit code 130. SIGTERM and SIGHUP leave no unfinished file; their exit codes are
143 and 129.
"""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from types import FrameType
from typing import Any

import click
from click.shell_completion import CompletionItem

from pymixtral.errors import PymixtralError

# By name: the module that has a click command of that name, and its line in the help.
_COMMANDS = {
    "generate": ("pymixtral.cli.generate", "Write text that follows a prompt."),
    "tokenize": ("pymixtral.cli.tokenize", "Show the tokens of a text."),
    "perplexity": ("pymixtral.cli.perplexity", "Measure how well a model predicts a text."),
    "bench": ("pymixtral.cli.bench", "Measure the speed of a model on this machine."),
    "inspect": ("pymixtral.cli.inspect", "Show what a model file holds."),
    "plan": ("pymixtral.cli.plan", "Say whether a model fits, and how fast it can be."),
    "doctor": ("pymixtral.cli.doctor", "Show what pymixtral finds on this machine, and measure it."),
    "quantize": ("pymixtral.cli.quantize", "Write a checkpoint as a GGUF file."),
    "calibrate": ("pymixtral.cli.calibrate", "Measure which weights matter, for quantize --imatrix."),
    "convert-layout": ("pymixtral.cli.convert_layout", "Merge or split the experts or the files of a model."),
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(import_module(_COMMANDS[cmd_name][0]), cmd_name.replace("-", "_"))
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
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
        names = [CompletionItem(name, help=line) for name, (_, line) in _COMMANDS.items() if name.startswith(incomplete)]
        return names + click.Command.shell_complete(self, ctx, incomplete)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PymixtralError as error:
            command = self.get_command(ctx, ctx.invoked_subcommand or "")
            assert command is not None  # it raised the error
            raise click.ClickException(in_options(str(error), command)) from error

    def main(  # type: ignore[override]  # click's is overloaded
        self, args: Sequence[str] | None = None, prog_name: str | None = "pymixtral", standalone_mode: bool = True, **extra: Any
    ) -> Any:
        """Runs the command line and exits; click's own handling, except that an error is one line."""
        if not standalone_mode:
            return super().main(args, prog_name, standalone_mode=False, **extra)
        if args is None:  # a process of its own, not a call from a program
            for number in (signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) == signal.SIG_DFL:  # nohup has SIGHUP ignored
                    signal.signal(number, _end)
        try:
            result = super().main(args, prog_name, standalone_mode=False, **extra)
        except click.Abort:  # Ctrl-C; click has ended the line
            sys.exit(130)
        except click.UsageError as error:
            where = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
            _fail(error.format_message().rstrip(".") + where)
        except click.ClickException as error:
            _fail(error.format_message())
        except OSError as error:
            _fail(str(error))
        sys.exit(result if isinstance(result, int) else 0)  # an int is the code of Context.exit()


def in_options(message: str, command: click.Command) -> str:
    """A message of the library, which names Python's arguments, for users of a command.

    A name with an underscore and a flag that is true become the option: n_ctx becomes --context,
    force=True becomes --force. Names in quotes and in paths stay: they are not the library's words.
    """
    for param in command.params:
        if isinstance(param, click.Option) and param.name:
            name = re.escape(param.name) + ("(?:=True)?" if "_" in param.name else "=True")
            message = re.sub(rf"(?<![\w/.'\"-]){name}(?![\w/.'\"=-])", max(param.opts, key=len), message)
    return message


def _end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    """Ends the process by an exception, so that finally blocks run, which remove what is unfinished."""
    signal.signal(number, signal.SIG_IGN)  # a second one would interrupt them
    sys.exit(128 + number)


def _fail(message: str) -> None:
    click.echo(f"Error: {' '.join(message.split())}", err=True)
    sys.exit(2)


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    subcommand_metavar="COMMAND [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  pymixtral generate -p "Once upon a time"
  pymixtral generate -m mixtral.gguf -p "The capital of France is" -n 20
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
