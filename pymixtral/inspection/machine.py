"""What this machine has: its CPU and instruction sets, the threads that make sense, its memory, and what limits them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pymixtral.errors import UnsupportedError
from pymixtral.ops.native import ffi, lib

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
_MAX_THREADS = 256  # of a context
_NO_LIMIT = 1 << 60  # cgroup v1 writes "none" as a number above this


# --- CPU ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cpu:
    """features: those of interest for speed that it has, as Linux names them; empty where the system does not list them."""

    name: str
    features: tuple[str, ...]


def cpu(root: Path = Path("/")) -> Cpu:
    """root: where /proc is."""
    fields: dict[str, str] = {}
    for line in _read(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name") or (_sysctl("machdep.cpu.brand_string") if sys.platform == "darwin" else "")
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
    from pymixtral import ops

    features = cpu().features if features is None else features
    built: list[str] = []
    while (name := lib.pmx_isa_name(len(built))) != ffi.NULL:
        built.append(ffi.string(name).decode())
    available = ops.available_isas()
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


# --- Threads -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Threads:
    """default: what a context takes by default: the least of the others. online: CPUs of the machine. allowed: CPUs that the
    affinity mask allows. cores: distinct physical cores among these. quota: the cgroup's CPU quota in whole CPUs, or None. Where the
    system does not tell, a number is that of `default`."""

    default: int
    online: int
    allowed: int
    cores: int
    quota: int | None

    @property
    def limit(self) -> str:
        """A clause that says which number decides."""
        if self.quota is not None and self.quota <= min(self.cores, _MAX_THREADS) and self.quota < self.allowed:
            return "the cgroup's CPU quota"
        if self.cores > _MAX_THREADS:
            return f"at most {_MAX_THREADS} are used"
        if self.cores < self.allowed:
            return "one for each physical core, as two hyperthreads share its arithmetic"
        if self.allowed < self.online:
            return "the CPU affinity of the process"
        return "one for each CPU"


def threads(root: Path = Path("/")) -> Threads:
    """The numbers from which csrc/cpu.c takes the least. root: where /sys is."""
    default = int(lib.pmx_default_threads())
    if not sys.platform.startswith("linux"):
        online = os.cpu_count() or default
        return Threads(default, online, default, default, None)
    allowed = os.sched_getaffinity(0)
    siblings = {_first_sibling(root, number) for number in allowed}
    return Threads(default, os.cpu_count() or len(allowed), len(allowed), len(siblings), _quota(root))


def _first_sibling(root: Path, number: int) -> int:
    """The first hyperthread of a CPU's core, from a list such as "0,64" or "0-1"."""
    text = _read(root / f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list")
    first = text.replace("-", ",").split(",")[0].strip()
    return int(first) if first.isdigit() else number


def _quota(root: Path) -> int | None:
    """The least quota in whole CPUs of this process's cgroup and those around it (version 2: "max 100000" or "200000 100000" in one
    file), or the mount's own (version 1: two numbers in two files); None without one."""
    base = root / "sys/fs/cgroup"
    path = next((line[3:] for line in _read(root / "proc/self/cgroup").splitlines() if line.startswith("0::")), "")
    group = base / path.lstrip("/")
    texts = [_read(folder / "cpu.max") for folder in (group, *group.parents) if folder.is_relative_to(base)]
    texts.append(f"{_read(base / 'cpu/cpu.cfs_quota_us')} {_read(base / 'cpu/cpu.cfs_period_us')}")
    quotas = []
    for numbers in map(str.split, texts):
        if len(numbers) == 2 and all(number.isdigit() for number in numbers) and "0" not in numbers:  # none: "max", or version 1's -1
            quotas.append(-(-int(numbers[0]) // int(numbers[1])))
    return min(quotas, default=None)


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


def memory(root: Path = Path("/")) -> Memory:
    """root: where /proc and /sys are."""
    fields = dict(line.split(":", 1) for line in _read(root / "proc/meminfo").splitlines() if ":" in line)
    sizes = {key: int(value.split()[0]) * 1024 for key, value in fields.items() if value.split()[:1] and value.split()[0].isdigit()}
    total = sizes.get("MemTotal") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    groups = list(_memory_groups(root))
    room = [available for _, available in groups]
    if "MemAvailable" in sizes:
        room.append(sizes["MemAvailable"])
    setting = _read(root / "sys/kernel/mm/transparent_hugepage/enabled")
    huge_pages = setting.partition("[")[2].partition("]")[0] or None
    return Memory(total, min(room, default=None), min((limit for limit, _ in groups), default=None), huge_pages)


def _memory_groups(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and what is left of it, of each limited cgroup from this process's up to the root. The file cache of a group counts as
    used in its books, but gives way when memory is needed."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            base, names, prefix = root / "sys/fs/cgroup", ("memory.max", "memory.current"), ""
        elif "memory" in controllers.split(","):
            base, names, prefix = root / "sys/fs/cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_"
        else:
            continue
        group = base / path.lstrip("/")
        for folder in (group, *group.parents):
            limit, used = (_read(folder / name).strip() for name in names)
            if limit.isdigit() and used.isdigit() and int(limit) < _NO_LIMIT:
                stat = dict(pair for line in _read(folder / "memory.stat").splitlines() if len(pair := line.split()) == 2)
                cache = sum(int(stat.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
                yield int(limit), max(0, int(limit) - int(used) + cache)
            if folder == base:
                break


# --- Files -------------------------------------------------------------------------------------------------------


def _read(path: Path) -> str:
    """The text of a small system file, "" if it is not there."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _sysctl(name: str) -> str:
    try:
        return subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
