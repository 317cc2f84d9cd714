"""Control groups, versions 1 and 2, nested and in containers: from made-up trees."""

from __future__ import annotations

from pathlib import Path

import pytest

from pymixtral.cgroups import cpu_quota, groups
from support.trees import write_tree


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "50000 100000\n"}, 0.5),
        ({"cpu.max": "0 100000\n"}, None),
        ({"cpu.max": "nonsense\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "0\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n"}, None),
        ({"cpu.max": "9" * 5000 + " 100000\n"}, None),
        ({"cpu.max": "100000 " + "9" * 5000}, None),
        ({"cpu.max": "9" * 18 + " 1\n"}, 1e18),
        ({"cpu.max": "\u00b2 100000\n"}, None),
        ({"cpu.max": "\u0663 1\n"}, None),
    ],
)
def test_quota_of_the_outermost_group(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    assert cpu_quota(write_tree(tmp_path, {f"sys/fs/cgroup/{name}": text for name, text in files.items()})) == quota


def test_the_least_quota_around_the_process_counts(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/user/session\n",
        "sys/fs/cgroup/cpu.max": "max 100000\n",
        "sys/fs/cgroup/user/cpu.max": "300000 100000\n",
        "sys/fs/cgroup/user/session/cpu.max": "900000 100000\n",
        "sys/fs/cgroup/user/session/deeper/cpu.max": "100000 100000\n",
    }
    assert cpu_quota(write_tree(tmp_path, files)) == 3


@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpu"])
def test_a_nested_group_of_version_1(tmp_path: Path, mount: str) -> None:
    group = f"sys/fs/cgroup/{mount}/docker/abc"
    files = {
        "proc/self/cgroup": "12:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/\n0::/system.slice\n",
        f"sys/fs/cgroup/{mount}/cpu.cfs_quota_us": "-1\n",
        f"sys/fs/cgroup/{mount}/cpu.cfs_period_us": "100000\n",
        f"{group}/cpu.cfs_quota_us": "250000\n",
        f"{group}/cpu.cfs_period_us": "100000\n",
    }
    assert cpu_quota(write_tree(tmp_path, files)) == 2.5


def test_a_container_sees_its_own_group_as_the_outermost(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:cpu,cpuacct:/outside/of/this\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "150000\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    }
    assert cpu_quota(write_tree(tmp_path, files)) == 1.5


def test_groups_of_version_2_beside_version_1(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "4:memory:/a\n0::/b\n", "sys/fs/cgroup/unified/b/cpu.max": "200000 100000\n"}
    assert cpu_quota(write_tree(tmp_path, files)) == 2


def test_folders_stay_below_the_mount(tmp_path: Path) -> None:
    write_tree(
        tmp_path, {"proc/self/cgroup": "0::/../../etc\nnonsense\n7:memory:/../x\n", "sys/fs/cgroup/cpu.max": "max 1\n"}
    )
    for controller in ("cpu", "memory"):
        for _, folder in groups(controller, tmp_path):
            assert folder.resolve().is_relative_to((tmp_path / "sys/fs/cgroup").resolve())


def test_a_group_that_cannot_be_is_not_looked_at(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/a\0b/c\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}
    assert cpu_quota(write_tree(tmp_path, files)) == 1.5


def test_groups_have_a_limited_depth(tmp_path: Path) -> None:
    path = "0::" + "/a" * 4000 + "\n"
    files = {"proc/self/cgroup": path + "0::/b\n" * 4000, "sys/fs/cgroup/a/cpu.max": "150000 100000\n"}
    root = write_tree(tmp_path, files)
    assert cpu_quota(root) == 1.5
    assert sum(1 for _ in groups("cpu", root)) <= 2 * 65 + 63 * 2 * 2


def test_it_reads_this_machine() -> None:
    assert cpu_quota() is None or cpu_quota() > 0  # type: ignore[operator]
