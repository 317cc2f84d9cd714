"""Text that comes in, and lines of 80 columns that go out."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

WIDTH = 80


def wrap(text: str, indent: str = "") -> str:
    """Breaks a text into lines of at most 80 columns."""
    return textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def shorten(text: str, width: int) -> str:
    """Makes one line of at most `width` characters that a terminal can print as they are."""
    escaped = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text[: width + 1])
    return escaped if len(escaped) <= width else escaped[: width - 3] + "..."


def slow_note(types: Sequence[str]) -> str:
    """What a user should know of a model with tensors of these types, those of Mixtral.slow_types."""
    one = len(types) == 1
    return f"the type{'' if one else 's'} {', '.join(types)} {'has' if one else 'have'} no fast kernels here, so expect a low speed"


def table(rows: Sequence[Sequence[str]], align: str) -> list[str]:
    """Makes lines of columns two spaces apart, indented by two. align: < or > for each column."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(align))]
    lines = ("  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, align, widths, strict=True)) for row in rows)
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
        UsageError: where standard input would be a terminal.
        InvalidArgumentError: for what is not UTF-8.
    """
    if file is None and sys.stdin.isatty():
        raise click.UsageError(f"no text: expected {options}, or text on standard input", ctx)
    data = file.read_bytes() if file else sys.stdin.buffer.read()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        from pymixtral.errors import InvalidArgumentError

        name = f"the file {file}" if file else "standard input"
        raise InvalidArgumentError(f"expected UTF-8 in {name}, found the byte 0x{data[error.start]:02x} at offset {error.start}") from None
    return text.removesuffix("\n")


def write(text: str) -> None:
    """Writes a line to standard output, in UTF-8 whatever the locale."""
    click.echo(text.encode("utf-8", "backslashreplace"))


def write_json(value: Any) -> None:
    write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))
