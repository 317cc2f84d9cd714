"""The files of a checkpoint that say something of its tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pymixtral.arguments import shown
from pymixtral.errors import CheckpointError
from pymixtral.files.strict_json import read_object


class SideFiles:
    """The JSON files in a directory, each read once.

    Args:
        directory: where they may be.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._read: dict[str, dict[str, Any]] = {}

    def path(self, name: str) -> Path:
        """Where a file is, or would be."""
        return self.directory / name

    def object(self, name: str) -> dict[str, Any]:
        """The object in a file, empty where there is no file.

        Raises:
            CheckpointError: it is broken.
        """
        if name not in self._read:
            path = self.path(name)
            self._read[name] = read_object(path) if path.exists() else {}
        return self._read[name]

    def flag(self, name: str, key: str) -> bool | None:
        """A value that is true or false; None where the file does not say, or has null.

        Raises:
            CheckpointError: it is anything else.
        """
        value = self.object(name).get(key)
        if value is not None and not isinstance(value, bool):
            raise CheckpointError(f"{self.path(name)}: {key}: expected true or false, found {shown(value)}")
        return value


def content(token: object) -> str | None:
    """The text of a token that a file names, by itself or in an object; None for anything else."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def is_text(value: object) -> bool:
    """Whether a value is a text that UTF-8 can express; JSON can escape halves of surrogate pairs."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)
