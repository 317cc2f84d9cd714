"""Reading ahead, writing behind and reading back.

Order, bounds, errors on each side, damage that is found, and deaths at any moment.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pymixtral.errors import CheckpointError, OutputError
from pymixtral.model.config import ModelConfig
from pymixtral.quantize import quantize, verify, writer
from pymixtral.quantize.pipeline import DEPTH, WriteBehind, read_ahead
from support.checkpoints import Shape, make_checkpoint

SHAPE = Shape(n_vocab=64, n_layers=2)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    make_checkpoint(tmp_path / "hf", SHAPE, seed=5)
    return tmp_path / "hf"


def test_items_come_in_order_and_not_all_at_once() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(20):
            made.append(i)
            yield i

    with read_ahead(items()) as ahead:
        for expected, item in enumerate(ahead):
            assert item == expected
            assert len(made) <= item + DEPTH + 2
    assert made == list(range(20))


def test_error_of_the_reader_comes_after_what_was_read() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise CheckpointError("broken")

    seen = []
    with pytest.raises(CheckpointError, match="broken"), read_ahead(items()) as ahead:
        seen.extend(iter(lambda: next(ahead), None))
    assert seen == [1]


def test_leaving_early_ends_the_thread() -> None:
    before = threading.active_count()
    with read_ahead(iter(range(10**9))) as ahead:
        assert next(ahead) == 0
    assert threading.active_count() == before


def test_what_is_written_and_its_checksums(tmp_path: Path) -> None:
    parts = [np.arange(600, dtype=np.uint8).reshape(3, 200), np.ones((2, 5), np.uint8)]
    with WriteBehind(tmp_path / "x") as file:
        file.write(b"head")
        file.mark()
        for part in parts:
            file.write(part)
        file.mark()
    body = parts[0].tobytes() + parts[1].tobytes()
    assert (tmp_path / "x").read_bytes() == b"head" + body
    assert file.checksums == [zlib.crc32(b"head"), zlib.crc32(body)]


def test_error_of_the_writer_is_raised_to_who_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the next write, or at the end: nothing is written after it."""

    class FullDisk:
        def write(self, _: memoryview) -> int:
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            pass

    monkeypatch.setattr(Path, "open", lambda *_, **__: FullDisk())
    with pytest.raises(OSError, match="No space left"), WriteBehind(tmp_path / "x") as file:
        any(file.write(bytes(10)) for _ in range(100))  # type: ignore[func-returns-value]
    with pytest.raises(OSError, match="No space left"), WriteBehind(tmp_path / "x") as file:
        file.write(bytes(10))
    with pytest.raises(KeyError), WriteBehind(tmp_path / "x") as file:
        raise KeyError


@pytest.mark.parametrize("error", [MemoryError, SystemExit])
@pytest.mark.parametrize("n", [1, 100])
def test_whatever_ends_the_writer_is_raised_and_nothing_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], n: int
) -> None:
    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr("pymixtral.quantize.pipeline.zlib.crc32", fail)
    raised: list[BaseException] = []

    def work() -> None:
        try:
            with WriteBehind(tmp_path / "x") as file:
                for _ in range(n):
                    file.write(bytes(10))
        except BaseException as caught:
            raised.append(caught)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(5)
    assert [type(caught) for caught in raised] == [error]


# --- Reading back ---------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["header", "first tensor", "middle", "last byte", "cut", "longer"])
def test_row_19_damage_between_writing_and_reading_back_is_found(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def damage(path: Path, n_header: int) -> None:
        size = path.stat().st_size
        if where in ("cut", "longer"):
            os.truncate(path, size - 1 if where == "cut" else size + 1)
            return
        at = {"header": 200, "first tensor": n_header, "middle": size // 2, "last byte": size - 1}[where]
        with path.open("r+b") as file:
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1]))

    genuine = verify.verify

    def damaged(path: Path, header: bytes, *arguments: Any) -> Iterator[int]:
        damage(path, len(header))
        return genuine(path, header, *arguments)

    monkeypatch.setattr("pymixtral.quantize.convert.read_back", damaged)
    with pytest.raises(CheckpointError, match="read back"):
        quantize(source, tmp_path / "m.gguf", "f16", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
    quantize(source, tmp_path / "m.gguf", "f16", verify=False, progress=False)


def test_a_file_that_pymixtral_would_refuse_does_not_pass(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelConfig, "to_gguf", lambda _: {"llama.context_length": 1})
    with pytest.raises(CheckpointError, match=r"no model that pymixtral runs.*is missing"):
        quantize(source, tmp_path / "m.gguf", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


# --- Deaths and errors at any moment --------------------------------------------------------------


def test_row_19_source_that_shrinks_while_it_is_read(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = source / "model.safetensors"
    genuine, calls = writer.encode, []

    def encode(*arguments: Any) -> Any:
        calls.append(None)
        if len(calls) == 5:
            os.truncate(weights, weights.stat().st_size // 2)
        return genuine(*arguments)

    monkeypatch.setattr(writer, "encode", encode)
    (tmp_path / "m.gguf").write_bytes(b"old")
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors: expected .* bytes .*: the file was shortened while it was read"
    ):
        quantize(source, tmp_path / "m.gguf", force=True, progress=False)
    assert (tmp_path / "m.gguf").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "m.gguf"]


def test_row_19_source_that_is_overwritten_while_it_is_read(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In place, with as many bytes, or by another file of its name."""
    weights = source / "model.safetensors"
    genuine = writer.encode

    def overwritten(change: Callable[[], object]) -> None:
        calls: list[None] = []

        def encode(*arguments: Any) -> Any:
            calls.append(None)
            if len(calls) == 5:
                change()
            return genuine(*arguments)

        monkeypatch.setattr(writer, "encode", encode)
        (tmp_path / "m.gguf").write_bytes(b"old")
        with pytest.raises(
            CheckpointError,
            match=r"model\.safetensors: expected a file that stays as it is .* found that it was changed",
        ):
            quantize(source, tmp_path / "m.gguf", force=True, progress=False)
        assert (tmp_path / "m.gguf").read_bytes() == b"old"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "m.gguf"]

    def in_place() -> None:  # without shortening it, which the thread that reads ahead could meet
        with weights.open("r+b") as file:
            file.seek(-4096, os.SEEK_END)
            file.write(bytes(4096))

    content = weights.read_bytes()
    overwritten(in_place)
    overwritten(lambda: (source / "new").write_bytes(content) and (source / "new").rename(weights))
    overwritten(weights.unlink)


def test_row_19_read_error(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine, calls = os.preadv, []

    def failing(*arguments: Any) -> int:
        calls.append(None)
        if len(calls) == 20:
            raise OSError(5, "Input/output error")
        return genuine(*arguments)

    monkeypatch.setattr(os, "preadv", failing)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read at byte \d+ \(Input/output error\)"):
        quantize(source, tmp_path / "m.gguf", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


KILLS = int(os.environ.get("PYMIXTRAL_KILLS", "4"))


@pytest.mark.parametrize("old", [False, True])
def test_row_19_killed_at_random_moments(tmp_path: Path, old: bool) -> None:
    """Slow chunks spread the work over half a second, so that kills meet every stage.

    PYMIXTRAL_KILLS sets their number.
    """
    make_checkpoint(tmp_path / "hf", Shape(n_vocab=64, n_layers=4, hidden=256, ffn=512, head_dim=64), seed=5)
    dest = tmp_path / "m.gguf"
    quantize(tmp_path / "hf", dest, progress=False)
    complete = dest.read_bytes()
    dest.unlink()
    code = (
        "import sys, time; from pymixtral.quantize import quantize, writer\n"
        "writer.CHUNK_WEIGHTS = 1 << 16; genuine = writer.encode\n"
        "def encode(*arguments): time.sleep(0.002); return genuine(*arguments)\n"
        "writer.encode = encode; print('ready', flush=True)\n"
        "quantize(sys.argv[1], sys.argv[2], force=True, progress=False)\n"
    )
    rng, seen = random.Random(7), {"absent": 0, "old": 0, "complete": 0}

    def begin() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "hf"), str(dest)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        return process

    with begin() as process:
        started = time.monotonic()
        process.wait()
    longest = time.monotonic() - started
    for _ in range(KILLS):
        dest.unlink(missing_ok=True)
        if old:
            dest.write_bytes(b"old")
        process = begin()
        time.sleep(rng.uniform(0, longest))
        with process:
            process.kill()
        found = dest.read_bytes() if dest.exists() else None
        assert found in ((b"old" if old else None), complete)
        seen["complete" if found == complete else "old" if old else "absent"] += 1
        assert len(list(tmp_path.glob(".pymixtral-*"))) <= 1  # each run removes what the one before left
    assert sum(seen.values()) == KILLS
    quantize(tmp_path / "hf", dest, force=True, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "m.gguf"]
    print(seen)  # for who sets PYMIXTRAL_KILLS


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("mount"), reason="mounts a small disk"
)
def test_row_19_disk_that_is_full(source: Path, tmp_path: Path) -> None:
    """A disk that has room when it is asked, and is filled while the file is written."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)], check=False, capture_output=True
    ).returncode:
        pytest.skip("may not mount")
    try:
        (disk / "m.gguf").write_bytes(b"old")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pymixtral.quantize.convert.check_space", lambda *_: None)
            with pytest.raises(OutputError, match=r"found an error \(No space left on device\)"):
                quantize(source, disk / "m.gguf", "f32", force=True, progress=False)
        assert [path.name for path in disk.iterdir()] == ["m.gguf"]
        assert (disk / "m.gguf").read_bytes() == b"old"
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("moment", range(1, 25))
def test_an_interrupt_at_any_call_leaves_no_thread_waiting(moment: int, tmp_path: Path) -> None:
    """It may come inside the queue, whose lock must not stay taken."""

    def interrupted() -> None:
        n_calls = 0

        def count(*_: object) -> None:
            nonlocal n_calls
            n_calls += 1
            if n_calls == moment:
                sys.setprofile(None)
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt), WriteBehind(tmp_path / "out") as file:
            sys.setprofile(count)
            for _ in range(9):
                file.write(b"bytes")
            sys.setprofile(None)

    thread = threading.Thread(target=interrupted, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
