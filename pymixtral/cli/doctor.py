"""The command `pymixtral doctor`."""

from __future__ import annotations

import platform
import time
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import click

from pymixtral.cli.options import json_option
from pymixtral.cli.text import wrap, write, write_json
from pymixtral.units import show_bytes

if TYPE_CHECKING:
    from pymixtral.inspection.machine import Cpu, InstructionSets, Memory, Prefetch
    from pymixtral.ops import Threads

BUSY = 0.1
"""Part of the CPUs that others use, above which figures are not those of the machine."""

_PACKAGES = ("pymixtral", "numpy", "cffi", "gguf", "sentencepiece", "regex")


@click.command(
    epilog="""\b
Examples:
  pymixtral doctor
  pymixtral doctor --json > machine.json""",
)
@json_option
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Show what pymixtral finds on this machine, and measure it.

    Shown are the CPU and its instruction sets, threads, memory and versions. Three limits are
    measured, which takes about three seconds: how fast memory is read, which limits how fast text is
    written; how fast the kernels of pymixtral multiply in int8, which limits how fast a prompt is
    read; and how fast the disk is read that this package lies on, which limits both for a model that
    is larger than memory. GB is 10^9 bytes, GMAC/s 10^9 multiplications and additions a second. The
    exit code is 1 if something is wrong; a busy machine is named, and is no fault.
    """
    from pymixtral import ops
    from pymixtral.inspection import machine

    cpu = machine.cpu()
    isas = machine.instruction_sets(cpu.features)
    prefetch = machine.prefetch()
    threads, memory = ops.thread_limits(), machine.memory()
    begin, busy, own = time.perf_counter(), machine.busy_seconds(), time.process_time()
    probes = _probe(isas, threads, memory)
    others = _others(busy, machine.busy_seconds(), time.process_time() - own, time.perf_counter() - begin)
    problems = _problems(isas, prefetch, memory)
    if as_json:
        write_json(
            {
                "cpu": asdict(cpu),
                "instruction_sets": asdict(isas),
                "prefetch": asdict(prefetch),
                "threads": {"default": threads.default} | asdict(threads) | {"limit": threads.limit},
                "memory": asdict(memory),
                "versions": _versions(),
                "probe": probes,
                "cpus_of_others": others,
                "problems": problems,
            }
        )
    else:
        found = [*_machine(cpu, isas, prefetch), *_limits(threads, memory), *_measured(probes), *_software()]
        write("\n".join([*found, *_end(problems, others, threads.allowed)]))
    ctx.exit(1 if problems else 0)


def _probe(isas: InstructionSets, threads: Threads, memory: Memory) -> dict[str, Any]:
    """GB/s and GMAC/s by the number of threads: with one thread, and with the default number.

    int8 runs with the chosen instruction set, or with the fastest if none could be chosen.
    """
    from pymixtral.demo import demo_path
    from pymixtral.inspection import probe

    isa = isas.chosen or isas.available[-1]
    counts = sorted({1, threads.default})
    disk = probe.disk_rate(demo_path())
    return {
        "isa": isa,
        "read_gb_per_second": {
            str(n): round(rate, 2) for n, rate in probe.read_bandwidth(counts, memory.usable).items()
        },
        "int8_gmac_per_second": {str(n): round(probe.int8_rate(n, isa).gmacs, 1) for n in counts},
        "disk_gb_per_second": disk and {name: round(rate, 3) for name, rate in asdict(disk).items()},
    }


def _problems(isas: InstructionSets, prefetch: Prefetch, memory: Memory) -> list[str]:
    problems = []
    if isas.chosen is None:
        problems.append(f"No model runs: {isas.reason}.")
    elif isas.chosen == "scalar":
        problems.append(
            "Only the plain C kernels are in use, which are many times slower than those of an instruction set."
        )
    if prefetch.default is None:
        problems.append(f"No model runs: {prefetch.reason}.")
    if memory.usable < 1 << 30:
        problems.append(f"Only {show_bytes(memory.usable)} of memory are available.")
    return problems


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # imported from a folder that was never installed
            found[name] = "unknown"
    return {
        "python": platform.python_version(),
        **found,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def _row(name: str, text: str) -> str:
    return f"{name:11} " + wrap(text, " " * 12).lstrip()


def _machine(cpu: Cpu, isas: InstructionSets, prefetch: Prefetch) -> list[str]:
    lines = [_row("CPU", cpu.name)]
    if cpu.features:
        lines.append(_row("Features", " ".join(cpu.features)))
    shown = []
    for name in isas.built:
        if name in isas.available:
            shown.append(name)
        else:
            lacks = ", ".join(isas.missing[name])
            shown.append(f"{name} (not here{': the CPU lacks ' + lacks if lacks else ''})")
    chosen = isas.chosen or "none"
    return [
        *lines,
        _row("Kernels", ", ".join(shown)),
        _row("", f"chosen: {chosen} ({isas.reason})"),
        _row("Prefetch", f"{prefetch.default or 'none'} ({prefetch.reason})"),
    ]


def _limits(threads: Threads, memory: Memory) -> list[str]:
    quota = "no cgroup quota" if threads.quota is None else f"a cgroup quota of {threads.quota:g}"
    cpus = f"{threads.online} CPUs online, {threads.allowed} allowed, {threads.cores} physical cores, {quota}"
    sizes = f"{show_bytes(memory.total)} in all"
    sizes += f", {show_bytes(memory.available)} available" if memory.available is not None else ""
    sizes += (
        f", cgroup limit {show_bytes(memory.cgroup_limit)}" if memory.cgroup_limit is not None else ", no cgroup limit"
    )
    lines = [_row("Threads", f"{threads.default}: {threads.limit}"), _row("", cpus), _row("Memory", sizes)]
    return [*lines, _row("", f"transparent huge pages: {memory.huge_pages}")] if memory.huge_pages else lines


def _measured(probes: dict[str, Any]) -> list[str]:
    read = ", ".join(f"{rate:.1f} GB/s {_with(n)}" for n, rate in probes["read_gb_per_second"].items())
    int8 = ", ".join(f"{rate:.0f} GMAC/s {_with(n)}" for n, rate in probes["int8_gmac_per_second"].items())
    rates = probes["disk_gb_per_second"]
    disk = (
        f"{rates['sequential']:.2f} GB/s in sequence, {rates['random']:.2f} GB/s in pieces of 1 MB anywhere (where "
        "this package lies)"
        if rates
        else "not measured: this system does not read past its cache here"
    )
    return [
        _row("Read", read),
        _row("int8", f"{int8} (q4_0 kernel of {probes['isa']}, in cache)"),
        _row("Disk", disk),
    ]


def _with(n_threads: str) -> str:
    return f"with {n_threads} thread{'' if n_threads == '1' else 's'}"


def _software() -> list[str]:
    versions = _versions()
    system = versions.pop("system")
    return [_row("Versions", ", ".join(f"{name} {number}" for name, number in versions.items())), _row("", system)]


def _others(before: float | None, after: float | None, own: float, seconds: float) -> float | None:
    """How many CPUs others used meanwhile."""
    return None if before is None or after is None else round(max(0.0, after - before - own) / seconds, 2)


def _end(problems: list[str], others: float | None, n_cpus: int) -> list[str]:
    lines = list(problems)
    if others is not None and others > BUSY * n_cpus:
        lines.append(
            f"The machine is busy: others used {others:.1f} of {n_cpus} CPU{'s' * (n_cpus > 1)} meanwhile, so that "
            "what was measured is too low. Run it again when they have ended."
        )
    return ["", *map(wrap, lines or ["No problem found."])]
