"""The probes measure something, in the time that they are given."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from pymixtral import ops
from pymixtral.errors import UnsupportedError
from pymixtral.inspection import probe


@pytest.mark.parametrize("n_threads", [1, 3])
def test_every_chunk_is_read_once(n_threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setitem(probe.REDUCTIONS, "note", (np.uint64, lambda chunk: seen.append(int(chunk[0]))))
    memory = np.arange(10 * probe.CHUNK_BYTES // 8, dtype=np.uint64).view(np.uint8)
    assert probe.ReadBandwidth(n_threads, memory).measure("note", repeats=2) > 0
    assert sorted(seen) == sorted(list(range(0, 10 * probe.CHUNK_BYTES // 8, probe.CHUNK_BYTES // 8)) * 2)


def test_an_interrupt_leaves_no_thread_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(threading.Barrier):
        def wait(self, timeout: float | None = None) -> int:
            if threading.current_thread() is threading.main_thread():
                raise KeyboardInterrupt
            return super().wait(timeout)

    before = set(threading.enumerate())
    monkeypatch.setattr(threading, "Barrier", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        probe.ReadBandwidth(3, np.ones(probe.CHUNK_BYTES, np.uint8)).measure()
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
        assert not thread.is_alive()


def test_bandwidth_of_each_number_of_threads() -> None:
    begin = time.perf_counter()
    rates = probe.read_bandwidth([1, 2], memory_available=1 << 29)
    assert time.perf_counter() - begin < 20
    assert rates.keys() == {1, 2}
    assert all(0.1 < rate < 10_000 for rate in rates.values())


def test_little_is_read_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    class Note(probe.ReadBandwidth):
        def measure(self, reduction: str | None = None, repeats: int = 3) -> float:
            sizes.append(self._memory.nbytes)
            return super().measure(reduction, repeats)

    monkeypatch.setattr(probe, "ReadBandwidth", Note)
    probe.read_bandwidth([1], memory_available=0)
    probe.read_bandwidth([1], memory_available=1 << 30)
    assert set(sizes) == {1 << 26, 1 << 27}


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
