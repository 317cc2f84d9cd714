"""Progress bars and warnings on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from tqdm import tqdm

from pymixtral.escapes import escaped


class _Bar(tqdm):  # type: ignore[misc]  # it has no types
    monitor_interval = 0  # no thread that watches over slow bars: there may be none left to start


def progress_bar(
    iterable: Iterable[Any] | None = None, *, shown: bool, label: str | None = None, **settings: Any
) -> tqdm[Any]:
    """Make a bar that appears only where standard error is a terminal.

    Args:
        iterable: what it counts; None: its update() is called.
        shown: whether it may appear at all.
        label: stands before it; it may come from a stranger.
        **settings: others of tqdm: total, unit, initial.
    """
    disable = None if shown and sys.stderr is not None else True
    return _Bar(iterable, desc=label and escaped(label), disable=disable, **settings)


def warn(text: str) -> None:
    """Write a line that says what a user should know, above the bars."""
    if sys.stderr is not None:
        with suppress(OSError):  # nobody to tell
            tqdm.write(f"warning: {escaped(text)}", file=sys.stderr)
