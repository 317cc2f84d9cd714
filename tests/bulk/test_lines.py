"""Files of lines: read in little memory, each with its number, and refused with it."""

from __future__ import annotations

import hashlib
import os
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymixtral import InvalidArgumentError, UnsupportedError
from pymixtral.bulk import lines as module
from pymixtral.bulk.lines import Line, json_line, read_lines

BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Word(Line):
    data: bytes


def parse(data: bytes, number: int, index: int, digest: str) -> Word:
    if data.startswith(b"no"):
        raise UnsupportedError("expected a yes, found a no")
    return Word(number, index, digest, data)


def read(path: Path, data: bytes, key: str = "") -> list[Word]:
    path.write_bytes(data)
    return list(read_lines(path, "word", key, parse))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lines") / "lines.jsonl"


@given(st.lists(st.sampled_from([b"a", b" b ", b"", b"\t", b"c\r", BOM, BOM + b"d"])), st.booleans(), st.booleans())
def test_lines_that_are_not_empty_are_read_in_order(path: Path, lines: list[bytes], ended: bool, marked: bool) -> None:
    data = b"\n".join(lines) + b"\n" * ended
    found = read(path, BOM * (marked or data.startswith(BOM)) + data.removeprefix(BOM))
    kept = [(number, line) for number, line in enumerate(data.removeprefix(BOM).split(b"\n"), 1) if line.strip()]
    assert [(word.number, word.data.removesuffix(b"\n")) for word in found] == kept
    assert [word.index for word in found] == list(range(len(kept)))


@pytest.mark.parametrize("data", [b"", BOM, BOM[:2] + b"a", BOM + b"\n\n", BOM + BOM])
def test_one_byte_order_mark_may_stand_at_the_beginning(path: Path, data: bytes) -> None:
    rest = data.removeprefix(BOM)
    assert [word.data for word in read(path, data)] == ([rest] if rest.strip() else [])


def test_a_line_that_is_refused_is_named(path: Path) -> None:
    with pytest.raises(InvalidArgumentError) as info:
        read(path, b"yes\n\nno\n")
    assert str(info.value) == f"{path}, line 3: expected a yes, found a no"


def test_a_line_without_an_end_takes_little_memory(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b"yes\n")
        file.truncate(1 << 30)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidArgumentError, match=r"line 2: expected a line of at most 16777216 .* cut the word"):
            list(read_lines(path, "word", "", parse))
        assert tracemalloc.get_traced_memory()[1] < 4 * module.MAX_LINE
    finally:
        tracemalloc.stop()


def test_many_lines_take_little_memory(path: Path) -> None:
    path.write_text('{"prompt": "Once upon a time", "max_tokens": 5}\n' * 50_000)
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_lines(path, "word", "", parse)) == 50_000
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_what_cannot_be_read_twice_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (
        os.fdopen(os.open(tmp_path / "pipe", os.O_RDWR)),
        pytest.raises(InvalidArgumentError, match=r"expected a file of words that can be read twice.* save the words"),
    ):
        list(read_lines(tmp_path / "pipe", "word", "", parse))


def test_digests_tell_lines_and_keys_apart_and_nothing_else(path: Path) -> None:
    line = b'{"prompt": "a", "seed": 1}'
    (plain,), (spaced,), (keyed,) = read(path, line), read(path, b" " + line + b"\r\n"), read(path, line, "key")
    (marked,), (other,) = read(path, BOM + line), read(path, line.replace(b"1", b"2"))
    assert plain.head == spaced.head == marked.head
    assert len({plain.head, keyed.head, other.head}) == 3
    assert keyed.head == hashlib.sha256(b"key\0" + line).hexdigest()[:32]  # as in files that are there


def test_json_lines_are_safe_on_a_terminal() -> None:
    text = json_line({"text": "a\n\x1b[2J\u202e\ud800é"})
    assert text == '{"text": "a\\n\\u001b[2J\\u202e\\ud800é"}'
