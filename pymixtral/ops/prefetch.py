"""The prefetch hint of a context, chosen by measurement.

Kernels of one token ask memory for the rows that come next. Near, into the first cache, such a
request holds one of a core's few miss buffers until the data is there. Far, into the second cache,
it does not, but the row then comes from there. Which is faster depends on the CPU, by up to 1.7
times, and no result depends on it. So both take turns in the first passes of one token, on the
model's own weights.
"""

from __future__ import annotations

import os
import resource
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from pymixtral.arguments import shown
from pymixtral.cgroups import ROOT
from pymixtral.errors import InvalidArgumentError

if TYPE_CHECKING:
    from pymixtral.ops.context import Context

_HINTS = ("near", "far")
_PAIRS = 8  # passes of each hint; the fastest counts, as whatever disturbs a pass slows it down
_MARGIN = 0.98  # the other hint must take less than this part of the default's time
_SHORTEST = 0.002  # seconds; a faster pass reads its weights from a cache
_FAULTS = 64  # pages; a pass that meets more of them first waits for the system, or for the disk

_chosen: dict[tuple[str, int], str] = {}  # by instruction set and number of threads


def asked_prefetch() -> str | None:
    """Read the hint that the environment's PYMIXTRAL_PREFETCH asks for.

    Returns:
        "near" or "far"; None if it is not set.

    Raises:
        InvalidArgumentError: for another value.
    """
    asked = os.environ.get("PYMIXTRAL_PREFETCH") or None
    if asked is not None and asked not in _HINTS:
        raise InvalidArgumentError(
            f"expected PYMIXTRAL_PREFETCH to be 'near' or 'far', found {shown(asked)}: set one of them or unset it"
        )
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
    """Sets a context's hint, and changes it from pass to pass until the faster one is known.

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
        self._seconds: dict[str, list[float]] = {hint: [] for hint in _HINTS}
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
            self._running = self._n_short < 2 * _PAIRS  # a small model is not watched for ever
            return
        if faults > _FAULTS:
            return
        self._seconds[self._ctx.prefetch].append(seconds)
        other = _HINTS[1 - _HINTS.index(self._default)]
        if len(self._seconds[other]) < _PAIRS:
            self._ctx.prefetch = _HINTS[1 - _HINTS.index(self._ctx.prefetch)]
            return
        is_faster = min(self._seconds[other]) < _MARGIN * min(self._seconds[self._default])
        self._ctx.prefetch = _chosen[self._key] = other if is_faster else self._default
        self._running = False


def _faults() -> int:
    """Pages that this process met first."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_minflt + usage.ru_majflt
