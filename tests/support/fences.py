"""Arrays between fences: guard bytes around what C writes, a page that cannot be read behind what
it reads.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

GUARD = 0xA5
MARGIN = 256


class Guarded:
    """An output array with MARGIN guard bytes on either side, 4 bytes past the alignment that
    allocators give.
    """

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike, contents: NDArray[Any] | None = None) -> None:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self._whole = np.full(64 + MARGIN + size + MARGIN, GUARD, np.uint8)
        begin = MARGIN + (4 - (self._whole.ctypes.data + MARGIN)) % 64
        self._edges = begin, begin + size
        self.array: NDArray[Any] = self._whole[begin : begin + size].view(dtype).reshape(shape)
        if contents is not None:
            self.array[...] = contents

    @property
    def guards_intact(self) -> bool:
        begin, end = self._edges
        return bool((self._whole[:begin] == GUARD).all() and (self._whole[end:] == GUARD).all())

    @property
    def untouched(self) -> bool:
        return bool((self._whole == GUARD).all())


_PAGE = mmap.PAGESIZE


def fenced(array: NDArray[Any]) -> NDArray[Any]:
    """A copy that ends where readable memory ends: the process dies if anything is read beyond it."""
    size = -(-array.nbytes // _PAGE) * _PAGE
    memory = mmap.mmap(-1, size + _PAGE)
    base = np.frombuffer(memory, np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if libc.mprotect(base.ctypes.data + size, _PAGE, 0) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")
    copy = base[size - array.nbytes : size].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
