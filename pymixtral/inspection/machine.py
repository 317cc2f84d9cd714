"""What this machine has: its CPU, its instruction sets and its memory."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pymixtral import ops
from pymixtral.cgroups import ROOT, groups, read
from pymixtral.errors import UnsupportedError
from pymixtral.ops.threads import sysctl

# Features that decide about speed, as Linux names them.
_FEATURES = frozenset(
    (
        *("avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16"),
        *("amx_int8", "amx_bf16", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
    )
)

# What each instruction set of the library needs.
_NEEDS = {
    "avx2": ("avx2", "fma", "f16c"),
    "avxvnni": ("avx2", "fma", "f16c", "avx_vnni"),
    "avx512vnni": ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"),
    "neon": ("asimddp",),
    "neon_i8mm": ("asimddp", "i8mm"),
}
_NO_LIMIT = 1 << 60  # cgroup v1 writes "none" as a number above this


# --- CPU ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cpu:
    """features: those of interest for speed that it has, as Linux names them; empty where the system does not list them."""

    name: str
    features: tuple[str, ...]


def cpu(root: Path = ROOT) -> Cpu:
    """root: where /proc is."""
    fields: dict[str, str] = {}
    for line in read(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name") or (sysctl("machdep.cpu.brand_string") if sys.platform == "darwin" else "")
    flags = fields.get("flags", fields.get("Features", "")).split()
    return Cpu(name or platform.processor() or platform.machine(), tuple(flag for flag in flags if flag in _FEATURES))


@dataclass(frozen=True)
class InstructionSets:
    """built: in this library, slowest first. available: those that this machine runs. missing: for the others, features that the CPU
    lacks, as far as known. chosen: what a context takes by default; None if the environment asks for what is not there. asked: the
    value of PYMIXTRAL_ISA, or None. reason: a clause that says why it is chosen, or not."""

    built: list[str]
    available: list[str]
    missing: dict[str, list[str]]
    chosen: str | None
    asked: str | None
    reason: str


def instruction_sets(features: tuple[str, ...] | None = None) -> InstructionSets:
    """features: the CPU's; by default read now."""
    features = cpu().features if features is None else features
    built, available = ops.built_isas(), ops.available_isas()
    others = [name for name in built if name not in available]
    missing = {name: [need for need in _NEEDS.get(name, ()) if features and need not in features] for name in others}
    asked = os.environ.get("PYMIXTRAL_ISA") or None
    try:
        with ops.Context(1) as context:
            chosen = context.isa
        reason = f"PYMIXTRAL_ISA asks for it; the fastest here is {available[-1]}" if asked else "the fastest that runs here"
        return InstructionSets(built, available, missing, chosen, asked, reason)
    except UnsupportedError as error:
        return InstructionSets(built, available, missing, None, asked, f"PYMIXTRAL_ISA: {error}")


# --- Memory ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """Bytes. total: of the machine. available: what a process can take without pushing others out, file cache included, within
    the cgroup's limit; None where the system does not tell. cgroup_limit: the lowest limit of the cgroups around this process, or
    None. huge_pages: the setting of transparent huge pages, or None."""

    total: int
    available: int | None
    cgroup_limit: int | None
    huge_pages: str | None

    @property
    def limit(self) -> int:
        """What there can be at most, with everything else ended."""
        return self.total if self.cgroup_limit is None else min(self.total, self.cgroup_limit)

    @property
    def usable(self) -> int:
        """available, or limit where that is unknown."""
        return self.limit if self.available is None else self.available


def memory(root: Path = ROOT) -> Memory:
    """root: where /proc and /sys are."""
    fields = dict(line.split(":", 1) for line in read(root / "proc/meminfo").splitlines() if ":" in line)
    sizes = {key: int(value.split()[0]) * 1024 for key, value in fields.items() if value.split()[:1] and value.split()[0].isdigit()}
    total = sizes.get("MemTotal") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    groups = list(_memory_groups(root))
    room = [available for _, available in groups]
    if "MemAvailable" in sizes:
        room.append(sizes["MemAvailable"])
    setting = read(root / "sys/kernel/mm/transparent_hugepage/enabled")
    huge_pages = setting.partition("[")[2].partition("]")[0] or None
    return Memory(total, min(room, default=None), min((limit for limit, _ in groups), default=None), huge_pages)


def _memory_groups(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and what is left of it, of each limited cgroup from this process's up to the root. The file cache of a group counts as
    used in its books, but gives way when memory is needed."""
    for version, folder in groups("memory", root):
        v2 = version == 2
        names = ("memory.max", "memory.current") if v2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        limit, used = (read(folder / name).strip() for name in names)
        if limit.isdigit() and used.isdigit() and int(limit) < _NO_LIMIT:
            stat = dict(pair for line in read(folder / "memory.stat").splitlines() if len(pair := line.split()) == 2)
            prefix = "" if v2 else "total_"
            cache = sum(int(stat.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
            yield int(limit), max(0, int(limit) - int(used) + cache)
