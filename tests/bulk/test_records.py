"""Files of texts: cut anywhere they are gone on with, and what is something else is left alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymixtral import OutputError
from pymixtral.bulk import records as module
from pymixtral.bulk.lines import Line
from pymixtral.bulk.records import Record, Records

PROMPTS = [Line(i + 1, i, f'{{"index": {i}, "digest": "{i:032x}", "id": "é{i}"') for i in range(4)]
RECORDS = [
    Record(line, {"usage": 3, "error": {"type": "X"}}, failed=True)
    if line.index == 1
    else Record(line, {"text": "ö}", "error": None})
    for line in PROMPTS
]
LINES = [record.text for record in RECORDS]
WHOLE = "".join(LINES).encode()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("records") / "texts.jsonl"


def resume(path: Path, lines: list[Line] = PROMPTS) -> tuple[int, int]:
    """Goes on with a file: how many records there were, and errors among them."""
    with Records(path, force=False) as records:
        n, n_failed = records.skip(iter(lines), "prompt")
        for line in LINES[n:]:
            records.append(line)
    return n, n_failed


@given(st.integers(0, len(WHOLE)), st.sampled_from([12, 13, 50, 1 << 20]))
def test_a_file_that_was_cut_anywhere_is_completed(path: Path, cut: int, piece: int) -> None:
    path.write_bytes(WHOLE[:cut])
    n_complete = WHOLE[:cut].count(b"}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PIECE", piece)
        assert resume(path) == (n_complete, int(n_complete > 1))
    assert path.read_bytes() == WHOLE


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"my notes", 1),
        (b"my notes\n", 1),
        (b"\n", 1),
        (LINES[0].encode() + b"\n", 2),
        (LINES[1].encode(), 1),
        (LINES[0].encode() + LINES[2].encode(), 2),
        (LINES[0].encode() + LINES[2].encode()[:-4], 2),
        (LINES[0].encode() + LINES[1].encode()[:-3] + b"\n", 2),
        (LINES[0].encode() + b"\0" * 9, 2),
        (WHOLE + LINES[0].encode(), 5),
        (WHOLE + b"{", 5),
    ],
)
def test_anything_else_is_kept_and_named(path: Path, content: bytes, line: int) -> None:
    path.write_bytes(content)
    with pytest.raises(OutputError, match=rf"texts.jsonl, line {line}: expected .* replace it with force=True"):
        resume(path)
    assert path.read_bytes() == content


def test_a_record_is_a_line_whose_error_stands_first_if_it_failed() -> None:
    assert LINES[1] == f'{PROMPTS[1].head}, "error": {{"type": "X"}}, "usage": 3}}\n'
    assert LINES[2] == f'{PROMPTS[2].head}, "text": "ö}}", "error": null}}\n'
    assert [(record.index, record.failed) for record in RECORDS] == [(0, False), (1, True), (2, False), (3, False)]


def test_what_was_expected_is_said_in_the_words_of_the_file(path: Path) -> None:
    path.write_text("my notes")
    with Records(path) as records:
        with pytest.raises(OutputError, match=r"expected the record of request 0, .* same model, requests and options"):
            records.skip(iter(PROMPTS), "request")
        with pytest.raises(OutputError, match="expected no more records than requests"):
            records.skip(iter([]), "request")


def test_force_begins_anew(path: Path) -> None:
    path.write_bytes(b"my notes")
    with Records(path, force=True) as records:
        assert records.skip(iter(PROMPTS), "prompt") == (0, 0)
    assert path.read_bytes() == b""


def test_two_programs_do_not_write_one_file(path: Path) -> None:
    path.write_bytes(LINES[0].encode())
    program = "import fcntl, sys; file = open(sys.argv[1], 'a'); fcntl.flock(file, fcntl.LOCK_EX); print(); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout
        other.stdout.readline()
        for force in (False, True):
            with pytest.raises(OutputError, match="another program does"):
                Records(path, force=force)
        other.communicate(b"\n")
    assert path.read_bytes() == LINES[0].encode()
    assert resume(path) == (1, 0)


@pytest.fixture
def full() -> Path:
    path = Path("/dev/full")
    if not path.exists():
        pytest.skip("no /dev/full here")
    return path


def test_a_full_disk_is_an_error_that_says_what_to_do(full: Path) -> None:
    with pytest.raises(OutputError, match=f"{os.strerror(28)}.*free some space"), Records(full, force=False) as records:
        records.append(LINES[0])


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="expected to write it"):
        Records(tmp_path, force=False)
