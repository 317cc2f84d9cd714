"""Files appear complete; what killed processes leave, the next one removes, and nothing else."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pymixtral.files import atomic as files
from pymixtral.files.atomic import check_space, remove_abandoned, replacing

WRITER = (
    "import sys, pathlib; from pymixtral.files.atomic import replacing\n"
    "with replacing(pathlib.Path(sys.argv[1])) as temporary:\n"
    "    temporary.write_bytes(b'new'); print(temporary, flush=True); sys.stdin.read()\n"
)


@contextmanager
def writing(dest: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process that has written its temporary file, and goes on when its input ends."""
    with subprocess.Popen([sys.executable, "-c", WRITER, str(dest)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield process, Path(process.stdout.readline().strip())


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def killed(dest: Path) -> Path:
    with writing(dest) as (process, temporary):
        process.kill()
    assert temporary.read_bytes() == b"new"
    assert not dest.exists()
    return temporary


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    killed(tmp_path / "a")
    with replacing(tmp_path / "b") as temporary:
        assert names(tmp_path) == [temporary.name]
        temporary.write_bytes(b"b")
    assert names(tmp_path) == ["b"]


def test_a_living_process_keeps_its_file(tmp_path: Path) -> None:
    with writing(tmp_path / "a") as (_, other):
        with replacing(tmp_path / "b") as temporary, replacing(tmp_path / "c") as second:
            assert names(tmp_path) == sorted([other.name, temporary.name, second.name])
        check_space(tmp_path / "d", 1)
        assert other.exists()
    assert (tmp_path / "a").read_bytes() == b"new"
    assert names(tmp_path) == ["a", "b", "c"]


def test_space_is_counted_without_what_was_left(tmp_path: Path) -> None:
    killed(tmp_path / "a")
    check_space(tmp_path / "b", 1)
    assert names(tmp_path) == []


def test_other_files_stay(tmp_path: Path) -> None:
    """Those of another machine, whose locks may not be seen here, and a link, whatever it points to."""
    (tmp_path / "m.gguf").write_bytes(b"old")
    (tmp_path / ".pymixtral-another.tmp").write_bytes(b"theirs")
    link = tmp_path / f"{files._PREFIX}0.tmp"
    link.symlink_to(tmp_path / "m.gguf")
    before = names(tmp_path)
    remove_abandoned(tmp_path)
    assert names(tmp_path) == before


def test_a_file_seen_before_it_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process removes it between its creation and its lock: a second one is made."""
    genuine, made = fcntl.flock, []

    def flock(fd: int, operation: int) -> None:
        if not made:
            made.extend(names(tmp_path))
            (tmp_path / made[0]).unlink()
        genuine(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with replacing(tmp_path / "a") as temporary:
        assert [temporary.name] == names(tmp_path) != made
    assert names(tmp_path) == ["a"]


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed(tmp_path / "a")

    def flock(*_: Any) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with replacing(tmp_path / "b") as temporary:
        temporary.write_bytes(b"b")
    assert len(names(tmp_path)) == 2  # nobody knows whether the other one lives
    assert (tmp_path / "b").read_bytes() == b"b"


def test_files_get_the_mode_that_the_user_wants(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "a"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
