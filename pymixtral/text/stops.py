"""Stop strings, which end a text before its model does."""

from __future__ import annotations

from collections.abc import Sequence

from pymixtral.arguments import shown
from pymixtral.errors import InvalidArgumentError


class StopStrings:
    """A filter of text that arrives in pieces, which ends it before the first stop string.

    The first stop string is the one whose end comes first. Text that could be the beginning of a
    stop string is held back until that is known, so the result does not depend on the pieces.

    Args:
        strings: one or several stop strings; None: none.

    Attributes:
        strings: the stop strings.

    Raises:
        InvalidArgumentError: for an empty string, and for anything but strings.
    """

    def __init__(self, strings: str | Sequence[str] | None) -> None:
        found = (
            [strings] if isinstance(strings, str) else list(strings) if isinstance(strings, (list, tuple)) else strings
        )
        if found is None:
            found = []
        if not isinstance(found, list) or not all(isinstance(string, str) and string for string in found):
            raise InvalidArgumentError(
                f"expected stop to be a string or a list of strings, none of them empty, found {shown(strings)}"
            )
        self.strings: list[str] = found
        self._longest = max(map(len, found), default=0)
        self._held = ""

    def __bool__(self) -> bool:
        return bool(self.strings)

    def push(self, text: str) -> tuple[str, str | None]:
        """Take the next piece of the text.

        Args:
            text: the piece.

        Returns:
            The text that is now certain, and the stop string that has ended it, or None. After that
            string nothing may follow.
        """
        text = self._held + text
        found = [(at + len(string), at, string) for string in self.strings if (at := text.find(string)) >= 0]
        if found:
            _, at, string = min(found)
            return text[:at], string
        n_held = next((n for n in range(min(len(text), self._longest - 1), 0, -1) if self._begins(text[-n:])), 0)
        certain = len(text) - n_held
        self._held = text[certain:]
        return text[:certain], None

    def flush(self) -> str:
        """End the text.

        Returns:
            The text that was held back.
        """
        held, self._held = self._held, ""
        return held

    def _begins(self, text: str) -> bool:
        return any(string.startswith(text) for string in self.strings)
