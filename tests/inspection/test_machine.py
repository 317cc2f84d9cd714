"""What the machine has: read from this one, and from made-up ones."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from pymixtral import ops
from pymixtral.inspection import machine
from support.trees import write_tree

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's files")


# --- CPU ----------------------------------------------------------------------------------------------------------


def test_cpu_of_x86(tmp_path: Path) -> None:
    text = "processor\t: 0\nmodel name\t: Some CPU @ 3 GHz: fast\nflags\t\t: fpu sse2 avx fma avx2\n\n"
    text += "processor\t: 1\nmodel name\t: Other\n"
    found = machine.cpu(write_tree(tmp_path, {"proc/cpuinfo": text}))
    assert (found.name, found.features) == ("Some CPU @ 3 GHz: fast", ("avx", "fma", "avx2"))


def test_cpu_of_arm_and_of_nothing(tmp_path: Path) -> None:
    found = machine.cpu(
        write_tree(tmp_path, {"proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\nCPU part\t: 0xd0c\n"})
    )
    assert found.features == ("asimd", "asimddp", "i8mm")
    assert found.name
    assert machine.cpu(tmp_path / "nothing").features == ()


def test_instruction_sets_are_those_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYMIXTRAL_ISA", raising=False)
    found = machine.instruction_sets()
    assert found.available == ops.available_isas()
    assert found.built[0] == "scalar"
    assert set(found.available) <= set(found.built)
    assert (found.chosen, found.asked) == (found.available[-1], None)
    assert found.missing.keys() == set(found.built) - set(found.available)


def test_the_environment_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYMIXTRAL_ISA", "scalar")
    found = machine.instruction_sets()
    assert (found.chosen, found.asked) == ("scalar", "scalar")
    assert "asks for it" in found.reason
    monkeypatch.setenv("PYMIXTRAL_ISA", "mmx")
    found = machine.instruction_sets()
    assert (found.chosen, found.asked) == (None, "mmx")
    assert "'mmx'" in found.reason


def test_each_instruction_set_but_the_scalar_one_says_what_it_needs() -> None:
    assert set(ops.built_isas()) - {"scalar"} <= set(machine._NEEDS)


def test_the_prefetch_hint_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYMIXTRAL_PREFETCH", raising=False)
    for hint, why in (("near", "of this CPU"), ("far", "of AMD's family 25")):
        monkeypatch.setattr(ops, "default_prefetch", lambda hint=hint: hint)
        found = machine.prefetch()
        assert (found.default, found.asked) == (hint, None)
        assert why in found.reason
    monkeypatch.setenv("PYMIXTRAL_PREFETCH", "near")
    assert (machine.prefetch().default, machine.prefetch().asked) == ("near", "near")
    monkeypatch.setenv("PYMIXTRAL_PREFETCH", "T1")
    assert (machine.prefetch().default, machine.prefetch().asked) == (None, "T1")


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "available_isas", lambda: ["scalar"])
    built = machine.instruction_sets(("avx", "avx2", "fma")).missing
    if "avx2" in built:
        assert built["avx2"] == ["f16c"]
    assert all(need == [] for need in machine.instruction_sets(()).missing.values())  # nothing known, nothing claimed


# --- Memory -------------------------------------------------------------------------------------------------------

MEMINFO = (
    "MemTotal:       16000000 kB\nMemFree:         1000000 kB\nMemAvailable:    8000000 kB\nHugePages_Total:       0\n"
)
KB = 1024


def test_memory_without_a_cgroup(tmp_path: Path) -> None:
    files = {"proc/meminfo": MEMINFO, "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n"}
    found = machine.memory(write_tree(tmp_path, files))
    assert (found.total, found.available, found.cgroup_limit) == (16000000 * KB, 8000000 * KB, None)
    assert (found.huge_pages, found.limit, found.usable) == ("madvise", found.total, found.available)


def test_the_tightest_cgroup_of_version_2_decides(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/a"
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/a/b\n",
        f"{group}/b/memory.max": "max\n",
        f"{group}/b/memory.current": "5\n",
        f"{group}/memory.max": "4000000000\n",
        f"{group}/memory.current": "3000000000\n",
        f"{group}/memory.stat": "anon 1000000000\nactive_file 500000000\ninactive_file 1500000000\n",
    }
    found = machine.memory(write_tree(tmp_path, files))
    assert (found.cgroup_limit, found.available, found.limit) == (4000000000, 3000000000, 4000000000)


def test_a_cgroup_of_version_1(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/memory"
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "5:cpu,cpuacct:/\n4:memory:/outside/of/this/container\n0::/\n",
        f"{group}/memory.limit_in_bytes": "2000000000\n",
        f"{group}/memory.usage_in_bytes": "1500000000\n",
        f"{group}/memory.stat": "cache 1\ntotal_active_file 100\ntotal_inactive_file 200\n",
    }
    found = machine.memory(write_tree(tmp_path, files))
    assert (found.cgroup_limit, found.available) == (2000000000, 500000300)
    write_tree(tmp_path, {f"{group}/memory.limit_in_bytes": "9223372036854771712\n"})
    assert machine.memory(tmp_path).cgroup_limit is None


def test_memory_where_nothing_tells(tmp_path: Path) -> None:
    found = machine.memory(tmp_path)
    assert found.total > 1 << 28
    assert (found.available, found.huge_pages, found.usable) == (None, None, found.total)


def test_memory_here() -> None:
    found = machine.memory()
    assert 0 < found.usable <= found.limit <= found.total


@linux
def test_busy_seconds_are_those_of_the_cpus_that_may_be_used(tmp_path: Path) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    rows = "".join(f"cpu{i} 1 2 3 1000 5000 4 5 6 1 2\n" for i in (*allowed, 99_999))
    root = write_tree(tmp_path, {"proc/stat": f"cpu  7 7 7 7 7 7 7 7 7 7\n{rows}intr 1 2 3\n"})
    assert machine.busy_seconds(root) == len(allowed) * 21 / os.sysconf("SC_CLK_TCK")
    assert machine.busy_seconds(write_tree(tmp_path / "none", {"proc/meminfo": ""})) is None


@linux
def test_busy_seconds_grow_with_the_work() -> None:
    before, own = machine.busy_seconds(), time.process_time()
    if before is None:
        pytest.skip("this system does not tell")
    while time.process_time() < own + 0.2:
        pass
    after = machine.busy_seconds()
    assert after is not None
    assert after - before > 0.1
