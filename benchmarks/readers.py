"""Threads that read streams, and what the times of pieces tell."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np

from pymixtral import Mixtral
from pymixtral.engine.stream import Generation

RANDOM: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "ignore_eos": True}
"""Texts that do not end by themselves, of tokens by chance."""


class Readers:
    """Threads that read a stream each, and note when its pieces come.

    Args:
        streams: iterators.
    """

    def __init__(self, streams: Sequence[Iterator[Any]]) -> None:
        self.times: list[list[float]] = [[] for _ in streams]
        self.stopping = False
        self._threads = [
            threading.Thread(target=self._read, args=pair) for pair in zip(streams, self.times, strict=True)
        ]
        for thread in self._threads:
            thread.start()

    def _read(self, stream: Iterator[Any], times: list[float]) -> None:
        with closing(stream):  # type: ignore[type-var]
            for _ in stream:
                times.append(time.perf_counter())
                if self.stopping:
                    return

    def wait_for(self, n: int) -> None:
        """Waits until each stream has given n pieces, or is over."""
        for thread, times in zip(self._threads, self.times, strict=True):
            while thread.is_alive() and len(times) < n:
                time.sleep(0.01)

    def stop(self) -> None:
        self.stopping = True
        self.join()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def gaps(self, begin: float, end: float) -> list[float]:
        """Seconds between pieces of a stream, of those that came after `begin`; a gap that lasts at
        `end` counts as far as it has come.
        """
        found: list[float] = []
        for times in self.times:
            inside = [t for t in times if begin < t <= end]
            before = max((t for t in times if t <= begin), default=begin)
            found += np.diff([before, *inside]).tolist()
            if end - (inside or [before])[-1] > max(found, default=0.0):
                found.append(end - (inside or [before])[-1])
        return found


def first_token(model: Mixtral, prompt: list[int], **options: Any) -> tuple[float, Generation]:
    """Seconds from the call to the first token, and the stream."""
    begin = time.perf_counter()
    stream = model.stream(prompt, **{**RANDOM, "max_tokens": 1, **options})
    list(stream)
    return time.perf_counter() - begin, stream


def percentiles(values: list[float]) -> dict[str, float]:
    return {
        "p50": float(np.percentile(values, 50)),
        "p95": float(np.percentile(values, 95)),
        "p99": float(np.percentile(values, 99)),
        "most": max(values),
        "n": len(values),
    }
