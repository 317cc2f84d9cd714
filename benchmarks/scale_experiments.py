"""Where each design breaks: fleets of scale_fleet.py, one table a question."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from scale_cost import ALONE, Cost, cost, named
from scale_fleet import Fleet
from scale_routing import POWER_OF_TWO, Routing
from scale_tally import Tally
from scale_workload import CHAT, DOCUMENTS, SINGLE, Workload

SHAPE = "m8a.4xlarge"
"""16 cores and 64 GiB: what deploy/kubernetes asks for."""

HTTP = 0.12e-3
"""Seconds of a core for a token over HTTP. Measured, of the server."""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: what it shows.
        head: of the columns.
        rows: cells.
    """

    title: str
    head: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Size:
    """How large the experiments are.

    Attributes:
        machines: in most of them.
        many: in the largest.
        seconds: that are counted.
        warm: seconds before that.
        seed: of all of them.
    """

    machines: int = 60
    many: int = 2000
    seconds: float = 900.0
    warm: float = 600.0
    seed: int = 1


_LONGER = 2.5
"""Times as long until conversations are warm: the last of their questions come after many minutes."""


def means(workload: Workload, n: int = 4000) -> tuple[float, float, float]:
    """Draw conversations, and return the mean tokens of a prompt and an answer, and questions of each."""
    rng = np.random.default_rng(0)
    turns = [turn for _ in range(n) for turn in workload.conversation(rng).turns]
    prompts, answers = np.array(turns, np.float64).T
    return float(prompts.mean()), float(answers.mean()), len(turns) / n


def capacity(one: Cost, workload: Workload, texts: int, hits: float = 0.0) -> float:
    """The questions/s of a machine by the closed form, if the cache has a part of the prompts."""
    prompt, answer, _ = means(workload)
    return one.capacity((1 - hits) * prompt, answer, texts)


def settled(
    one: Cost,
    size: Size,
    workload: Workload,
    rate: float,
    *,
    n: int | None = None,
    **options: object,
) -> tuple[Fleet, Tally]:
    """Run a fleet until it is warm, and then for a while.

    Args:
        one: cost of a pass.
        size: of the experiment.
        workload: what is asked.
        rate: questions/s of each engine.
        n: engines; None: as many as size says.
        **options: of Fleet.
    """
    n = n or size.machines
    fleet = Fleet(one, n, workload, n * rate / means(workload)[2], seed=size.seed, **options)  # type: ignore[arg-type]
    fleet.run(size.warm)
    fleet.restart()
    return fleet, fleet.run(size.warm + size.seconds)


def s(seconds: float) -> str:
    return "never" if seconds != seconds else f"{seconds:.2f}" if seconds < 10 else f"{seconds:.0f}"


def seen(tally: Tally) -> list[str]:
    """The cells of what callers see."""
    first, between = tally.first.quantile, tally.between.quantile
    return [f"{s(first(0.5))} ({s(first(0.99))})", f"{s(between(0.5))} ({s(between(0.99))})"]


SEEN = ["first token, s: median (99%)", "between tokens, s: median (99%)"]


# --- Agreement ----------------------------------------------------------------------------------------------


def agreement(size: Size) -> Table:
    """A machine that always has more questions than it can run, beside the closed form."""
    rows = []
    prompt, answer, _ = means(SINGLE)
    for texts in (1, 2, 4, 8, 16, 32, 64):
        one = cost("8x7b", "q4_k_m", named(SHAPE))
        paper = one.capacity(prompt, answer, texts) * answer
        _, tally = settled(one, size, SINGLE, 3 * paper / answer, n=4, max_running=texts)
        found = tally.generated / size.seconds / 4
        rows.append([f"{texts}", f"{paper:.1f}", f"{found:.1f}", f"{found / paper - 1:+.0%}", f"{tally.batch:.1f}"])
    head = ["texts at once", "tokens/s on paper", "simulated", "difference", "texts in a pass"]
    return Table(f"Single questions without end, one {SHAPE}, 8x7B in q4_k_m", head, rows)


# --- Replicas -----------------------------------------------------------------------------------------------


def load(size: Size) -> Table:
    """Replicas at more and more of their capacity."""
    one = cost("8x7b", "q4_k_m", named(SHAPE))
    full = capacity(one, SINGLE, 16)
    rows = []
    for part in (0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1):
        fleet, tally = settled(one, size, SINGLE, part * full)
        waiting = sum(len(engine.scheduler.waiting) for engine in fleet.engines) / len(fleet.engines)
        speed = tally.generated / size.seconds / size.machines
        rows.append([f"{part:.0%}", f"{speed:.1f}", f"{tally.batch:.1f}", *seen(tally), f"{waiting:.1f}"])
    head = ["of the capacity on paper", "tokens/s of a machine", "texts in a pass", *SEEN, "waiting at the end"]
    return Table(f"Single questions, {size.machines} {SHAPE}, power of two", head, rows)


_NUMBER = [
    (SINGLE, "power of two", POWER_OF_TWO),
    (SINGLE, "power of two, 16 fronts", Routing("two", fronts=16)),
    (SINGLE, "least, 1 s old", Routing("least", stale=1)),
    (SINGLE, "least, 10 s old", Routing("least", stale=10)),
    (CHAT, "conversation", Routing("conversation")),
]


def number(size: Size) -> Table:
    """The same load of each machine, with more and more machines.

    Their caches are smaller than a machine's memory, and large enough: single questions hit nothing, and
    512 pages hold what conversations come back to. The largest fleet is counted for a ninth of the time,
    the others for a third.
    """
    one = cost("8x7b", "q4_k_m", named(SHAPE))
    rows = []
    for n in (size.many // 100, size.many // 10, size.many):
        for workload, name, routing in _NUMBER:
            chat = workload is CHAT
            counted = size.seconds / (9 if n == size.many else 3)
            shorter = replace(size, seconds=counted, warm=size.warm * (1.5 if chat else 0.5))
            rate = 0.8 * capacity(one, workload, 16, hits=0.85 * chat)
            pages = 512 if chat else 256
            fleet, tally = settled(one, shorter, workload, rate, n=n, routing=routing, n_pages=pages)
            speed = tally.generated / counted
            busiest = max(engine.n_texts for engine in fleet.engines)
            del fleet  # before the next one is made
            row = [f"{n}", workload.name, name, f"{tally.hits:.0%}" * chat, *seen(tally), f"{busiest}"]
            rows.append([*row, f"{speed:.0f}", f"{speed * HTTP:.2f}"])
    head = ["machines", "questions", "router", "hits", *SEEN, "texts of the busiest", "tokens/s of all"]
    return Table("80% of the capacity", [*head, "cores that pass them on"], rows)


_ROUTERS = {
    "random": Routing("random"),
    "power of two": POWER_OF_TWO,
    "first page": Routing("prefix", pages=1),
    "first 8 pages": Routing("prefix", pages=8),
    "conversation": Routing("conversation"),
}


def routers(size: Size) -> Table:
    """Conversations by different routers, at a load that only a warm cache can bear."""
    one = cost("8x7b", "q4_k_m", named(SHAPE))
    size = replace(size, warm=_LONGER * size.warm)
    rows = []
    for part in (0.5, 0.8):
        rate = part * capacity(one, CHAT, 16, hits=0.85)
        for name, routing in _ROUTERS.items():
            fleet, tally = settled(one, size, CHAT, rate, routing=routing)
            most = max(engine.n_texts for engine in fleet.engines)
            rows.append([f"{part:.0%}", name, f"{tally.hits:.0%}", *seen(tally), f"{most}"])
    head = ["load", "router", "hits", *SEEN, "texts of the busiest"]
    return Table(f"Conversations, {size.machines} {SHAPE}, 20 system prompts of 256 tokens", head, rows)


def changes(size: Size) -> Table:
    """Machines that come, and machines that fail."""
    size = replace(size, warm=_LONGER * size.warm)
    one = cost("8x7b", "q4_k_m", named(SHAPE))
    rate = 0.7 * capacity(one, CHAT, 16, hits=0.85)
    rows = []
    for name in ("power of two", "conversation"):
        n = size.machines
        begins = n * rate / means(CHAT)[2]
        growth = (n // 2, size.warm + 300)
        fleet = Fleet(one, n, CHAT, begins, seed=size.seed, routing=_ROUTERS[name], growth=growth)
        fleet.run(size.warm)
        for what, until in (
            ("before", 300.0),
            ("2 minutes after half as many came", 420.0),
            ("10 minutes later", 1020.0),
        ):
            fleet.restart()
            fleet.run(size.warm + until)
            rows.append([name, what, f"{fleet.tally.hits:.0%}", *seen(fleet.tally), ""])
        for life in (4 * 3600.0, 1800.0):
            _, tally = settled(one, size, CHAT, rate, routing=_ROUTERS[name], life=life, repair=180.0)
            what = f"a machine lives {life / 3600:g} h"
            rows.append([name, what, f"{tally.hits:.0%}", *seen(tally), f"{tally.retried / max(tally.asked, 1):.2%}"])
    return Table(
        f"Conversations at 70%, {size.machines} {SHAPE}", ["router", "when", "hits", *SEEN, "asked again"], rows
    )


# --- Batches, memory, prompts -------------------------------------------------------------------------------


def batches(size: Size) -> Table:
    """Documents, by the texts that may run at once: keys and values, and what callers wait."""
    rows = []
    for shape, workload in ((SHAPE, DOCUMENTS), ("c8a.8xlarge", DOCUMENTS), ("c8a.4xlarge", DOCUMENTS)):
        one = cost("8x7b", "q4_k_m", named(shape))
        if one.n_pages * 64 < workload.context + 64:
            rows.append([shape, f"{max(one.n_pages, 0) * 64}", "", "does not fit", "", "", ""])
            continue
        for texts in (8, 16, 32, 64):
            rate = 2 * capacity(one, workload, 64)
            fleet, tally = settled(one, size, workload, rate, n=8, max_running=texts, routing=_ROUTERS["power of two"])
            held = np.mean([len(engine.scheduler.running) for engine in fleet.engines])
            speed = tally.generated / size.seconds / 8
            row = [shape, f"{one.n_pages * 64}", f"{texts}", f"{speed:.1f}", f"{held:.0f}"]
            rows.append([*row, seen(tally)[1], f"{tally.preempted / max(tally.finished, 1):.2f}"])
    head = ["machine", "positions", "texts at most", "tokens/s", "running", SEEN[1], "preempted, of an answer"]
    return Table("Documents without end, 8 machines", head, rows)


def paces(size: Size) -> Table:
    """The pace: what prompts cost those who read."""
    one = cost("8x7b", "q4_k_m", named(SHAPE))
    rows = []
    for workload in (SINGLE, DOCUMENTS):
        rate = 0.6 * capacity(one, workload, 16)
        for name, pace in (("0.3 s", 0.3), ("0.5 s", 0.5), ("default", None), ("3 s", 3.0)):
            _, tally = settled(one, size, workload, rate, pace=pace)
            rows.append([workload.name, name, f"{tally.generated / size.seconds / size.machines:.1f}", *seen(tally)])
    return Table(f"Pace at 60%, {size.machines} {SHAPE}", ["questions", "pace", "tokens/s of a machine", *SEEN], rows)


# --- Pipelines ----------------------------------------------------------------------------------------------

_DESIGNS = {  # cores alike: 96
    "1 machine of 96 cores": ("r8a.24xlarge", 1, 1, 16),
    "3 machines of 32 cores": ("r8a.8xlarge", 1, 3, 16),
    "2 stages of 48 cores": ("m8a.12xlarge", 2, 2, 16),
    "6 stages of 16 cores": ("m8a.4xlarge", 6, 6, 16),
}


def pipelines(size: Size) -> Table:
    """8x22B on 96 cores in different forms, with even and uneven prompts."""
    rows = []
    for workload in (SINGLE, DOCUMENTS):
        for name, (shape, stages, n, texts) in _DESIGNS.items():
            one = cost("8x22b", "q4_k_m", named(shape), stages=stages)
            if one.n_pages // stages * 64 < workload.context + 64:
                rows.append([workload.name, name, "does not fit", *[""] * 3])
                continue
            each = one.capacity(*means(workload)[:2], texts)
            units = n // stages
            cells = []
            for part in (0.6, 2.0):
                _, tally = settled(one, size, workload, part * each / stages, n=4 * n, max_running=texts)
                cells.append(tally)
            speed = cells[1].generated / size.seconds / 4
            paper = units * each * means(workload)[1]
            rows.append([workload.name, name, f"{paper:.0f}", f"{speed:.0f}", *seen(cells[0])])
    head = [
        "questions",
        "96 cores as",
        "tokens/s on paper",
        "simulated, without end",
        *[f"at 60%: {one}" for one in SEEN],
    ]
    return Table("8x22B in q4_k_m, 16 texts at once in each machine or micro-batch", head, rows)


def knee(_: Size) -> Table:
    """On paper: what the next doubling of the batch brings, on a full host and on an empty one."""
    rows = []
    for name, per_core in (("full host, 5 GB/s a core", 5.0), ("empty host, 30 GB/s a core", ALONE)):
        one = cost("8x7b", "q4_k_m", replace(named(SHAPE, per_core), bandwidth=per_core * 16e9))
        speeds = [one.generation(n, 500) for n in (1, 2, 4, 8, 16, 32, 64, 128)]
        gains = [f"{b / a:.2f}" for a, b in pairwise(speeds)]
        rows.append([name, f"{speeds[0]:.1f}", *gains, f"{one.prompt_speed(512):.0f}"])
    doublings = [f"{n} to {2 * n}" for n in (1, 2, 4, 8, 16, 32, 64)]
    head = [f"{SHAPE}, 8x7B, q4_k_m", "tokens/s of 1", *doublings, "prompt tokens/s"]
    return Table("Times as fast with twice the texts, on paper", head, rows)


EXPERIMENTS: dict[str, Callable[[Size], Table]] = {
    one.__name__: one for one in (agreement, knee, load, number, routers, changes, batches, paces, pipelines)
}
"""By name."""
