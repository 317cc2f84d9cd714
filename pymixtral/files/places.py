"""Where the files of a checkpoint may lie: nothing else is opened, whatever links a download has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pymixtral.errors import CheckpointError, PymixtralError
from pymixtral.files.kinds import named


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Names the checkpoint where the system refuses to look at its files.

    Args:
        path: the checkpoint.

    Raises:
        CheckpointError: where the block raises an OSError of the system.
    """
    try:
        yield
    except PymixtralError:  # OutputError is an OSError too
        raise
    except OSError as error:
        raise CheckpointError(
            f"{named(path)}: cannot be read ({error.strerror}): check the path and its permissions"
        ) from None


def check_place(path: Path) -> None:
    """Refuses a file of a checkpoint that is none, or lies elsewhere.

    A link may lead to a file in the checkpoint's directory, or, in Hugging Face's cache, from
    snapshots/REVISION to blobs of the same model. Any other could make a private file a part of
    what is published.

    Args:
        path: the file, in the checkpoint's directory.

    Raises:
        CheckpointError: it is missing, no regular file, or a link to another place.
    """
    try:
        real = Path(os.path.realpath(path, strict=True))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        link = ", where a link leads: download it again" if path.is_symlink() else ""
        raise CheckpointError(f"{named(path)}: cannot be read ({reason}{link})") from None
    home = Path(os.path.realpath(path.parent))
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    if not real.is_relative_to(home) and real.parent != blobs:
        raise CheckpointError(
            f"{named(path)}: expected a file of the checkpoint, found a link to {named(real)}, outside its directory: "
            "put the file itself there, if you trust it"
        )
    if not real.is_file():  # opening a pipe would wait for its writer, reading a device never end
        raise CheckpointError(f"{named(path)}: expected a file, found something that is not a regular one")
