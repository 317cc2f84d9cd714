"""The command line in tests: run in this process, and its commands as click has them."""

from __future__ import annotations

import re
import sys

import click
from click.testing import CliRunner, Result

from pymixtral.cli import main

COMMAND = [sys.executable, "-m", "pymixtral"]
"""What starts a process of its own."""

DEMO_NOTE = "No model named (-m FILE or PYMIXTRAL_MODEL): using the small demo model.\n"

SUMMARY = re.compile(
    r"prompt: (\d+) tokens, [\d.]+ tokens/s, first token after [\d.]+ s\n"
    r"generated: (\d+) tokens, [\d.]+ tokens/s, [\d.]+ GB/s of weights"
)
"""The two lines that follow a text, with the numbers of its tokens."""

_CONTEXT = click.Context(main, info_name="pymixtral")


def run(*arguments: object, input: bytes | str | None = None, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], input=input, env=env, prog_name="pymixtral")


def refused(result: Result, *words: str) -> None:
    """One line on stderr, exit code 2, nothing on stdout."""
    assert (result.exit_code, result.stdout) == (2, "")
    assert re.fullmatch(r"Error: [^\n]+\n", result.stderr)
    for word in words:
        assert word in result.stderr


def commands() -> dict[str, click.Command]:
    found = {name: main.get_command(_CONTEXT, name) for name in main.list_commands(_CONTEXT)}
    return {name: command for name, command in found.items() if command}


def options(command: click.Command) -> dict[str, click.Option]:
    """By the long name."""
    return {max(param.opts, key=len): param for param in command.params if isinstance(param, click.Option)}
