"""Where a text ends before its model ends it."""

from __future__ import annotations

from collections.abc import Sequence

from pymixtral.arguments import shown
from pymixtral.errors import InvalidArgumentError


class StopStrings:
    """Lets text through up to the first place where one of some strings ends, however the text is cut into pieces.

    What could be the beginning of a stop string is held back until it is known.

    Args:
        strings: one, several, or None for none.

    Raises:
        InvalidArgumentError: for an empty string, and for what is no string.
    """

    def __init__(self, strings: str | Sequence[str] | None) -> None:
        found = [strings] if isinstance(strings, str) else list(strings) if isinstance(strings, (list, tuple)) else strings
        if found is None:
            found = []
        if not isinstance(found, list) or not all(isinstance(string, str) and string for string in found):
            raise InvalidArgumentError(f"expected stop to be a string or a list of strings, none of them empty, found {shown(strings)}")
        self.strings: list[str] = found
        self._longest = max(map(len, found), default=0)
        self._held = ""

    def __bool__(self) -> bool:
        return bool(self.strings)

    def push(self, text: str) -> tuple[str, bool]:
        """The text that is certain after `text` has come, and whether a stop string ended it; then nothing may follow."""
        text = self._held + text
        found = [(at + len(string), at) for string in self.strings if (at := text.find(string)) >= 0]
        if found:
            return text[: min(found)[1]], True
        n_held = next((n for n in range(min(len(text), self._longest - 1), 0, -1) if self._begins(text[-n:])), 0)
        certain = len(text) - n_held
        self._held = text[certain:]
        return text[:certain], False

    def flush(self) -> str:
        """The text held back, when no more comes."""
        held, self._held = self._held, ""
        return held

    def _begins(self, text: str) -> bool:
        return any(string.startswith(text) for string in self.strings)
