"""What a terminal would obey is shown by its number."""

from __future__ import annotations

import json
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from pymixtral.escapes import escaped, escaped_json

ANY = st.text(st.characters(exclude_categories=()) | st.sampled_from("\n\t\r\x1b\x7f\x85\x9b\u2028\u202e\u2066\udcff"))


def obeyed(text: str) -> str:
    """The characters of a text that are controls, ends of lines, overrides or surrogates."""
    return "".join(
        char
        for char in text
        if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")
        or unicodedata.bidirectional(char) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    )


@given(ANY)
def test_nothing_that_a_terminal_obeys_is_left(text: str) -> None:
    assert obeyed(escaped(text)) == ""
    assert set(obeyed(escaped(text, keep="\n\t"))) <= {"\n", "\t"}
    if not obeyed(text):
        assert escaped(text) == text


@given(ANY)
def test_json_is_safe_and_says_the_same(text: str) -> None:
    shown = escaped_json(json.dumps([text, text], indent=2, ensure_ascii=False))
    assert obeyed(shown) == "\n\n\n"
    assert json.loads(shown) == [text, text]


def test_the_numbers_are_those_of_python() -> None:
    assert escaped("a\n\x1b[2J\x9b\u202e\udcff\u4f60") == "a\\n\\x1b[2J\\x9b\\u202e\\udcff\u4f60"
