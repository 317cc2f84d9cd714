"""The folder of which requests may load adapters: no name of a client leads out of it."""

from __future__ import annotations

import stat
from pathlib import Path

_MOST_FILES = 256
"""In the folder of an adapter, which has some ten: each is looked at."""


def adapter_path(folder: Path, given: str) -> Path | None:
    """Find an adapter that a client names.

    Whatever the path goes through, such as links and "..", the file that it leads to lies below the
    folder, and so do all files of a folder that it leads to, and shards beside it. Whoever may write
    there could change that between this and the moment when they are read, and could put any adapter
    there anyway.

    Args:
        folder: the operator's.
        given: a path in it, or an absolute one.

    Returns:
        The path without links; None if there is no such file or folder below `folder`. What lies
        elsewhere is not told from what is nowhere.
    """
    try:
        root = folder.resolve(strict=True)
        path = (root / given).resolve(strict=True)
        if path == root or not _is_below(path, root):
            return None
        others = path.rglob("*") if path.is_dir() else path.parent.glob("*-of-*") if "-of-" in path.name else ()
        for i, other in enumerate(others):  # files that are read with it: of a folder, or shards of one name
            if i == _MOST_FILES or not _is_below(other.resolve(strict=True), root):
                return None
    except (OSError, ValueError, RuntimeError):  # ValueError: of a NUL; RuntimeError: of links in a circle
        return None
    return path


def _is_below(path: Path, root: Path) -> bool:
    """Whether a path without links is a file or a folder below another one; nothing else, such as a pipe."""
    mode = path.stat().st_mode
    return path.is_relative_to(root) and (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
