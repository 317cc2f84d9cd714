"""The machine's limits, measured now, to compare the speed of a model with.

They are the memory's read bandwidth and the throughput of int8 products. For the bandwidth, threads
read one array, much larger than the caches, through NumPy's reductions, which release the GIL.
Which reduction has the fastest loop depends on NumPy's build and on the CPU, so several are tried
and the best one counts. The array is memory of the process, like a model file in the page cache:
reading such a mapped file, or matrix-vector products over q8_0, gave the same figures within their
noise.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from pymixtral import ops
from pymixtral.arrays import U8
from pymixtral.files.types import Matrix, row_bytes
from pymixtral.threads import starting_threads

MEMORY_BYTES = 1 << 30
"""Read for a measurement: some 30 ms a reading; the largest caches hold a small part of it."""

CACHE_BYTES = 1 << 18
"""What stays in a core's own cache."""

CHUNK_BYTES = 1 << 22
"""Threads take chunks as they go, so that one that is held up does not decide; a chunk is some
100 us of reading."""

# Half of the memory above, for users: touching a gigabyte for the first time takes a second, and
# their memory may be short.
_QUICK_BYTES = 1 << 29

Reduction = Callable[[NDArray[Any]], Any]

# All integer: they run at full speed whatever the values. Sums of floats keep an order, and hardly
# reach 20 GB/s a core.
REDUCTIONS: dict[str, tuple[type[np.generic], Reduction]] = {
    "max of int32": (np.int32, np.maximum.reduce),
    "or of uint64": (np.uint64, np.bitwise_or.reduce),
    "sum of uint64": (np.uint64, np.add.reduce),
}


class ReadBandwidth:
    """Reads an array again and again.

    Args:
        n_threads: at least 1.
        memory: uint8, a multiple of CHUNK_BYTES long, and written before: pages that were never
            written are one shared page. None: MEMORY_BYTES of its own.
    """

    def __init__(self, n_threads: int, memory: U8 | None = None) -> None:
        self.n_threads = n_threads
        self._memory = np.ones(MEMORY_BYTES, np.uint8) if memory is None else memory

    def measure(self, reduction: str | None = None, repeats: int = 3) -> float:
        """Measures the bandwidth.

        Args:
            reduction: a name of REDUCTIONS; None: each of them.
            repeats: readings with each.

        Returns:
            The best reading, in GB/s (10^9 bytes).
        """
        names = list(REDUCTIONS) if reduction is None else [reduction]
        return max(self._read(*REDUCTIONS[name]) for name in names for _ in range(repeats))

    def _read(self, dtype: type[np.generic], reduce: Reduction) -> float:
        # The threads share an iterator: next() on that of a list is atomic.
        chunks = iter(np.split(self._memory.view(dtype), self._memory.nbytes // CHUNK_BYTES))
        start = threading.Barrier(self.n_threads + 1)
        threads = [
            threading.Thread(target=_work, args=(chunks, reduce, start), daemon=True) for _ in range(self.n_threads)
        ]
        try:
            with starting_threads():
                for thread in threads:
                    thread.start()
            start.wait()
        except BaseException:  # an interrupt, or no more threads: those that wait at the barrier go
            start.abort()
            raise
        begin = time.perf_counter()
        for thread in threads:
            thread.join()
        return self._memory.nbytes / (time.perf_counter() - begin) / 1e9


def _work(chunks: Iterator[NDArray[Any]], reduce: Reduction, start: threading.Barrier) -> None:
    try:
        start.wait()
    except threading.BrokenBarrierError:
        return
    for chunk in chunks:
        reduce(chunk)


def cache_rate(reduction: str) -> float:
    """How fast one thread reads what stays in its cache.

    A reduction that is not well faster there than from memory would measure itself.

    Args:
        reduction: a name of REDUCTIONS.

    Returns:
        GB/s of reading CACHE_BYTES.
    """
    dtype, reduce = REDUCTIONS[reduction]
    array = np.ones(CACHE_BYTES, np.uint8).view(dtype)
    n = 1000
    begin = time.perf_counter()
    for _ in range(n):
        reduce(array)
    return n * CACHE_BYTES / (time.perf_counter() - begin) / 1e9


def read_bandwidth(counts: list[int], memory_available: int | None = None) -> dict[int, float]:
    """Measures the bandwidth for users: half a second at most for each number of threads.

    Args:
        counts: numbers of threads.
        memory_available: bytes. Half a GiB is read, or where less than 4 GiB are available an
            eighth of that, but at least 64 MiB. None: enough.

    Returns:
        The best reading for each number of threads, in GB/s.
    """
    n_bytes = _QUICK_BYTES if memory_available is None else min(_QUICK_BYTES, max(memory_available // 8, 1 << 26))
    memory = np.ones(n_bytes // CHUNK_BYTES * CHUNK_BYTES, np.uint8)
    seconds = 0.4  # with the reading that is under way when they end, half a second
    return {n: _best(partial(ReadBandwidth(n, memory).measure, repeats=1), seconds) for n in counts}


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


def _best(measure: Callable[[], float], seconds: float) -> float:
    """The highest of what measure() returns, called for some time and at least twice."""
    end = time.perf_counter() + seconds
    best = max(measure(), measure())
    while time.perf_counter() < end:
        best = max(best, measure())
    return best
