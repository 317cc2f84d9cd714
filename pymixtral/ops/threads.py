"""How many threads are worth having on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from math import ceil
from pathlib import Path

from pymixtral.cgroups import ROOT, cpu_quota, read

MAX_THREADS = 256
"""The most threads of a context, as in csrc/pmx.h."""


@dataclass(frozen=True)
class Threads:
    """The limits on the threads of this process.

    Attributes:
        online: CPUs of the machine.
        allowed: CPUs that the affinity mask allows.
        cores: physical cores among the allowed CPUs. Two hyperthreads share the arithmetic units
            that the kernels keep busy, so a second thread on a core gains nothing.
        quota: CPUs that the control groups allow, such as 1.5; None: no limit.
    """

    online: int
    allowed: int
    cores: int
    quota: float | None

    @property
    def default(self) -> int:
        """The number of threads that a context starts by default.

        A quota is rounded down: with one thread more than it allows, the system would stop a thread
        for the rest of each scheduling period, and the others would wait for it.
        """
        whole = MAX_THREADS if self.quota is None else max(1, int(self.quota))
        return max(1, min(self.cores, whole, MAX_THREADS))

    @property
    def usable(self) -> int:
        """CPUs that can work for this process at once, hyperthreads too."""
        return self.allowed if self.quota is None else max(1, min(self.allowed, ceil(self.quota)))

    @property
    def limit(self) -> str:
        """A clause for people that says which limit decides the default."""
        if self.quota is not None and int(self.quota) <= min(self.cores, MAX_THREADS) and self.quota < self.allowed:
            rounded = ", rounded down" if self.quota > self.default else ""
            return f"the cgroup's quota of {self.quota:g} CPUs{rounded}"
        if self.cores > MAX_THREADS:
            return f"at most {MAX_THREADS} are used"
        if self.cores < self.allowed:
            where = " that the CPU affinity of the process allows" if self.allowed < self.online else ""
            return f"one for each physical core{where}, as two hyperthreads share its arithmetic"
        if self.allowed < self.online:
            return "the CPU affinity of the process"
        return "one for each CPU"


def thread_limits(root: Path = ROOT) -> Threads:
    """Read the limits on the threads of this process.

    Args:
        root: the folder that /proc and /sys are in.

    Returns:
        The limits. On macOS the performance cores count as CPUs allowed, without a quota.
    """
    online = os.cpu_count() or 1
    if not sys.platform.startswith("linux"):
        cores = _performance_cores() or online
        return Threads(online, cores, cores, None)
    allowed = os.sched_getaffinity(0)
    cores = len({_first_sibling(root, number) for number in allowed})
    return Threads(online, len(allowed), cores, cpu_quota(root))


def _first_sibling(root: Path, number: int) -> int:
    """The first hyperthread of a CPU's core. The system lists them as "0,64" or "0-1"."""
    text = read(root / f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list")
    first = text.replace("-", ",").split(",")[0].strip()
    return int(first) if first.isdigit() else number


@cache
def _performance_cores() -> int:
    """The fast cores of a Mac; 0 if unknown. Slow cores would be waited for at every barrier."""
    for name in ("hw.perflevel0.physicalcpu", "hw.physicalcpu"):
        text = sysctl(name)
        if text.isdigit():
            return int(text)
    return 0


def sysctl(name: str) -> str:
    """Read a value of macOS.

    Args:
        name: such as "hw.physicalcpu".

    Returns:
        The value as text; "" if there is none.
    """
    try:
        return subprocess.run(
            ["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, timeout=5
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
