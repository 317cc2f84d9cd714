"""The probes measure something, in the time that they are given."""

from __future__ import annotations

import mmap
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pymixtral import Mixtral, ops
from pymixtral.errors import UnsupportedError
from pymixtral.inspection import probe


@pytest.mark.parametrize("n_threads", [1, 3])
def test_all_patterns_read_all_lines(n_threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int, tuple[int, str | None]]] = []
    monkeypatch.setattr(
        ops, "read", lambda ctx, data, n_streams, hint: seen.append((ctx.n_threads, len(data), (n_streams, hint)))
    )
    size = probe._LEAST_BYTES
    probe.ReadBandwidth(n_threads, np.ones(size + 63, np.uint8)).measure(repeats=2)
    assert seen == [(n_threads, size, pattern) for pattern in probe.PATTERNS.values() for _ in range(2)]
    assert len(set(probe.PATTERNS.values())) == 9


def test_little_memory_is_read_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(ops, "read", lambda _, data, *__: seen.append(len(data)))
    probe.cache_rate(next(iter(probe.PATTERNS)))
    assert set(seen) == {probe.CACHE_BYTES}
    assert len(seen) == 3 * probe._LEAST_BYTES // probe.CACHE_BYTES


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_an_interrupt_leaves_no_thread_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    def n_threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    before = n_threads()
    monkeypatch.setattr(ops, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        probe.ReadBandwidth(3, np.ones(64, np.uint8)).measure()
    deadline = time.monotonic() + 60  # a thread that has been joined stays visible for a moment
    while n_threads() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert n_threads() <= before


def test_bandwidth_of_each_number_of_threads() -> None:
    begin = time.perf_counter()
    rates = probe.read_bandwidth([1, 2], memory_available=1 << 29)
    assert time.perf_counter() - begin < 20
    assert rates.keys() == {1, 2}
    assert all(0.1 < rate < 10_000 for rate in rates.values())


def test_little_is_read_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    class Note(probe.ReadBandwidth):
        def measure(self, pattern: str | None = None, repeats: int = 3) -> float:
            sizes.append(self._memory.nbytes)
            return super().measure(pattern, repeats)

    monkeypatch.setattr(probe, "ReadBandwidth", Note)
    probe.read_bandwidth([1], memory_available=0)
    probe.read_bandwidth([1], memory_available=1 << 30)
    assert set(sizes) == {1 << 26, 1 << 27}


def test_a_mapped_file_is_read_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[int] = set()
    monkeypatch.setattr(ops, "read", lambda _, data, *__: seen.add(data.ctypes.data))
    with Mixtral(n_threads=1) as model:
        (file,) = model.mapped()
        assert len(file) == model.path.stat().st_size
        assert bytes(file[:4]) == b"GGUF"
        assert not file.flags.writeable
        assert probe.read_bandwidth([1], mapped=file)[1] > 0
    assert seen == {file.ctypes.data}


@pytest.mark.parametrize("isa", ops.available_isas())
def test_int8_rate(isa: str) -> None:
    begin = time.perf_counter()
    found = probe.int8_rate(1, isa)
    assert time.perf_counter() - begin < 10
    assert (found.isa, found.n_threads) == (isa, 1)
    assert 0.01 < found.gmacs < 100_000


def test_an_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="mmx"):
        probe.int8_rate(1, "mmx")


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="not run: this system does not read past its cache")
def test_disk_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\1" * ((9 << 20) + 12345))
    read: list[tuple[int, int, int]] = []
    preadv = os.preadv

    def noted(fd: int, buffers: list[mmap.mmap], at: int) -> int:
        n_bytes = preadv(fd, buffers, at)
        read.append((len(buffers[0]), at, n_bytes))
        return n_bytes

    monkeypatch.setattr(os, "preadv", noted)
    found = probe.disk_rate(path, 0.05)
    if found is None:
        pytest.skip("not run: this folder's file system does not read past the cache")
    assert found.sequential > 0
    assert found.random > 0
    sequential = [(at, n_bytes) for size, at, n_bytes in read if size == 8 << 20]
    assert sequential[:2] == [(0, 8 << 20), (8 << 20, (1 << 20) + 12345)]  # then from the beginning
    places = [at for size, at, n_bytes in read if size == 1 << 20 and n_bytes == size]
    assert all(at % (1 << 20) == 0 for at in places)
    assert len(places) == len(read) - len(sequential)


def test_a_file_that_becomes_shorter_has_no_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(8 << 20))
    if probe.disk_rate(path, 0.01) is None:
        pytest.skip("not run: this system does not read past its cache")
    read = os.preadv

    def cutting(fd: int, buffers: list[mmap.mmap], at: int) -> int:
        os.truncate(path, 0)
        return read(fd, buffers, at)

    monkeypatch.setattr(os, "preadv", cutting)
    assert probe.disk_rate(path, 0.01) is None


def test_a_disk_that_cannot_be_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert probe.disk_rate(tmp_path / "missing") is None
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    assert probe.disk_rate(path) is None
    path.write_bytes(bytes(1 << 21))

    def refused(*_: object) -> int:
        raise OSError(22, "Invalid argument")

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", refused)
        assert probe.disk_rate(path) is None
    monkeypatch.delattr(os, "O_DIRECT", raising=False)
    assert probe.disk_rate(path) is None
