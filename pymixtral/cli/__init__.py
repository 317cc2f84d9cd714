"""The command `pymixtral`: its subcommands are imported when they are run, so that the help is quick.

Wrong input (a PymixtralError, a file that cannot be read, a wrong option) is one line on stderr and exit code 2, Ctrl-C exit code 130.
SIGTERM and SIGHUP leave no unfinished file, exit code 143 and 129.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from types import FrameType
from typing import Any

import click

# Name: module that has a click command of that name, and the line in the help.
_COMMANDS = {
    "generate": ("pymixtral.cli.generate", "Write text that follows a prompt."),
    "perplexity": ("pymixtral.cli.perplexity", "Measure how well a model predicts a text."),
    "tokenize": ("pymixtral.cli.tokenize", "Show the tokens of a text."),
    "inspect": ("pymixtral.cli.inspect", "Show what a model file holds."),
    "plan": ("pymixtral.cli.plan", "Say whether a model fits, and how fast it can be."),
    "bench": ("pymixtral.cli.bench", "Measure the speed of a model on this machine."),
    "doctor": ("pymixtral.cli.doctor", "Show what pymixtral finds on this machine, and measure it."),
    "calibrate": ("pymixtral.cli.calibrate", "Measure which weights matter, for quantize."),
    "quantize": ("pymixtral.cli.quantize", "Write a checkpoint as a GGUF file."),
    "convert-layout": ("pymixtral.cli.convert_layout", "Merge or split a model's experts or files."),
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(import_module(_COMMANDS[cmd_name][0]), cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in _COMMANDS.items()])

    def main(  # type: ignore[override]  # click's is overloaded
        self, args: Sequence[str] | None = None, prog_name: str | None = None, standalone_mode: bool = True, **extra: Any
    ) -> Any:
        """Runs the command line and exits; click's own handling, except that an error is one line."""
        if not standalone_mode:
            return super().main(args, prog_name, standalone_mode=False, **extra)
        from pymixtral.errors import PymixtralError

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
        except (PymixtralError, OSError) as error:
            _fail(str(error))
        sys.exit(result if isinstance(result, int) else 0)  # an int is the code of Context.exit()


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
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  pymixtral generate -p "Once upon a time"
  pymixtral generate -m mixtral.gguf -p "The capital of France is" -n 20
  pymixtral quantize Mixtral-8x7B-v0.1 mixtral-q8_0.gguf""",
)
@click.version_option(package_name="pymixtral")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Mixtral on CPUs."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
