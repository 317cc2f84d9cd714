"""Mapped files in memory: locked there, and read before they are needed."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pymixtral.arrays import U8
from pymixtral.errors import NativeError
from pymixtral.model.weights import ModelWeights
from pymixtral.threads import starting_threads

PIECE_BYTES = 16 << 20
"""Bytes that a thread reads at once, some 10 ms from a fast disk. Between two pieces progress is
reported and an interrupt is noticed."""

_MLOCK_ONFAULT = 1  # of mlock2 in Linux: pages are locked when they are first read


def lock(maps: Iterable[mmap.mmap | U8]) -> None:
    """Keep in memory whatever is read of mapped files, until they are unmapped.

    On Linux this reads nothing by itself (mlock2); elsewhere it reads the files whole (mlock).

    Args:
        maps: the mapped files, or parts of them, uint8 [n].

    Raises:
        NativeError: if the system refuses.
    """
    for mapped in maps:
        _lock(_bytes(mapped).ctypes.data, len(mapped))


def lock_part(weights: ModelWeights, n_bytes: int) -> int:
    """Keep a part of a model in memory, once it has been read, until its files are unmapped.

    It is what every token reads, and then experts, as many of each layer, so that a pass that uses
    all of them finds the same part each time. The least recently used would be evicted otherwise,
    which is always the one that is used next.

    Args:
        weights: views of mapped files.
        n_bytes: the most bytes to keep.

    Returns:
        The bytes that are kept, without the rest of their pages.

    Raises:
        NativeError: if the system refuses.
    """
    parts = [weights.head, *(m for layer in weights.layers for m in (layer.q, layer.k, layer.v, layer.output))]
    parts += [layer.router for layer in weights.layers if layer.router]
    each = zip(*(layer.experts for layer in weights.layers), strict=True)
    parts += [matrix for alike in each for expert in alike for matrix in expert]
    kept = 0
    for part in parts:
        if kept + part.data.nbytes > n_bytes:
            break
        kept += part.data.nbytes
        _lock(part.data.ctypes.data, part.data.nbytes)
    return kept


def _lock(address: int, n_bytes: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)  # which takes whole pages, also where a part begins within one
    where = ctypes.c_void_p(address), ctypes.c_size_t(n_bytes)
    if libc.mlock2(*where, _MLOCK_ONFAULT) if hasattr(libc, "mlock2") else libc.mlock(*where):
        raise NativeError(_refusal(n_bytes, os.strerror(ctypes.get_errno())))


def _refusal(n_bytes: int, reason: str) -> str:
    limit, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit == resource.RLIM_INFINITY or limit >= n_bytes:
        return f"expected to lock {n_bytes} bytes of weights in memory, found an error ({reason}): leave out lock=True"
    most = "no limit" if hard == resource.RLIM_INFINITY else f"{hard} bytes"
    return (
        f"expected to lock {n_bytes} bytes of weights in memory, found a limit of {limit} bytes (RLIMIT_MEMLOCK, "
        f"{reason}): raise it with `ulimit -l` ({most} for this user; root and CAP_IPC_LOCK have none), or leave out "
        "lock=True"
    )


def prefault(
    maps: Iterable[mmap.mmap | U8], n_threads: int, progress: Callable[[int, int], None] | None = None
) -> None:
    """Read every page of mapped files, so that the model does not wait for the disk later.

    Args:
        maps: the mapped files, or parts of them, uint8 [n].
        n_threads: threads that read.
        progress: called in this thread with the bytes read so far and the bytes in all. An
            exception that it raises ends the reading, as an interrupt does.
    """
    arrays = [_bytes(mapped) for mapped in maps]
    pieces = [array[at : at + PIECE_BYTES] for array in arrays for at in range(0, len(array), PIECE_BYTES)]
    done, total = 0, sum(map(len, arrays))
    with starting_threads(), ThreadPoolExecutor(n_threads, "pymixtral-prefault") as pool:
        try:
            for n_bytes in pool.map(_touch, pieces):
                done += n_bytes
                if progress:
                    progress(done, total)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _bytes(mapped: mmap.mmap | U8) -> U8:
    return np.frombuffer(mapped, np.uint8)


def _touch(piece: U8) -> int:
    piece[:: mmap.PAGESIZE].max()  # NumPy releases the GIL, so threads read at the same time
    return len(piece)
