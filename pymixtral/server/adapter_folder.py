"""The folder of which requests may load adapters: no name of a client leads out of it."""

from __future__ import annotations

import stat
from pathlib import Path

from pymixtral.arguments import shown

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


def told(error: Exception, folder: Path, path: Path, given: str) -> str:
    """Write an error of loading for a client, who need not know where the folder is.

    Args:
        error: it may name the adapter, files of it and beside it, and the folder.
        folder: the operator's.
        path: of the adapter, as adapter_path() returned it.
        given: what the client calls it.

    Returns:
        What the error says, with paths that begin in the folder; less where a path is cut.
    """
    root = str(folder.resolve())
    message = str(error).replace(str(path), given).replace(f"{root}/", "").replace(root, "the server's folder")
    if shown(root)[1:-1].removesuffix("..") in message:  # long names are cut, strange ones are escaped
        return f"{given}: expected an adapter that can be read, found another one: check its files"
    return message.encode("utf-8", "backslashreplace").decode()  # names of files need not be UTF-8
