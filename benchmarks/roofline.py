"""The machine's limits, measured now: what the speed of a model is to be compared with.

    python benchmarks/roofline.py [-t THREADS]

Memory read bandwidth: threads read one array, much larger than the caches, through NumPy reductions, which release the GIL. Which reduction
has the fastest loop depends on NumPy's build and the CPU, so several are tried and the best one counts; the table shows each from the
cache as well: a loop that is not well faster there than from memory would measure itself. The array is memory of the process, like
a model file in the page cache; reading such a mapped file instead gave the same figures within their noise.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

MEMORY_BYTES = 1 << 30  # some 30 ms a reading; the largest caches hold a small part of it
CACHE_BYTES = 1 << 18
CHUNK_BYTES = 1 << 22  # threads take chunks as they go, so that one that is held up does not decide; a chunk is some 100 us of reading

Reduction = Callable[[NDArray[Any]], Any]

# All integer: they run at full speed whatever the values. Sums of floats keep an order, and hardly reach 20 GB/s a core.
REDUCTIONS: dict[str, tuple[type[np.generic], Reduction]] = {
    "max of int32": (np.int32, np.maximum.reduce),
    "or of uint64": (np.uint64, np.bitwise_or.reduce),
    "sum of uint64": (np.uint64, np.add.reduce),
}


class ReadBandwidth:
    """Reads 1 GiB again and again. n_threads: at least 1."""

    def __init__(self, n_threads: int) -> None:
        self.n_threads = n_threads
        self._memory = np.ones(MEMORY_BYTES, np.uint8)  # ones: zeros would be one shared page

    def measure(self, reduction: str | None = None, repeats: int = 3) -> float:
        """The best of `repeats` readings with one or (None) each of the reductions, in GB/s (10^9 bytes)."""
        names = list(REDUCTIONS) if reduction is None else [reduction]
        return max(self._read(*REDUCTIONS[name]) for name in names for _ in range(repeats))

    def _read(self, dtype: type[np.generic], reduce: Reduction) -> float:
        chunks = iter(np.split(self._memory.view(dtype), MEMORY_BYTES // CHUNK_BYTES))  # next() on a list's iterator is atomic
        start = threading.Barrier(self.n_threads + 1)
        threads = [threading.Thread(target=_work, args=(chunks, reduce, start)) for _ in range(self.n_threads)]
        for thread in threads:
            thread.start()
        start.wait()
        begin = time.perf_counter()
        for thread in threads:
            thread.join()
        return MEMORY_BYTES / (time.perf_counter() - begin) / 1e9


def _work(chunks: Iterator[NDArray[Any]], reduce: Reduction, start: threading.Barrier) -> None:
    start.wait()
    for chunk in chunks:
        reduce(chunk)


def cache_rate(reduction: str) -> float:
    """GB/s of one thread reading 256 KiB that stay in its cache."""
    dtype, reduce = REDUCTIONS[reduction]
    array = np.ones(CACHE_BYTES, np.uint8).view(dtype)
    n = 1000
    begin = time.perf_counter()
    for _ in range(n):
        reduce(array)
    return n * CACHE_BYTES / (time.perf_counter() - begin) / 1e9


@click.command()
@click.option("-t", "--threads", type=click.IntRange(1, 256), default=os.cpu_count() or 1, show_default="one per CPU")
def main(threads: int) -> None:
    """Print the memory read bandwidth of one and of several threads."""
    one, several = ReadBandwidth(1), ReadBandwidth(threads)
    click.echo(f"read, GB/s        cache, 1 thread   memory, 1 thread   memory, {threads} threads   (load {os.getloadavg()[0]:.2f})")
    for name in REDUCTIONS:
        rates = cache_rate(name), one.measure(name), several.measure(name)
        click.echo(f"{name:16}  {rates[0]:15.1f}   {rates[1]:16.1f}   {rates[2]:17.1f}")


if __name__ == "__main__":
    main()
