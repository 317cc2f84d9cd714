"""The search for names of tokens in a text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

MAX_NAME = 256
"""The most characters of a name that is found. Real names have some dozens. Names come from files,
so the limit bounds the time that one character of a text can take."""


class Names:
    """Finds the names of tokens in a text, from left to right.

    Of several names that begin at one place, the longest is found. A place takes one look-up for
    each length of the names that begin with its character, however many names there are. A regular
    expression of all names would try them one by one.

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
        """Look up a name.

        Args:
            name: such as "</s>".

        Returns:
            The token's id; None if no token has this name.
        """
        return self._ids.get(name)

    def name(self, id: int | None) -> str:
        """Look up the name of a token.

        Args:
            id: its id.

        Returns:
            The name; "" if there is none.
        """
        return next((name for name, found in self._ids.items() if found == id), "")

    def find(self, text: str, at: int = 0) -> Iterator[tuple[int, int, int]]:
        """Find the names in a text, without overlap.

        Args:
            text: what to search.
            at: where the search begins.

        Yields:
            (begin, end, token id) of each name, in order.
        """
        while match := self._first.search(text, at):
            begin = match.start()
            at = begin + 1
            for length in self._lengths[text[begin]]:
                name = text[begin : begin + length]  # shorter at the end of the text
                id = self._ids.get(name)
                if id is not None:
                    at = begin + len(name)
                    yield begin, at, id
                    break
