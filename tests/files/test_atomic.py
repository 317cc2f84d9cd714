"""Files appear complete; what killed processes leave, the next one removes, and nothing else."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pymixtral.errors import OutputError
from pymixtral.files import atomic as files
from pymixtral.files.atomic import check_dest, check_space, remove_abandoned, replacing, replacing_all

WRITER = (
    "import sys, pathlib; from pymixtral.files.atomic import replacing\n"
    "with replacing(pathlib.Path(sys.argv[1]), force='force' in sys.argv) as temporary:\n"
    "    temporary.write_bytes(b'new'); print(temporary, flush=True); sys.stdin.read()\n"
)


@contextmanager
def writing(dest: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process that has written its temporary file, and goes on when its input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(dest)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
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
    with replacing(tmp_path / "b", force=True) as temporary:
        assert names(tmp_path) == [temporary.name]
        temporary.write_bytes(b"b")
    assert names(tmp_path) == ["b"]


def test_a_living_process_keeps_its_file(tmp_path: Path) -> None:
    with writing(tmp_path / "a") as (_, other):
        with replacing(tmp_path / "b", force=True) as temporary, replacing(tmp_path / "c", force=True) as second:
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
    with replacing(tmp_path / "a", force=True) as temporary:
        assert [temporary.name] == names(tmp_path) != made
    assert names(tmp_path) == ["a"]


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed(tmp_path / "a")

    def flock(*_: Any) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with replacing(tmp_path / "b", force=True) as temporary:
        temporary.write_bytes(b"b")
    assert len(names(tmp_path)) == 2  # nobody knows whether the other one lives
    assert (tmp_path / "b").read_bytes() == b"b"


def test_files_get_the_mode_that_the_user_wants(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "a", force=True):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


# --- Nothing is lost -----------------------------------------------------------------------------------------------


def without_links(path: Path, target: Path) -> None:
    raise OSError(errno.EPERM, "Operation not permitted", os.fspath(path), None, os.fspath(target))


@pytest.fixture(params=[True, False], ids=["links", "no links"])
def links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the file system has hard links."""
    if not request.param:
        monkeypatch.setattr(Path, "hardlink_to", without_links)
    return bool(request.param)


@pytest.mark.usefixtures("links")
def test_a_destination_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    taken = replacing(tmp_path / "a", force=False)
    taken.__enter__().write_bytes(b"new")
    (tmp_path / "a").write_bytes(b"theirs")
    with pytest.raises(OutputError, match="found one that appeared meanwhile: choose another name"):
        taken.__exit__(None, None, None)
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"theirs"
    with replacing(tmp_path / "a", force=True) as temporary:
        temporary.write_bytes(b"new")
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"new"


@pytest.mark.usefixtures("links")
def test_files_that_belong_together_appear_all_or_none(tmp_path: Path) -> None:
    dests = [tmp_path / name for name in "abc"]
    taken = replacing_all(dests, force=False)
    taken.__enter__()
    dests[1].write_bytes(b"theirs")
    with pytest.raises(OutputError, match="b: expected a new file"):
        taken.__exit__(None, None, None)
    assert names(tmp_path) == ["b"]
    dests[1].unlink()
    with replacing_all(dests, force=False) as temporaries:
        for dest, temporary in zip(dests, temporaries, strict=True):
            temporary.write_bytes(dest.name.encode())
    assert [dest.read_bytes() for dest in dests] == [b"a", b"b", b"c"]
    assert names(tmp_path) == ["a", "b", "c"]


def test_of_two_processes_one_succeeds(tmp_path: Path) -> None:
    with writing(tmp_path / "a") as (first, _), writing(tmp_path / "a") as (second, _):
        for process in (first, second):
            assert process.stdin
            process.stdin.close()
        codes = sorted([first.wait(), second.wait()])
    assert codes == [0, 1]
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"new"


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "device", "directory", "link to a directory"])
def test_what_is_no_regular_file_is_refused(tmp_path: Path, kind: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "directory").mkdir()
    (tmp_path / "link to a pipe").symlink_to("pipe")
    (tmp_path / "link to a directory").symlink_to("directory")
    (tmp_path / "device").symlink_to("/dev/null")
    for force in (False, True):
        with pytest.raises(OutputError, match="expected"):
            check_dest(tmp_path / kind, (), force)


def test_what_may_be_written(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "link").symlink_to("old")
    (tmp_path / "dangling").symlink_to("nowhere")
    check_dest(tmp_path / "new", [tmp_path / "old"], False)
    for name in ("old", "link", "dangling"):
        with pytest.raises(OutputError, match="found one that exists"):
            check_dest(tmp_path / name, (), False)
        check_dest(tmp_path / name, (), True)
    with pytest.raises(OutputError, match="a file of its own"):
        check_dest(tmp_path / "link", [tmp_path / "old"], True)


def test_a_place_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(
        OutputError, match=r"b: expected to write it, found an error \(No such file or directory\)"
    ) as error:
        replacing(tmp_path / "a" / "b", force=True).__enter__()
    assert error.value.errno == errno.ENOENT
    assert isinstance(error.value, OSError)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EACCES])
def test_a_directory_that_cannot_be_synchronized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def fsync(fd: int, real: Any = os.fsync) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(code, os.strerror(code))
        real(fd)

    def open_(path: Any, flags: int, *mode: int, real: Any = os.open, **rest: Any) -> int:
        if code == errno.EACCES and Path(path) == tmp_path:
            raise OSError(code, os.strerror(code))
        return int(real(path, flags, *mode, **rest))

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "open", open_)
    with replacing(tmp_path / "a", force=False) as temporary:
        temporary.write_bytes(b"new")
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize(
    "name", ["x" * 5000, "y/" * 2500 + "x", "a\0b", "a\0b/c", "a\ud800b", "loop/x", "gone/x", "a\nb/c"]
)
def test_a_destination_that_cannot_be_is_an_output_error_of_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    dest = tmp_path / name

    def write() -> None:
        with replacing(dest, force=True):
            pass

    checks = [lambda: check_dest(dest, (), True), write]
    if dest.parent != tmp_path:
        checks.append(lambda: check_space(dest, 1))
    for call in checks:
        with pytest.raises(OutputError) as caught:
            call()
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 900
    if name.startswith(("gone", "a\n")):
        assert files.Identity.of(dest) is None
    else:
        with pytest.raises(OutputError):
            files.Identity.of(dest)


def test_a_directory_that_may_not_be_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, **_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "stat", refuse)
    monkeypatch.setattr(Path, "lstat", refuse)
    for call in (lambda: check_dest(tmp_path / "a", (), False), lambda: files.Identity.of(tmp_path / "a")):
        with pytest.raises(
            OutputError, match=r"a: expected to write it, found an error \(Permission denied\)"
        ) as caught:
            call()
        assert caught.value.errno == errno.EACCES


def test_an_interrupt_while_temporary_files_are_made_or_removed_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def locked(path: Path, real: Any = files._locked) -> int | None:
        fd = real(path)
        assert path.exists()
        made.append(path)
        if len(made) == 2:
            raise KeyboardInterrupt
        return fd

    def unlink(path: Path, missing_ok: bool = False, real: Any = Path.unlink) -> None:
        if path in made:
            made.remove(path)
            raise KeyboardInterrupt
        real(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(files, "_locked", locked)
        with pytest.raises(KeyboardInterrupt), replacing_all([tmp_path / "a", tmp_path / "b"], force=False):
            pass
        assert len(made) == 2
        assert list(tmp_path.iterdir()) == []
    made.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "c", force=False) as path:
            made.append(path)
        assert made == []
    (tmp_path / "c").unlink()
    assert list(tmp_path.iterdir()) == []
