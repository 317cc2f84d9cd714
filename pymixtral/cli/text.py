"""Texts that are read, and lines that fit 80 columns."""

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
    """At most 80 columns."""
    return textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def shorten(text: str, width: int) -> str:
    """One line of at most `width` characters that a terminal can print as they are."""
    escaped = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text[: width + 1])
    return escaped if len(escaped) <= width else escaped[: width - 3] + "..."


def slow_note(types: Sequence[str]) -> str:
    """What to know of a model with tensors of these types, Mixtral.slow_types."""
    one = len(types) == 1
    return f"the type{'' if one else 's'} {', '.join(types)} {'has' if one else 'have'} no fast kernels here, so expect a low speed"


def table(rows: Sequence[Sequence[str]], align: str) -> list[str]:
    """Lines of columns two spaces apart, indented by two. align: < or > for each column."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(align))]
    lines = ("  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, align, widths, strict=True)) for row in rows)
    return [f"  {line.rstrip()}" for line in lines]


def read_text(ctx: click.Context, file: Path | None, nothing: str = "no text: expected -f FILE, or text on standard input") -> str:
    """The contents of a file or else of standard input, without a newline at the end. Raises UsageError with the message `nothing` if
    standard input is a terminal, InvalidArgumentError for what is not UTF-8."""
    if file is None and sys.stdin.isatty():
        raise click.UsageError(nothing, ctx)
    data = file.read_bytes() if file else sys.stdin.buffer.read()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        from pymixtral.errors import InvalidArgumentError

        name = f"the file {file}" if file else "standard input"
        raise InvalidArgumentError(f"expected UTF-8 in {name}, found the byte 0x{data[error.start]:02x} at offset {error.start}") from None
    return text.removesuffix("\n")


def write(text: str) -> None:
    """A line to standard output, in UTF-8 whatever the locale."""
    click.echo(text.encode("utf-8", "backslashreplace"))


def write_json(value: Any) -> None:
    write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))
