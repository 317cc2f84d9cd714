"""Text that comes in, and lines of 80 columns that go out, fit for a terminal."""

from __future__ import annotations

import json
import stat
import sys
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from pymixtral.errors import InvalidArgumentError, OutputError
from pymixtral.escapes import escaped, escaped_json

WIDTH = 80


def wrap(text: str, indent: str = "") -> str:
    """Breaks a text into lines of at most 80 columns."""
    return textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def shorten(text: str, width: int) -> str:
    """Makes one line of at most `width` characters that a terminal can print as they are."""
    line = escaped(text[: width + 1])
    return line if len(line) <= width else line[: width - 3] + "..."


def counted(n: int, thing: str) -> str:
    """So many things, such as "1 item" and "2 items"."""
    return f"{n} {thing}" if n == 1 else f"{n} {thing}s"


def table(rows: Sequence[Sequence[str]], align: str) -> list[str]:
    """Makes lines of columns two spaces apart, indented by two. align: < or > for each column."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(align))]
    lines = (
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, align, widths, strict=True)) for row in rows
    )
    return [f"  {line.rstrip()}" for line in lines]


def read_prompt(ctx: click.Context, prompt: str | None, file: Path | None) -> str:
    """The text of -p, or of -f, or of standard input, which read_text() reads."""
    if prompt is not None and file is not None:
        raise click.UsageError("expected -p or -f, found both", ctx)
    return read_text(ctx, file, "-p TEXT, -f FILE") if prompt is None else prompt


def read_text(ctx: click.Context, file: Path | None, options: str = "-f FILE") -> str:
    """The contents of a file or else of standard input, without a newline at the end.

    Args:
        ctx: of the command.
        file: None: standard input.
        options: how else a text could be given.

    Raises:
        UsageError: where standard input is a terminal, or closed.
        InvalidArgumentError: for what is not UTF-8.
    """
    if file is None and (sys.stdin is None or sys.stdin.isatty()):
        raise click.UsageError(f"no text: expected {options}, or text on standard input", ctx)
    if file and (stat.S_ISCHR(mode := file.stat().st_mode) or stat.S_ISBLK(mode)):
        raise InvalidArgumentError(f"{file}: expected a text, found a device: name a file or a pipe")
    data = file.read_bytes() if file else sys.stdin.buffer.read()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        name = f"the file {file}" if file else "standard input"
        raise InvalidArgumentError(
            f"expected UTF-8 in {name}, found the byte 0x{data[error.start]:02x} at offset {error.start}"
        ) from None
    return text.removesuffix("\n")


def write(text: str) -> None:
    """Writes lines for people to standard output, in UTF-8 whatever the locale."""
    _write(escaped(text, keep="\n\t") + "\n")


def write_json(value: Any, indent: int | None = 2) -> None:
    """Writes JSON to standard output. It is the same text wherever it goes, and safe on a terminal.

    Args:
        value: what JSON can express.
        indent: spaces of an indentation; None: all in one line.
    """
    _write(escaped_json(json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)) + "\n")


def write_data(text: str, keep: str = "") -> None:
    """Writes to standard output what programs use: as it is into a file or a pipe, escaped on a
    terminal.

    Args:
        text: without an end of line, unless it has one.
        keep: characters that a terminal may obey.
    """
    _write(escaped(text, keep) if sys.stdout.isatty() else text)


def _write(text: str) -> None:
    out = sys.stdout.buffer
    try:
        out.write(text.encode("utf-8", "surrogateescape"))  # names of files are bytes
        out.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"standard output: could not be written ({error.strerror}): choose another place") from error


def note(text: str) -> None:
    """Writes a line to standard error, if somebody is there to read it."""
    with suppress(OSError):
        click.echo(escaped(text), err=True)
