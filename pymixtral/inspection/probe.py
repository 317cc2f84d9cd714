"""The machine's limits, measured now, to compare the speed of a model with.

They are the memory's read bandwidth, the throughput of int8 products, and the rate of a disk. Memory is read by the C
library on its threads, in several patterns: a thread reads one, two or four places at once, and asks
for the lines that come next, near or far, or for none. The best pattern counts. What is read is the
mapped file of a model, or an array that is much larger than the caches.
"""

from __future__ import annotations

import mmap
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType

from pymixtral import ops
from pymixtral.arrays import U8
from pymixtral.files.types import Matrix, row_bytes

MEMORY_BYTES = 1 << 30
"""Read for a measurement: some 30 ms a reading; the largest caches hold a small part of it."""

CACHE_BYTES = 1 << 19
"""What stays in a core's own cache: some 5 us of reading there, with 1 us of Python."""

# Half of the memory above, for users: touching a gigabyte for the first time takes a second, and
# their memory may be short.
_QUICK_BYTES = 1 << 29

# Of one reading, at least: a millisecond. A small file is read again and again, so that no reading
# that met a lucky moment decides.
_LEAST_BYTES = 1 << 26

PATTERNS = {
    f"{n_streams} at once, {hint or 'no'} hint": (n_streams, hint)
    for n_streams in (1, 2, 4)
    for hint in (None, "near", "far")
}
"""Name to the arguments of ops.read()."""


class ReadBandwidth:
    """Reads memory again and again.

    Args:
        n_threads: at least 1.
        memory: uint8, which was written before, as pages that were never written are one shared page,
            or a mapped file. What goes beyond a multiple of ops.LINE is not read. None: MEMORY_BYTES
            of its own.
    """

    def __init__(self, n_threads: int, memory: U8 | None = None) -> None:
        self.n_threads = n_threads
        memory = np.ones(MEMORY_BYTES, np.uint8) if memory is None else memory
        self._memory = memory[: len(memory) // ops.LINE * ops.LINE]

    def measure(self, pattern: str | None = None, repeats: int = 3) -> float:
        """Measures the bandwidth.

        Args:
            pattern: a name of PATTERNS; None: each of them.
            repeats: readings with each.

        Returns:
            The best reading, in GB/s (10^9 bytes).
        """
        names = list(PATTERNS) if pattern is None else [pattern]
        times = -(-_LEAST_BYTES // len(self._memory))
        with ops.Context(self.n_threads, "scalar") as ctx:  # reading is the same with every instruction set
            return max(self._read(ctx, name, times) for name in names for _ in range(repeats))

    def _read(self, ctx: ops.Context, name: str, times: int) -> float:
        n_streams, hint = PATTERNS[name]
        begin = time.perf_counter()
        for _ in range(times):
            ops.read(ctx, self._memory, n_streams, hint)
        return times * len(self._memory) / (time.perf_counter() - begin) / 1e9


def cache_rate(pattern: str) -> float:
    """How fast one thread reads what stays in its cache.

    A pattern that is not well faster there than from memory would measure itself.

    Args:
        pattern: a name of PATTERNS.

    Returns:
        GB/s of reading CACHE_BYTES.
    """
    return ReadBandwidth(1, np.ones(CACHE_BYTES, np.uint8)).measure(pattern)


def read_bandwidth(
    counts: list[int], memory_available: int | None = None, mapped: U8 | None = None
) -> dict[int, float]:
    """Measures the bandwidth for users: half a second or little more for each number of threads.

    Args:
        counts: numbers of threads.
        memory_available: bytes. Half a GiB is read, or where less than 4 GiB are available an
            eighth of that, but at least 64 MiB. None: enough.
        mapped: a file as it is mapped into memory, whose first half GiB is read instead.

    Returns:
        The best reading for each number of threads, in GB/s.
    """
    memory = mapped if mapped is None else mapped[:_QUICK_BYTES]
    if memory is None:
        n_bytes = _QUICK_BYTES if memory_available is None else min(_QUICK_BYTES, max(memory_available // 8, 1 << 26))
        memory = np.ones(n_bytes, np.uint8)
    # Twice all patterns, 0.2 s at 45 GB/s, and then until 0.4 s are over.
    return {n: _best(partial(ReadBandwidth(n, memory).measure, repeats=1), 0.4) for n in counts}


@dataclass(frozen=True)
class Int8Rate:
    """The throughput of int8 products.

    Attributes:
        isa: the instruction set.
        n_threads: threads that shared the work.
        gmacs: 10^9 multiply-accumulates a second.
    """

    isa: str
    n_threads: int
    gmacs: float


def int8_rate(n_threads: int, isa: str | None = None) -> Int8Rate:
    """Measures products of a q4_0 matrix with 256 tokens, which it quantizes too, for 0.3 s.

    On every instruction set the kernel of q4_0 is the fastest, or nearly so. The matrix of 1024
    rows of 4096 (2.4 MB) and the tokens stay in the caches.

    Args:
        n_threads: as of ops.Context.
        isa: as of ops.Context.

    Returns:
        The best throughput.
    """
    rows, cols, n_tokens = 1024, 4096, 256
    kind = GGMLQuantizationType.Q4_0
    matrix = Matrix(kind, np.zeros((rows, row_bytes(kind, cols)), np.uint8))
    x = np.ones((n_tokens, cols), np.float32)
    with ops.Context(n_threads, isa) as context:

        def once() -> float:
            begin = time.perf_counter()
            ops.matmul(context, x, matrix)
            return rows * cols * n_tokens / (time.perf_counter() - begin) / 1e9

        return Int8Rate(context.isa, n_threads, _best(once, 0.3))


# Read from a disk at once: as much as a system reads ahead on a fast one, and what is left of an
# expert's matrix where a part of it is still in memory.
_SEQUENTIAL_BYTES = 8 << 20
_RANDOM_BYTES = 1 << 20


@dataclass(frozen=True)
class DiskRate:
    """How fast a disk is read, in GB/s (10^9 bytes).

    Attributes:
        sequential: from the beginning on, in pieces of 8 MiB.
        random: in pieces of 1 MiB, anywhere.
    """

    sequential: float
    random: float


def disk_rate(path: str | os.PathLike[str], seconds: float = 0.5) -> DiskRate | None:
    """Measures the disk that a file lies on, past the system's cache of it (O_DIRECT).

    One piece is asked for after the other. A disk that is asked for several at once may give more.

    Args:
        path: a file of some megabytes at least; a short one is read repeatedly.
        seconds: for each of the two patterns.

    Returns:
        The rates; None where the system does not read past its cache, as macOS, and for a file that
        cannot be read, has less than 1 MiB, or loses its bytes meanwhile.
    """
    if not hasattr(os, "O_DIRECT"):
        return None
    places = random.Random(0)
    try:
        n_bytes, fd = Path(path).stat().st_size, os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            if n_bytes < _RANDOM_BYTES:
                return None
            sequence = (at for _ in count() for at in range(0, n_bytes, _SEQUENTIAL_BYTES))
            pieces = (places.randrange(n_bytes // _RANDOM_BYTES) * _RANDOM_BYTES for _ in count())
            return DiskRate(
                _disk_rate(fd, _SEQUENTIAL_BYTES, sequence, seconds), _disk_rate(fd, _RANDOM_BYTES, pieces, seconds)
            )
        finally:
            os.close(fd)
    except OSError:
        return None


def _disk_rate(fd: int, n_bytes: int, places: Iterator[int], seconds: float) -> float:
    """GB/s of reading pieces at some places for some time."""
    with closing(mmap.mmap(-1, n_bytes)) as buffer:  # whose address suits every disk
        os.preadv(fd, [buffer], next(places))  # which also touches the buffer
        begin, n_read, passed = time.perf_counter(), 0, 0.0
        while passed < seconds:
            n_read += os.preadv(fd, [buffer], next(places))
            passed = time.perf_counter() - begin
        if not n_read:
            raise OSError("expected bytes, found none: the file became shorter")
        return n_read / passed / 1e9


def _best(measure: Callable[[], float], seconds: float) -> float:
    """The highest of what measure() returns, called for some time and at least twice."""
    end = time.perf_counter() + seconds
    best = max(measure(), measure())
    while time.perf_counter() < end:
        best = max(best, measure())
    return best
