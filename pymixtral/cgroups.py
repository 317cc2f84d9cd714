"""The Linux control groups around this process, which limit its CPUs and its memory.

Source: the kernel's documentation of cgroup v1 and v2 (proc/self/cgroup, cpu.max, cpu.cfs_quota_us).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def groups(controller: str, root: Path = ROOT) -> Iterator[tuple[int, Path]]:
    """The folders of a controller's groups, from this process's own up to the outermost.

    Args:
        controller: "cpu" or "memory".
        root: where /proc and /sys are.

    Yields:
        The version of control groups, 1 or 2, and a folder. In a container the process's own may not
        be there to see; the outermost is then the container's.
    """
    mount = root / "sys/fs/cgroup"
    for line in read(root / "proc/self/cgroup").splitlines() or ["0::/", f"1:{controller}:/"]:
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if number == "0" and not names:
            version, bases = 2, [mount, mount / "unified"]
        elif controller in names.split(","):
            version, bases = 1, [mount / names, mount / controller]
        else:
            continue
        for base in bases:
            group = base / path.lstrip("/")
            for folder in (group, *group.parents):
                if folder.is_relative_to(base) and ".." not in folder.relative_to(base).parts:
                    yield version, folder


def cpu_quota(root: Path = ROOT) -> float | None:
    """The least CPU quota around this process, in CPUs; None without one. root: where /proc and /sys are."""
    quotas = []
    for version, folder in groups("cpu", root):
        names = ("cpu.max",) if version == 2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        numbers = " ".join(read(folder / name) for name in names).split()  # "max 100000", "150000 100000", "-1 100000"
        if len(numbers) == 2 and all(number.isdigit() and int(number) for number in numbers):
            quotas.append(int(numbers[0]) / int(numbers[1]))
    return min(quotas, default=None)


def read(path: Path) -> str:
    """The text of a small system file, "" if it is not there."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
