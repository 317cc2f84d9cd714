"""Names of tokens, found in text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

MAX_NAME = 256
"""Characters. Longer names are never found, which bounds what one character of a text can cost: names come from files."""


class Names:
    """Finds the names of some tokens in a text, from left to right; of several that begin at one place, the longest.

    A place costs a look-up for each length that names with its first character have, however many names
    there are. An alternation of them in a regular expression would try them one by one.

    Args:
        ids: name to token id; no name is empty.
    """

    def __init__(self, ids: Mapping[str, int]) -> None:
        self._ids = {name: id for name, id in ids.items() if len(name) <= MAX_NAME}
        lengths: dict[str, set[int]] = {}
        for name in self._ids:
            lengths.setdefault(name[0], set()).add(len(name))
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}
        self._first = re.compile(f"[{''.join(map(re.escape, self._lengths))}]" if lengths else "(?!)")

    def id(self, name: str) -> int | None:
        """The token of a name, None if there is none."""
        return self._ids.get(name)

    def find(self, text: str) -> Iterator[tuple[int, int, int]]:
        """Where names stand in a text, without overlap.

        Yields:
            Begin, end and token id.
        """
        at = 0
        while match := self._first.search(text, at):
            begin = match.start()
            at = begin + 1
            for length in self._lengths[text[begin]]:
                id = self._ids.get(text[begin : begin + length])
                if id is not None:
                    at = begin + length
                    yield begin, at, id
                    break
