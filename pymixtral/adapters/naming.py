"""How one word names an adapter: `[NAME=]PATH[:SCALE]`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from pymixtral.errors import InvalidArgumentError

WANTED = "NAME=PATH[:SCALE] with a NAME of its own, such as tales=tales.gguf:0.5"
"""What messages expect."""


class NamedAdapter(NamedTuple):
    """An adapter that somebody named.

    Attributes:
        name: what requests call it.
        path: its file or folder.
        scale: what it counts.
    """

    name: str
    path: Path
    scale: float


def parse(text: str) -> NamedAdapter:
    """Read the name, the path and the scale of an adapter.

    Args:
        text: `[NAME=]PATH[:SCALE]`. Without NAME it is that of the folder, or of the file without .gguf;
            the scale is what stands after the last colon and is a number, else 1.

    Raises:
        InvalidArgumentError: for an empty name or path.
    """
    before, equals, after = text.partition("=")
    path = after if equals else text
    front, _, end = path.rpartition(":")
    scale = 1.0
    with suppress(ValueError):
        scale, path = (float(end), front) if front else (scale, path)
    name = before if equals else Path(path).name.removesuffix(".gguf")
    if not name or not path:
        raise InvalidArgumentError(f"expected {WANTED}, found {text!r}")
    return NamedAdapter(name, Path(path), scale)
