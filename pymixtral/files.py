"""Files that are complete or not there."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(dest: Path) -> Iterator[Path]:
    """A temporary path beside `dest` that becomes `dest` when the block succeeds and disappears when it does not.

    After a crash at any moment `dest` is absent, old or complete.
    """
    temporary = dest.with_name(f".pymixtral-{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(dest)
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(dest.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
