"""How many threads make sense: affinity, physical cores and quotas, here and on made-up machines."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pymixtral import ops
from support.trees import write_tree

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's files")


@linux
def test_threads_are_the_least_of_the_limits() -> None:
    found = ops.thread_limits()
    assert found.default == min(found.cores, max(1, int(found.quota or 256)), 256)
    assert found.cores <= found.allowed <= found.online
    with ops.Context() as context:
        assert context.n_threads == found.default


@linux
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one CPU")
def test_affinity_limits_threads() -> None:
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); from pymixtral import ops; "
    code += "t = ops.thread_limits(); "
    code += "print(t.default, t.allowed, t.limit)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "1 1 the CPU affinity of the process\n"


@linux
def test_hyperthreads_count_once(tmp_path: Path) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    files = {
        f"sys/devices/system/cpu/cpu{i}/topology/thread_siblings_list": f"{allowed[0]}-{allowed[-1]}\n" for i in allowed
    }
    assert ops.thread_limits(write_tree(tmp_path, files)).cores == 1
    files = {name: f"{i},1000\n" for i, name in enumerate(files)}
    assert ops.thread_limits(write_tree(tmp_path, files)).cores == len(allowed)


@linux
def test_a_quota_is_read(tmp_path: Path) -> None:
    assert ops.thread_limits(write_tree(tmp_path, {"sys/fs/cgroup/cpu.max": "150000 100000\n"})).quota == 1.5


@pytest.mark.parametrize(
    ("numbers", "default", "word"),
    [
        ((2, 2, 2, None), 2, "each CPU"),
        ((8, 8, 4, None), 4, "physical core"),
        ((16, 4, 4, None), 4, "affinity"),
        ((8, 8, 4, 2.0), 2, "quota of 2 CPUs"),
        (
            (8, 8, 4, 1.5),
            1,
            "quota of 1.5 CPUs, rounded down",
        ),  # two threads would be stopped for a quarter of the time
        ((8, 8, 4, 0.5), 1, "quota of 0.5 CPUs"),
        ((8, 8, 4, 6.0), 4, "physical core"),
        ((8, 2, 1, None), 1, "physical core that the CPU affinity of the process allows"),
        ((512, 512, 512, None), 256, "256"),
    ],
)
def test_the_default_and_what_limits_it(numbers: tuple[int, int, int, float | None], default: int, word: str) -> None:
    found = ops.Threads(*numbers)
    assert found.default == default
    assert word in found.limit


@pytest.mark.parametrize(
    ("numbers", "usable"),
    [((8, 4, 2, None), 4), ((8, 4, 4, 1.5), 2), ((8, 4, 4, 0.5), 1), ((8, 4, 4, 6.0), 4)],
)
def test_the_cpus_that_work_at_once(numbers: tuple[int, int, int, float | None], usable: int) -> None:
    assert ops.Threads(*numbers).usable == usable
