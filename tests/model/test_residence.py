"""Weights locked in memory and read ahead."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pymixtral import MemoryWarning, Mixtral, ModelConfig
from pymixtral.files.gguf import GGUFFile
from pymixtral.inspection.machine import Memory
from pymixtral.model import residence
from pymixtral.model.weights import load_weights

linux = pytest.mark.skipif(sys.platform != "linux", reason="not run: reads /proc")


def status(name: str) -> int:
    """Bytes, of /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024


def mapped(path: Path, n_bytes: int) -> mmap.mmap:
    path.write_bytes(bytes(n_bytes))
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


@linux
def test_every_page_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residence, "PIECE_BYTES", 1 << 20)
    maps = [mapped(tmp_path / "a", 20 << 20), mapped(tmp_path / "b", 100), mapped(tmp_path / "c", (3 << 20) + 1)]
    before, told = status("RssFile"), []
    residence.prefault(maps, 3, lambda done, total: told.append((done, total)))
    assert status("RssFile") - before >= 23 << 20
    total = (23 << 20) + 101
    assert [all_ for _, all_ in told] == [total] * 25
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][0] == total


def test_an_interrupt_ends_the_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residence, "PIECE_BYTES", 1 << 14)
    touch, read = residence._touch, []

    def slowly(piece: NDArray[np.uint8]) -> int:
        time.sleep(0.02)
        read.append(len(piece))
        return touch(piece)

    def interrupt(done: int, _: int) -> None:
        assert done == 1 << 14
        raise KeyboardInterrupt

    monkeypatch.setattr(residence, "_touch", slowly)
    with pytest.raises(KeyboardInterrupt):
        residence.prefault([mapped(tmp_path / "a", 200 << 14)], 2, interrupt)
    assert 1 <= len(read) < 100
    ended = len(read)
    time.sleep(0.1)
    assert len(read) == ended


@linux
def test_parts_of_a_file(tmp_path: Path) -> None:
    """Of a part that begins or ends within a page the whole page is locked."""
    page = mmap.PAGESIZE
    before, rss = status("VmLck"), status("RssFile")
    whole = mapped(tmp_path / "a", 1000 * page)
    array = np.frombuffer(whole, np.uint8)
    parts = [array[100 * page + 7 : 103 * page + 7], array[500 * page : 502 * page]]
    residence.lock(parts)
    assert status("VmLck") - before == 6 * page
    told = list[tuple[int, int]]()
    residence.prefault(parts, 2, lambda *counts: told.append(counts))
    assert told[-1] == (5 * page, 5 * page)
    assert 6 * page <= status("RssFile") - rss < 600 * page
    del array, parts
    whole.close()
    assert status("VmLck") == before


@linux
def test_what_is_locked_stays_locked_until_it_is_closed(tmp_path: Path) -> None:
    n_bytes = 10 * mmap.PAGESIZE
    before, rss = status("VmLck"), status("RssFile")
    one = mapped(tmp_path / "a", n_bytes)
    residence.lock([one])
    assert status("VmLck") - before == n_bytes
    residence.prefault([one], 1)
    assert status("RssFile") - rss >= n_bytes
    one.close()
    assert status("VmLck") == before


@linux
def test_a_refusal_names_the_limit(tiny_q8_0: Path) -> None:
    script = (
        "import os, resource, sys\n"
        "from pymixtral.model import residence\n"
        "from pymixtral.errors import NativeError\n"
        "from pymixtral.files.gguf import GGUFFile\n"
        "file = GGUFFile(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 131072))\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "try: residence.lock(file.maps.values())\n"
        "except NativeError as error: print(error)\n"
    )
    found = subprocess.run([sys.executable, "-c", script, tiny_q8_0], capture_output=True, text=True, check=True).stdout
    n_bytes = tiny_q8_0.stat().st_size
    assert found.startswith(
        f"expected to lock {n_bytes} bytes of weights in memory, found a limit of 65536 bytes (RLIMIT_MEMLOCK, "
    )
    assert "131072 bytes for this user" in found


def test_the_engine_reads_ahead(tiny_q8_0: Path) -> None:
    told: list[tuple[int, int]] = []
    with Mixtral(tiny_q8_0, prefault=lambda done, total: told.append((done, total))) as engine:
        assert told[-1] == (tiny_q8_0.stat().st_size,) * 2
        assert engine.logits([1, 2, 3]).shape == (3, engine.config.n_vocab)


@linux
def test_the_engine_locks(tiny_q8_0: Path) -> None:
    before = status("VmLck")
    if os.geteuid() != 0:
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        if limit < tiny_q8_0.stat().st_size:
            pytest.skip("not run: the limit of locked memory is lower than the demo model")
    with Mixtral(tiny_q8_0, lock=True):
        assert status("VmLck") - before >= tiny_q8_0.stat().st_size
    assert status("VmLck") == before


@linux
def test_opening_reads_few_pages(tiny_q8_0: Path) -> None:
    """In a new process, since pages of a file that another test reads may be resident here."""
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from pymixtral import Mixtral\n"
        "def mapped():\n"
        "    lines = Path('/proc/self/smaps').read_text().split(sys.argv[1])[1].splitlines()\n"
        "    return next(int(line.split()[1]) for line in lines if line.startswith('Rss:')) * 1024\n"
        "with Mixtral(sys.argv[1]) as engine:\n"
        "    opened = mapped()\n"
        "    engine.logits(list(range(100)))\n"
        "    print(opened, mapped())\n"
    )
    opened, used = map(
        int,
        subprocess.run(
            [sys.executable, "-c", script, tiny_q8_0], capture_output=True, text=True, check=True
        ).stdout.split(),
    )
    assert opened < used / 4


@linux
@pytest.mark.skipif(os.geteuid() != 0, reason="not run: locks more than most users may")
def test_a_part_is_locked_of_each_layer_alike(tiny_q8_0: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = status("VmLck")
    with GGUFFile(tiny_q8_0) as file:
        weights = load_weights(file, ModelConfig.from_gguf(file))
        matrices = [m for layer in weights.layers for expert in layer.experts for m in expert]
        every_token = weights.active_bytes(0) - weights.embedding.row_bytes
        one_expert = sum(m.data.nbytes for m in matrices) // len(weights.layers[0].experts)
        lock, locked_at = residence._lock, set[int]()

        def noted(address: int, n_bytes: int) -> None:
            locked_at.add(address)
            lock(address, n_bytes)

        monkeypatch.setattr(residence, "_lock", noted)
        kept = residence.lock_part(weights, every_token + 2 * one_expert + 10)
        first_two = {m.data.ctypes.data for layer in weights.layers for expert in layer.experts[:2] for m in expert}
        assert {m.data.ctypes.data for m in matrices} & locked_at == first_two
        assert kept == every_token + 2 * one_expert
        locked = status("VmLck") - before
        assert kept <= locked <= kept + 2 * mmap.PAGESIZE * 100
        assert residence.lock_part(weights, 0) == 0
    del weights, matrices, file
    assert status("VmLck") == before


@linux
@pytest.mark.skipif(os.geteuid() != 0, reason="not run: locks more than most users may")
def test_the_engine_locks_a_part_of_a_model_larger_than_memory(
    tiny_q8_0: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usable = n_bytes = tiny_q8_0.stat().st_size
    monkeypatch.setattr("pymixtral.model.footprint._PROCESS_BYTES", 0)  # which are more than this model
    monkeypatch.setattr("pymixtral.memory.memory", lambda: Memory(usable, usable, None, None))
    before = status("VmLck")
    with pytest.warns(MemoryWarning):
        model = Mixtral(tiny_q8_0, n_ctx=512, n_batch=512, lock=True)
    with model:
        assert 0 < status("VmLck") - before < n_bytes
