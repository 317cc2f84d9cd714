"""Mapped files in memory: kept there, and read before they are needed."""

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

PIECE_BYTES = 16 << 20  # so often an interrupt is noticed and progress told

_MLOCK_ONFAULT = 1


def lock(maps: Iterable[mmap.mmap]) -> None:
    """Keeps in memory whatever is read of the mapped files, until they are unmapped. On Linux nothing is read by this (mlock2); elsewhere
    all of it (mlock). Raises NativeError if the system refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    for mapped in maps:
        address, n_bytes = ctypes.c_void_p(_bytes(mapped).ctypes.data), ctypes.c_size_t(len(mapped))
        if libc.mlock2(address, n_bytes, _MLOCK_ONFAULT) if hasattr(libc, "mlock2") else libc.mlock(address, n_bytes):
            raise NativeError(_refusal(len(mapped), os.strerror(ctypes.get_errno())))


def _refusal(n_bytes: int, reason: str) -> str:
    limit, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit == resource.RLIM_INFINITY or limit >= n_bytes:
        return f"the system refuses to lock {n_bytes} bytes of weights in memory ({reason}): leave out lock=True"
    most = "no limit" if hard == resource.RLIM_INFINITY else f"{hard} bytes"
    return (
        f"expected to lock {n_bytes} bytes of weights in memory, found a limit of {limit} bytes (RLIMIT_MEMLOCK, {reason}): raise it with "
        f"`ulimit -l` ({most} for this user; root and CAP_IPC_LOCK have none), or leave out lock=True"
    )


def prefault(maps: Iterable[mmap.mmap], n_threads: int, progress: Callable[[int, int], None] | None = None) -> None:
    """Reads every page of the mapped files, so that none must be waited for later. progress: called with the bytes done and the bytes in
    all, in the calling thread. An exception that it raises, or an interrupt, ends the reading."""
    arrays = [_bytes(mapped) for mapped in maps]
    pieces = [array[at : at + PIECE_BYTES] for array in arrays for at in range(0, len(array), PIECE_BYTES)]
    done, total = 0, sum(map(len, arrays))
    with ThreadPoolExecutor(n_threads, "pymixtral-prefault") as pool:
        try:
            for n_bytes in pool.map(_touch, pieces):
                done += n_bytes
                if progress:
                    progress(done, total)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _bytes(mapped: mmap.mmap) -> U8:
    return np.frombuffer(mapped, np.uint8)


def _touch(piece: U8) -> int:
    piece[:: mmap.PAGESIZE].max()  # without Python's lock
    return len(piece)
