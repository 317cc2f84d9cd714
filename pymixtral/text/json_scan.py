"""JSON that arrives character by character: where it ends, and where it stops being JSON.

Source: RFC 8259.
"""

from __future__ import annotations

import re

MAX_DEPTH = 100
"""Levels of arrays and objects in a value."""

MAX_WORD = 400
"""Characters of a number."""

_SPACE = " \t\n\r"
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_NUMBER_BEGINS = re.compile(r"-?((0|[1-9][0-9]*)(\.([0-9]+([eE]([+-]?[0-9]*)?)?)?|[eE]([+-]?[0-9]*)?)?)?")
_LITERALS = ("true", "false", "null")
_HEX = "0123456789abcdefABCDEF"


class JsonScanner:
    """A value of JSON that is fed one character at a time.

    Attributes:
        depth: arrays and objects that are open.
        done: whether the value has ended. Numbers and literals at the top end only with the text,
            so the top is an array, an object or a string.
        at_key: whether the string that is read, or that may begin, is a key of an object.
        in_string: whether a string is open.
    """

    def __init__(self) -> None:
        self._open: list[str] = []
        self._wants = "value"  # value, first (of an array), key, first key, colon, or next
        self._word = ""  # of a number or literal
        self._escape = 0  # characters of an escape that are still to come; -1: its first
        self.in_string = False
        self.at_key = False
        self.done = False

    @property
    def depth(self) -> int:
        """The number of open arrays and objects."""
        return len(self._open)

    @property
    def in_word(self) -> bool:
        """Whether a number or a literal is open."""
        return bool(self._word)

    @property
    def wants_value(self) -> bool:
        """Whether a value may begin here."""
        return self._wants in ("value", "first") and not self.in_string and not self._word

    def feed(self, character: str) -> bool:
        """Take the next character.

        Args:
            character: one character, which belongs to the value.

        Returns:
            Whether the value may still be JSON.
        """
        if self.in_string:
            return self._in_string(character)
        if self._word:
            word = self._word + character
            if _NUMBER_BEGINS.fullmatch(word) or any(literal.startswith(word) for literal in _LITERALS):
                self._word = word
                return len(word) <= MAX_WORD
            if not (_NUMBER.fullmatch(self._word) or self._word in _LITERALS):
                return False
            self._word = ""
            self._ended()
        if character in _SPACE:
            return True
        return not self.done and self._token(character)

    def _token(self, character: str) -> bool:
        wants = self._wants
        if character in "]}":
            if not self._open or character != self._open[-1] or wants not in ("next", "first", "first key"):
                return False
            if (wants == "first") != (character == "]") and wants != "next":
                return False
            self._open.pop()
            self._ended()
        elif wants in ("value", "first"):
            return self._begins(character)
        elif wants in ("key", "first key"):
            if character != '"':
                return False
            self.in_string = self.at_key = True
        elif wants == "colon":
            self._wants = "value"
            return character == ":"
        else:
            self._wants = "key" if self._open and self._open[-1] == "}" else "value"
            return character == ","
        return True

    def _begins(self, character: str) -> bool:
        if character == '"':
            self.in_string = True
        elif character in "[{":
            self._open.append("]" if character == "[" else "}")
            self._wants = "first" if character == "[" else "first key"
            return len(self._open) <= MAX_DEPTH
        elif character in "-0123456789tfn":
            self._word = character
        else:
            return False
        return True

    def _in_string(self, character: str) -> bool:
        if self._escape == -1:
            self._escape = 4 if character == "u" else 0
            return character in '"\\/bfnrtu'
        if self._escape:
            self._escape -= 1
            return character in _HEX
        if character == "\\":
            self._escape = -1
        elif character == '"':
            self.in_string = False
            if self.at_key:
                self.at_key, self._wants = False, "colon"
            else:
                self._ended()
        return character >= " "

    def _ended(self) -> None:
        self._wants = "next"
        self.done = not self._open
