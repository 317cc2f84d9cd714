"""The prefetch hint of a context, chosen by measurement.

Kernels of one token ask memory for the weights that come next. Near, into the first cache, such a
request holds one of a core's few miss buffers until the data is there. Far, into the second cache,
it does not, but the weights then come from there. How early to ask depends on how long memory takes.
Which is fastest depends on the CPU, by up to 1.7 times, and no result depends on it. So a few
candidates take turns in the first passes of one token, on the model's own weights.
"""

from __future__ import annotations

import os
import resource
import time
from functools import cache
from pathlib import Path

from pymixtral.cgroups import ROOT
from pymixtral.errors import InvalidArgumentError
from pymixtral.ops.context import Context, parse_prefetch

_CANDIDATES = ("near", "far", "near:4096", "near:16384")
_TURNS = 6  # passes of each candidate; the fastest counts, as whatever disturbs a pass slows it down
_MARGIN = 0.98  # another one must take less than this part of the default's time
_SHORTEST = 0.002  # seconds; a faster pass reads its weights from a cache
_FAULTS = 64  # pages; a pass that meets more of them first waits for the system, or for the disk

_chosen: dict[tuple[str, int], str] = {}  # by instruction set and number of threads


def asked_prefetch() -> str | None:
    """Read the hint that the environment's PYMIXTRAL_PREFETCH asks for.

    Returns:
        What Context.prefetch takes, such as "far" or "near:4096"; None if it is not set.

    Raises:
        InvalidArgumentError: for another value.
    """
    asked = os.environ.get("PYMIXTRAL_PREFETCH") or None
    if asked is not None:
        try:
            parse_prefetch(asked)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(str(error).replace("prefetch", "PYMIXTRAL_PREFETCH", 1)) from None
    return asked


@cache
def default_prefetch(root: Path = ROOT) -> str:
    """Find the hint that is likely to be the faster one on this CPU.

    Args:
        root: the folder that /proc is in.

    Returns:
        "far" for AMD's family 25 (Zen 3 and 4), else "near". On Zen 4 it was measured to be up to
        1.7 times as fast; Zen 3 was not measured.
    """
    try:
        with (root / "proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            start = file.read(1024)  # the first CPU: the file is long, and slow to read, where there are many
    except OSError:
        return "near"
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in start.splitlines())}
    return "far" if (fields.get("vendor_id"), fields.get("cpu family")) == ("AuthenticAMD", "25") else "near"


class PrefetchTrial:
    """Sets a context's hint, and changes it from pass to pass until the fastest one is known.

    What a trial finds holds for all later ones of the process with the same instruction set and
    number of threads.

    Args:
        ctx: the context of the passes.

    Raises:
        InvalidArgumentError: for a wrong PYMIXTRAL_PREFETCH.
    """

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._key = (ctx.isa, ctx.n_threads)
        self._default = default_prefetch()
        fixed = asked_prefetch() or _chosen.get(self._key)
        self._running = fixed is None
        self._seconds: dict[str, list[float]] = {hint: [] for hint in dict.fromkeys((self._default, *_CANDIDATES))}
        self._begin = (0.0, 0)
        self._n_short = 0
        ctx.prefetch = fixed or self._default

    def begin(self) -> None:
        """Note that a pass begins."""
        if self._running:
            self._begin = (time.perf_counter(), _faults())

    def end(self) -> None:
        """Count the pass that began last, which was one of one token through all layers."""
        if not self._running:
            return
        seconds, faults = time.perf_counter() - self._begin[0], _faults() - self._begin[1]
        if seconds < _SHORTEST:
            self._n_short += 1
            self._running = self._n_short < 2 * _TURNS  # a small model is not watched for ever
            return
        if faults > _FAULTS:
            return
        self._seconds[self._ctx.prefetch].append(seconds)
        left = min(self._seconds, key=lambda hint: len(self._seconds[hint]))
        if len(self._seconds[left]) < _TURNS:
            self._ctx.prefetch = left
            return
        best = min(self._seconds, key=lambda hint: min(self._seconds[hint]))
        is_faster = min(self._seconds[best]) < _MARGIN * min(self._seconds[self._default])
        self._ctx.prefetch = _chosen[self._key] = best if is_faster else self._default
        self._running = False


def _faults() -> int:
    """Pages that this process met first."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_minflt + usage.ru_majflt
