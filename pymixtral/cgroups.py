"""The Linux control groups of this process, which limit its CPUs and its memory.

Source: the kernel's documentation of cgroup v1 and v2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")

_MAX_DEPTH = 64
"""Levels of groups that are looked at, the outermost: each costs the opening of a file."""

_MAX_LINES = 64
"""Of /proc/self/cgroup: a line for each controller."""

_MAX_CHARACTERS = 1 << 16
"""Of a file."""

_NUMBER = re.compile(r"[0-9]{1,18}")
"""A limit of the kernel, which counts in 63 bits; more is none."""


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
    lines = read(root / "proc/self/cgroup").splitlines()[:_MAX_LINES]
    for line in lines or ["0::/", f"1:{controller}:/"]:
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if number == "0" and not names:
            version, bases = 2, [mount, mount / "unified"]
        elif controller in names.split(","):
            version, bases = 1, [mount / names, mount / controller]
        else:
            continue
        for base in bases:
            parts = [part for part in path.split("/") if part not in ("", ".")]
            inside = parts.index("..") if ".." in parts else len(parts)
            for depth in range(min(inside, _MAX_DEPTH), -1, -1):
                yield version, base.joinpath(*parts[:depth])


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
        if len(numbers) == 2 and all(_NUMBER.fullmatch(number) and int(number) for number in numbers):
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
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(_MAX_CHARACTERS)
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return ""
