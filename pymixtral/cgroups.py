"""The Linux control groups of this process, which limit its CPUs and its memory.

Source: the kernel's documentation of cgroup v1 and v2.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def groups(controller: str, root: Path = ROOT) -> Iterator[tuple[int, Path]]:
    """Find the folders of a controller's groups, from this process's own up to the outermost.

    Args:
        controller: "cpu" or "memory".
        root: the folder that /proc and /sys are in.

    Yields:
        The version of control groups, 1 or 2, and a folder. A container may hide the process's own
        group; the outermost that it shows is then the container's.
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
    """Find the lowest CPU quota of this process's groups.

    Args:
        root: the folder that /proc and /sys are in.

    Returns:
        The quota in CPUs, such as 1.5; None if there is none.
    """
    quotas = []
    for version, folder in groups("cpu", root):
        names = ("cpu.max",) if version == 2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        numbers = " ".join(read(folder / name) for name in names).split()  # "max 100000", "150000 100000", "-1 100000"
        if len(numbers) == 2 and all(number.isdigit() and int(number) for number in numbers):
            quotas.append(int(numbers[0]) / int(numbers[1]))
    return min(quotas, default=None)


def read(path: Path) -> str:
    """Read a small file of the system.

    Args:
        path: the file.

    Returns:
        Its text; "" if it cannot be read.
    """
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
