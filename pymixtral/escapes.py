"""Text of strangers, made fit for a terminal.

File names, metadata, tokens and generated text can hold characters that a terminal obeys: escape
sequences, or marks that turn the direction of the line. All of them are shown by their numbers.
"""

from __future__ import annotations

import re

_OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters (C0, DEL, C1), the ends of lines and paragraphs, overrides of the direction, and
lone surrogates, which are the bytes of a file name that is not UTF-8."""


def escaped(text: str, keep: str = "") -> str:
    r"""Show what a terminal would obey as Python does: \x1b, \n, \u202e.

    Args:
        text: any text.
        keep: those of these characters that stay as they are, such as "\n\t".
    """
    return _OBEYED.sub(lambda match: match[0] if match[0] in keep else match[0].encode("unicode_escape").decode(), text)


def escaped_json(text: str) -> str:
    """Show the same in a JSON text, where newlines stand between values alone, as JSON does."""
    return _OBEYED.sub(lambda match: match[0] if match[0] == "\n" else f"\\u{ord(match[0]):04x}", text)
