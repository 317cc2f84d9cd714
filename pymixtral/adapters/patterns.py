"""Regular expressions from strangers, in time that is a product and never a power.

PEFT matches the keys of alpha_pattern with Python's re, whose time can double with each character.
What people write there is a small part of re's language: names, dots, classes of characters,
alternatives, repetitions. That part is matched here by sets of positions; the rest is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

MAX_CHARACTERS = 1000
"""Of a pattern. EVA writes a pattern for each module, of some 60 characters."""

MAX_STEPS = 1 << 22
"""Of a pattern in all its matches, some seconds. What people write takes a thousand for a name."""

_MAX_DEPTH = 20
_CLASSES: dict[str, Callable[[str], bool]] = {
    "d": str.isdecimal,
    "w": lambda c: c.isalnum() or c == "_",
    "s": str.isspace,
}
_SPECIAL = frozenset("\\.^$*+?{}[]()|")

Ends = frozenset[int]


class PatternError(ValueError):
    """A pattern that is none, or is of the part of re's language that is not matched here."""


@dataclass(eq=False)
class _Node:
    """A part of a pattern: where it can end, given where it begins, noted for the text of a match."""

    ends_from: Callable[[str, int], Iterator[int]]
    count: Callable[[int], None]
    known: dict[int, Ends] = field(default_factory=dict)

    def ends(self, text: str, begin: int) -> Ends:
        if begin not in self.known:
            self.known[begin] = frozenset(self.ends_from(text, begin))
        found = self.known[begin]
        self.count(1 + len(found))  # whoever asked looks at each of them
        return found


class Pattern:
    """A pattern.

    Args:
        text: its text, as of re.

    Raises:
        PatternError: for what is not matched here.
    """

    def __init__(self, text: str) -> None:
        if len(text) > MAX_CHARACTERS:
            raise PatternError(f"expected a pattern of at most {MAX_CHARACTERS} characters, found {len(text)}")
        self._nodes: list[_Node] = []
        self._n_steps = 0
        self._text, self._pos = text, 0
        self._root = self._alternatives(0)
        if self._pos < len(text):
            raise self._error("no parenthesis that closes nothing")

    def matches(self, text: str, begins: Iterable[int] = (0,)) -> bool:
        """Match a text to its end.

        Args:
            text: the text.
            begins: places in it.

        Returns:
            Whether the pattern matches from one of these places to the end, as of re.

        Raises:
            PatternError: after MAX_STEPS, of this text and those before.
        """
        for node in self._nodes:
            node.known.clear()
        return any(len(text) in self._root.ends(text, begin) for begin in begins)

    def _error(self, expected: str) -> PatternError:
        return PatternError(f"expected {expected}, found {self._text[self._pos : self._pos + 10]!r} at {self._pos}")

    def _count(self, n: int) -> None:
        self._n_steps += n
        if self._n_steps > MAX_STEPS:
            raise PatternError(f"expected a pattern that matches all names in {MAX_STEPS} steps, found one of more")

    def _node(self, ends_from: Callable[[str, int], Iterator[int]]) -> _Node:
        self._nodes.append(_Node(ends_from, self._count))
        return self._nodes[-1]

    def _peek(self) -> str:
        return self._text[self._pos : self._pos + 1]

    def _take(self) -> str:
        character = self._peek()
        if not character:
            raise self._error("a whole pattern")
        self._pos += 1
        return character

    def _alternatives(self, depth: int) -> _Node:
        if depth > _MAX_DEPTH:
            raise self._error(f"at most {_MAX_DEPTH} parentheses in one another")
        parts = [self._sequence(depth)]
        while self._peek() == "|":
            self._pos += 1
            parts.append(self._sequence(depth))

        def ends_from(text: str, begin: int) -> Iterator[int]:
            for part in parts:
                yield from part.ends(text, begin)

        return parts[0] if len(parts) == 1 else self._node(ends_from)

    def _sequence(self, depth: int) -> _Node:
        parts: list[_Node] = []
        while self._peek() not in ("", "|", ")"):
            parts.append(self._repeated(self._atom(depth)))

        def ends_from(text: str, begin: int) -> Iterator[int]:
            at: set[int] = {begin}
            for part in parts:
                at = {end for one in at for end in part.ends(text, one)}
            yield from at

        return self._node(ends_from)

    def _atom(self, depth: int) -> _Node:
        character = self._take()
        if character == "(":
            if self._peek() == "?":
                self._pos += 1
                if self._take() != ":":
                    raise self._error("plain parentheses")
            inner = self._alternatives(depth + 1)
            if self._take() != ")":
                raise self._error("a closing parenthesis")
            return inner
        if character in ("^", "$"):

            def ends_from(text: str, begin: int) -> Iterator[int]:
                if begin == (0 if character == "^" else len(text)):
                    yield begin

            if self._peek() in ("*", "+", "?", "{"):
                raise self._error("no repetition of ^ or $")
            return self._node(ends_from)
        if character == ".":
            return self._one(lambda c: c != "\n")
        if character == "[":
            return self._one(self._set())
        if character == "\\":
            return self._one(self._escaped())
        if character in _SPECIAL:
            self._pos -= 1
            raise self._error("a character")
        return self._one(character.__eq__)

    def _one(self, accepts: Callable[[str], bool]) -> _Node:
        return self._node(
            lambda text, begin: iter((begin + 1,) if begin < len(text) and accepts(text[begin]) is True else ())
        )

    def _escaped(self) -> Callable[[str], bool]:
        character = self._take()
        if character in _CLASSES:
            return _CLASSES[character]
        if character.isalnum():
            raise self._error("no escape but \\d, \\w, \\s and those of signs")
        return character.__eq__

    def _set(self) -> Callable[[str], bool]:
        negated = self._peek() == "^"
        self._pos += negated
        parts: list[Callable[[str], bool]] = []
        while (character := self._take()) != "]" or not parts:
            if character == "[":
                raise self._error("no bracket in brackets")
            if character == "\\":
                parts.append(self._escaped())
                if self._peek() == "-" and self._text[self._pos + 1 : self._pos + 2] != "]":
                    raise self._error("no range that begins with an escape")
                continue
            if self._peek() == "-" and self._text[self._pos + 1 : self._pos + 2] not in ("]", ""):
                self._pos += 1
                last = self._take()
                if last == "\\" or last < character:
                    raise self._error("a range of characters")
                parts.append(lambda c, first=character, last=last: first <= c <= last)  # type: ignore[misc]
            else:
                parts.append(character.__eq__)
        return lambda c: any(part(c) is True for part in parts) != negated

    def _repeated(self, inner: _Node) -> _Node:
        character = self._peek()
        if character not in ("*", "+", "?"):
            if character == "{":
                raise self._error("*, + or ? to repeat")
            return inner
        self._pos += 1
        if self._peek() == "?":  # as few as possible: the same texts
            self._pos += 1
        if self._peek() in ("*", "+", "?", "{"):
            raise self._error("one repetition")

        def ends_from(text: str, begin: int) -> Iterator[int]:
            found: set[int] = set()
            new = {begin}
            while new:
                new = {end for one in new for end in inner.ends(text, one)} - found
                found |= new
                if character == "?":
                    break
            yield from found if character == "+" else found | {begin}

        return self._node(ends_from)
