"""This machine: its CPU, its instruction sets and its memory."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pymixtral import ops
from pymixtral.cgroups import ROOT, groups, read
from pymixtral.errors import InvalidArgumentError, UnsupportedError
from pymixtral.ops.threads import sysctl

# CPU features that matter for speed, as Linux names them.
_FEATURES = frozenset(
    (
        *(
            "avx",
            "avx2",
            "fma",
            "f16c",
            "avx_vnni",
            "avx512f",
            "avx512bw",
            "avx512dq",
            "avx512vl",
            "avx512_vnni",
            "avx512vbmi",
            "avx512_bf16",
        ),
        *("amx_int8", "amx_bf16", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
    )
)

# The CPU features that each instruction set of the library needs.
_NEEDS = {
    "avx2": ("avx2", "fma", "f16c"),
    "avxvnni": ("avx2", "fma", "f16c", "avx_vnni"),
    "avx512vnni": ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"),
    "avx512vbmi": (
        *("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl"),
        *("avx512_vnni", "avx512vbmi"),
    ),
    "neon": ("asimddp",),
    "neon_i8mm": ("asimddp", "i8mm"),
}
_NO_LIMIT = 1 << 60  # cgroup v1 writes the largest multiple of a page in an int64 for "no limit"


# --- CPU ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cpu:
    """The machine's CPU.

    Attributes:
        name: as the system gives it.
        features: its features that matter for speed, as Linux names them; empty if the system does
            not list them.
    """

    name: str
    features: tuple[str, ...]


def cpu(root: Path = ROOT) -> Cpu:
    """Read what the system says of the CPU.

    Args:
        root: the folder that /proc is in.

    Returns:
        The CPU's name and features.
    """
    fields: dict[str, str] = {}
    for line in read(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name") or (sysctl("machdep.cpu.brand_string") if sys.platform == "darwin" else "")
    flags = fields.get("flags", fields.get("Features", "")).split()
    return Cpu(name or platform.processor() or platform.machine(), tuple(flag for flag in flags if flag in _FEATURES))


def busy_seconds(root: Path = ROOT) -> float | None:
    """Measure how long the CPUs that this process may use have worked.

    All programs count, and what the hypervisor gave to other machines.

    Args:
        root: where /proc is.

    Returns:
        CPU seconds since the machine began, a hundredth exact; None where the system does not tell.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    allowed = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    rows = [line.split() for line in read(root / "proc/stat").splitlines()]
    # user, nice, system, idle, iowait, irq, softirq, steal; guests are part of user and nice
    ticks = sum(int(row[i]) for row in rows if row and row[0] in allowed and len(row) > 8 for i in (1, 2, 3, 6, 7, 8))
    return ticks / os.sysconf("SC_CLK_TCK") if ticks else None


@dataclass(frozen=True)
class InstructionSets:
    """The instruction sets of the C library on this machine.

    Attributes:
        built: those in this build, slowest first.
        available: those that this machine runs, slowest first.
        missing: for each of the others, the features that the CPU lacks, as far as known.
        chosen: what a context takes by default; None if PYMIXTRAL_ISA names one that does not run.
        asked: the value of PYMIXTRAL_ISA; None if it is not set.
        reason: a clause for people that says why this one is chosen, or none.
    """

    built: list[str]
    available: list[str]
    missing: dict[str, list[str]]
    chosen: str | None
    asked: str | None
    reason: str


def instruction_sets(features: tuple[str, ...] | None = None) -> InstructionSets:
    """Find the instruction sets that this machine runs.

    Args:
        features: those of the CPU; None: read now.

    Returns:
        The instruction sets, and the one chosen.
    """
    features = cpu().features if features is None else features
    built, available = ops.built_isas(), ops.available_isas()
    others = [name for name in built if name not in available]
    missing = {name: [need for need in _NEEDS.get(name, ()) if features and need not in features] for name in others}
    asked = os.environ.get("PYMIXTRAL_ISA") or None
    try:
        with ops.Context(1) as context:
            chosen = context.isa
        reason = (
            f"PYMIXTRAL_ISA asks for it; the fastest here is {available[-1]}" if asked else "the fastest that runs here"
        )
        return InstructionSets(built, available, missing, chosen, asked, reason)
    except UnsupportedError as error:
        return InstructionSets(built, available, missing, None, asked, f"PYMIXTRAL_ISA: {error}")


@dataclass(frozen=True)
class Prefetch:
    """The prefetch hint of the kernels of one token; pymixtral.ops.prefetch says what it is.

    Attributes:
        default: what a model begins with, "near" or "far"; None if PYMIXTRAL_PREFETCH is wrong.
        asked: the value of PYMIXTRAL_PREFETCH; None if it is not set.
        reason: a clause for people that says why this one is the default, or none.
    """

    default: str | None
    asked: str | None
    reason: str


def prefetch() -> Prefetch:
    """Find the prefetch hint that a model begins with on this machine.

    Returns:
        The hint. Without PYMIXTRAL_PREFETCH a model measures a few while it generates.
    """
    try:
        asked = ops.asked_prefetch()
    except InvalidArgumentError as error:
        return Prefetch(None, os.environ["PYMIXTRAL_PREFETCH"], str(error))
    if asked:
        return Prefetch(asked, asked, "PYMIXTRAL_PREFETCH asks for it")
    hint = ops.default_prefetch()
    which = "of AMD's family 25" if hint == "far" else "of this CPU"
    return Prefetch(hint, None, f"the default {which}; generation measures others too")


# --- Memory ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """The machine's memory, in bytes.

    Attributes:
        total: memory of the machine.
        available: what a process can take within the cgroup's limit without making the system swap.
            The file cache is included, as it gives way. None if the system does not tell.
        cgroup_limit: the lowest limit of the cgroups around this process; None: no limit.
        huge_pages: the setting of transparent huge pages, such as "madvise"; None if unknown.
    """

    total: int
    available: int | None
    cgroup_limit: int | None
    huge_pages: str | None

    @property
    def limit(self) -> int:
        """The most that a process could take if it were alone, in bytes."""
        return self.total if self.cgroup_limit is None else min(self.total, self.cgroup_limit)

    @property
    def usable(self) -> int:
        """`available`, or `limit` if that is unknown, in bytes."""
        return self.limit if self.available is None else self.available


def memory(root: Path = ROOT) -> Memory:
    """Read the machine's memory and its limits.

    Args:
        root: the folder that /proc and /sys are in.

    Returns:
        Sizes in bytes.
    """
    fields = dict(line.split(":", 1) for line in read(root / "proc/meminfo").splitlines() if ":" in line)
    sizes = {
        key: int(value.split()[0]) * 1024
        for key, value in fields.items()
        if value.split()[:1] and value.split()[0].isdigit()
    }
    total = sizes.get("MemTotal") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    groups = list(_memory_groups(root))
    room = [available for _, available in groups]
    if "MemAvailable" in sizes:
        room.append(sizes["MemAvailable"])
    setting = read(root / "sys/kernel/mm/transparent_hugepage/enabled")
    huge_pages = setting.partition("[")[2].partition("]")[0] or None
    return Memory(total, min(room, default=None), min((limit for limit, _ in groups), default=None), huge_pages)


def _memory_groups(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and free bytes of each limited cgroup, from this process's own up to the root.

    A cgroup counts its file cache as used, but that gives way when memory is needed.
    """
    for version, folder in groups("memory", root):
        v2 = version == 2
        names = ("memory.max", "memory.current") if v2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        limit, used = (read(folder / name).strip() for name in names)
        if limit.isdigit() and used.isdigit() and int(limit) < _NO_LIMIT:
            stat = dict(pair for line in read(folder / "memory.stat").splitlines() if len(pair := line.split()) == 2)
            prefix = "" if v2 else "total_"
            cache = sum(int(stat.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
            yield int(limit), max(0, int(limit) - int(used) + cache)
