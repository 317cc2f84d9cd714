"""Chunks of a file of lines, and the folder of their parts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pymixtral import OutputError
from pymixtral.bulk.lines import read_places
from pymixtral.bulk.prompts import parse_prompt
from pymixtral.cluster import chunks as module
from pymixtral.cluster.chunks import Chunk, Parts, cut


def write(path: Path, n: int, ending: str = "\n") -> Path:
    path.write_text("".join(json.dumps({"prompt": f"ö {i}"}, ensure_ascii=False) + ending for i in range(n)))
    return path


def cut_of(path: Path, most: int, key: str = "key") -> list[Chunk]:
    return list(cut(read_places(path, "prompt", key, parse_prompt), most))


@pytest.mark.parametrize(("n", "most"), [(0, 3), (1, 3), (3, 3), (4, 3), (17, 5), (5, 1)])
@pytest.mark.parametrize("ending", ["\n", "\n\n  \n"])
def test_chunks_have_each_line_once_and_are_read_from_their_places(
    tmp_path: Path, n: int, most: int, ending: str
) -> None:
    path = write(tmp_path / "p.jsonl", n, ending)
    found = cut_of(path, most)
    assert [chunk.number for chunk in found] == list(range((n + most - 1) // most))
    whole = [line for _, line in read_places(path, "prompt", "key", parse_prompt)]
    again = []
    for chunk in found:
        assert chunk.end - chunk.place.index == chunk.n_lines <= most
        lines = read_places(path, "prompt", "key", parse_prompt, chunk.place)
        again += [next(lines)[1] for _ in range(chunk.n_lines)]
    assert again == whole
    assert [line.index for line in whole] == list(range(n))


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", 3)
    plain = cut_of(path, 2)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    marked = cut_of(path, 2)
    assert [chunk.part for chunk in marked] == [chunk.part for chunk in plain]
    assert [chunk.place.offset - 3 for chunk in marked] == [chunk.place.offset for chunk in plain]


def test_the_name_of_a_part_depends_on_its_lines_and_on_the_key(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", 6)
    first = cut_of(path, 2)
    assert [a.part for a in cut_of(path, 2)] == [a.part for a in first]
    assert not {a.part for a in cut_of(path, 2, "other")} & {a.part for a in first}
    path.write_text(path.read_text().replace("ö 3", "ö 4"))
    assert [a.part == b.part for a, b in zip(cut_of(path, 2), first, strict=True)] == [True, False, True]


def test_a_chunk_is_what_its_row_says(tmp_path: Path) -> None:
    for chunk in cut_of(write(tmp_path / "p.jsonl", 9), 4):
        assert Chunk.of_row(chunk.row()) == chunk


def test_the_folder_keeps_what_is_not_ours(tmp_path: Path) -> None:
    (chunk,) = cut_of(write(tmp_path / "p.jsonl", 2), 4)
    parts = Parts(tmp_path / "texts.jsonl")
    assert parts.names() == set()
    parts.remove()
    parts.make()
    parts.make()
    parts.publish("ab")
    parts.publish("cd")
    (parts.path / chunk.part).write_bytes(b"1\n2\n")
    temporary = parts.path / ".pymixtral-0123abcd-0123456789abcdef.tmp"  # of a node that was lost
    temporary.write_bytes(b"1")
    (parts.path / "notes.txt").write_text("mine")
    assert parts.path == tmp_path / "texts.jsonl.parts"
    assert parts.names() == {chunk.part}
    assert parts.is_shared("cd")
    assert list(parts.lines(chunk)) == [b"1\n", b"2\n"]
    parts.remove()
    assert [path.name for path in parts.path.iterdir()] == ["notes.txt"]
    (parts.path / "notes.txt").unlink()
    parts.remove()
    assert not parts.path.exists()


def test_a_folder_that_another_node_does_not_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SECONDS", 0.0)
    (chunk,) = cut_of(write(tmp_path / "p.jsonl", 2), 4)
    parts = Parts(tmp_path / "texts.jsonl")
    assert not parts.is_shared("ab")
    parts.make()
    parts.publish("ab")
    assert not parts.is_shared("cd")
    with pytest.raises(OutputError, match="put the output into a folder that all nodes share"):
        list(parts.lines(chunk))


def test_a_part_that_is_no_file(tmp_path: Path) -> None:
    """A pipe, too, which would be waited for without an end."""
    (chunk,) = cut_of(write(tmp_path / "p.jsonl", 2), 4)
    parts = Parts(tmp_path / "texts.jsonl")
    parts.make()
    os.mkfifo(parts.path / chunk.part)
    with pytest.raises(OutputError, match="expected a file of records, found something else"):
        list(parts.lines(chunk))


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl.parts").write_text("a file")
    with pytest.raises(OutputError, match=r"texts\.jsonl\.parts: expected to make a folder"):
        Parts(tmp_path / "texts.jsonl").make()
