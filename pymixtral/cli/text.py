"""Numbers as people read them, and lines that fit 80 columns. GB is 10^9 bytes, as in file listings and bandwidths."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from typing import Any

import click

WIDTH = 80


def show_bytes(n: float) -> str:
    """Three or four digits: 131.1 kB, 28.4 GB."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= 0.9995 * size:
            return f"{n / size:.2f} {unit}" if n < 9.995 * size else f"{n / size:.1f} {unit}"
    return f"{n:.0f} B"


def show_count(n: float) -> str:
    """46.7B, 131.1M, 266.2K."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if n >= 0.9995 * size:
            return f"{n / size:.1f}{unit}"
    return f"{n:.0f}"


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


def write(text: str) -> None:
    """A line to standard output, in UTF-8 whatever the locale."""
    click.echo(text.encode("utf-8", "backslashreplace"))


def write_json(value: Any) -> None:
    write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))
