"""Checkpoints in numbered files: all are there, or none is used."""

from __future__ import annotations

import re
from pathlib import Path

from pymixtral.errors import CheckpointError
from pymixtral.files.shards import MAX_SHARDS


def numbered_files(directory: Path, pattern: re.Pattern[str]) -> tuple[Path, ...]:
    """The files of a directory that have numbers.

    Args:
        directory: where they are.
        pattern: of their names, with groups for the number and the count.

    Returns:
        All files in order, none where no name matches.

    Raises:
        CheckpointError: some are missing, of another checkpoint, or too many.
    """
    matches = (match for path in directory.iterdir() if (match := pattern.fullmatch(path.name)))
    found = sorted((int(match[1]), int(match[2]), match[0]) for match in matches)
    if not found:
        return ()
    first, count, _ = found[0]
    if count > MAX_SHARDS:
        raise CheckpointError(
            f"{directory / found[0][2]}: expected at most {MAX_SHARDS} files, found {count} in its name"
        )
    # Some writers count from 0, some from 1.
    if first > 1 or [(number, total) for number, total, _ in found] != [(first + i, count) for i in range(count)]:
        names = ", ".join(name for *_, name in found[:4])
        raise CheckpointError(
            f"{directory}: expected all files of one checkpoint, {count} of them, found {len(found)}, such as {names}: "
            "download it again"
        )
    return tuple(directory / name for *_, name in found)
