"""Files that grow: what was written is there, half a line is dropped, and nobody else writes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pymixtral import OutputError
from pymixtral.files.growing import GrowingFile


def test_a_file_grows_behind_what_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    with GrowingFile(path) as file:
        file.append("one\n")
        file.append("tw")
    with GrowingFile(path) as file:
        with file.reading() as there:
            assert there.readlines() == [b"one\n", b"tw"]
        file.cut(4)
        file.append("zwölf\n")
    assert path.read_text(encoding="utf-8") == "one\nzwölf\n"
    with GrowingFile(path, force=True) as file:
        file.append("three\n")
    assert path.read_text(encoding="utf-8") == "three\n"


def test_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    with GrowingFile(path) as file:
        file.append("one\n")
        for force in (False, True):
            with pytest.raises(OutputError, match="lines: expected a file that nobody else writes"):
                GrowingFile(path, force=force)
    assert path.read_bytes() == b"one\n"
    GrowingFile(path).close()


def test_the_first_error_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, "broken disk")

    def write(error: BaseException | None) -> None:
        with GrowingFile(tmp_path / "lines") as file:
            file.append("one\n")
            if error:
                raise error

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match=r"lines: expected to write it, found an error \(broken disk\)"):
        write(None)
    with pytest.raises(KeyboardInterrupt):
        write(KeyboardInterrupt())
    with pytest.raises(OutputError, match="expected to write it"):
        GrowingFile(tmp_path)
