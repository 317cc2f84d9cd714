"""The key/value cache: fixed pages of 64 positions, shared by reference count."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pymixtral.arrays import I32
from pymixtral.errors import ContextLengthError, InvalidArgumentError, NativeError
from pymixtral.ops import PAGE, CacheLayer

KV_TYPES = {"f16": 64, "f32": 128, "q8_0": 34}
"""The types of a cache, and the bytes that 32 keys or values take."""


def check_kv_type(kv_type: str, head_dim: int) -> None:
    """Raises InvalidArgumentError for a type that is unknown or cannot hold heads of head_dim."""
    if not isinstance(kv_type, str) or kv_type not in KV_TYPES:
        raise InvalidArgumentError(f"expected kv_type to be one of {', '.join(KV_TYPES)}, found {kv_type!r}")
    if kv_type == "q8_0" and head_dim % 32:
        raise InvalidArgumentError(f"expected heads of a multiple of 32 for keys and values in q8_0, found {head_dim}: use f16")


def n_pages_for(n_tokens: int) -> int:
    """Pages that n_tokens positions of one sequence take."""
    return -(-n_tokens // PAGE)


class KVCache:
    """Keys and values of all layers.

    kv_type: "f16", "f32" or "q8_0", for which head_dim is a multiple of 32.

    k: [n_layers][n_pages][n_kv_heads][head_dim][64]. v: [n_layers][n_pages][n_kv_heads][64][head_dim]. Both C-contiguous, of
    float16 or float32; of q8_0 both are uint8 [n_layers][n_pages][n_kv_heads][68*head_dim] (pmx_cache in csrc/pmx.h). Zero at first;
    the system commits their memory page by page when it is written. layers: each layer's part, as C sees it.

    A page belongs to one position range of one sequence, or of several that share a prefix. Not thread-safe: one engine thread
    owns the cache and its sequences. Raises InvalidArgumentError for sizes out of range and NativeError when there is no memory.
    """

    def __init__(self, n_layers: int, n_kv_heads: int, head_dim: int, n_pages: int, kv_type: str = "f16") -> None:
        if min(n_layers, n_kv_heads, n_pages) < 1 or n_pages >= 1 << 31:
            raise InvalidArgumentError(
                f"expected at least one layer, key/value head and cache page, and fewer than 2^31 pages, "
                f"found {n_layers}, {n_kv_heads} and {n_pages}"
            )
        if head_dim % 8 or not 8 <= head_dim <= 1024:
            raise InvalidArgumentError(f"expected a head dimension that is a multiple of 8, from 8 to 1024, found {head_dim}")
        check_kv_type(kv_type, head_dim)
        self.n_pages = n_pages
        dtype = {"f16": np.float16, "f32": np.float32, "q8_0": np.uint8}[kv_type]
        k_page, v_page = ((68 * head_dim,),) * 2 if kv_type == "q8_0" else ((head_dim, PAGE), (PAGE, head_dim))
        try:
            self.k: NDArray[Any] = np.zeros((n_layers, n_pages, n_kv_heads, *k_page), dtype)
            self.v: NDArray[Any] = np.zeros((n_layers, n_pages, n_kv_heads, *v_page), dtype)
        except (MemoryError, ValueError) as error:  # ValueError: more bytes than an address holds
            raise NativeError(f"no memory for a cache of {n_pages * PAGE} positions ({error}): ask for a shorter context") from error
        self.layers = [CacheLayer(k, v) for k, v in zip(self.k, self.v, strict=True)]
        self._references = [0] * n_pages
        self._free = list(range(n_pages - 1, -1, -1))

    @property
    def n_free_pages(self) -> int:
        return len(self._free)

    def new_sequence(self) -> Sequence:
        """An empty sequence; it takes no page before its first reserve()."""
        return Sequence(self)

    def _take(self) -> int:
        page = self._free.pop()
        self._references[page] = 1
        return page

    def _share(self, pages: I32) -> None:
        for page in pages.tolist():
            self._references[page] += 1

    def _drop(self, pages: I32) -> None:
        for page in pages.tolist():
            self._references[page] -= 1
            if not self._references[page]:
                self._free.append(page)


class Sequence:
    """The positions 0 .. length-1 of one text in a cache. Made by KVCache.new_sequence() and fork(); given back by free().

    pages: int32 [n], C-contiguous; pages[i] is the cache page of positions 64*i .. 64*i+63, with room for what is reserved. The
    array is replaced, never changed in place: a C call may keep reading the one it was given. cache: the one that has these pages.

    Writing goes in three steps: reserve(n), write positions length .. length+n-1, advance(n). A pass that fails skips advance(), and
    nothing has happened.
    """

    def __init__(self, cache: KVCache) -> None:
        self.length = 0
        self.pages: I32 = np.empty(0, np.int32)
        self.cache = cache
        self._writable = 0  # positions length .. _writable-1 may be written
        self._forked = False  # so that pages may belong to others too

    def reserve(self, n_tokens: int) -> None:
        """Makes positions length .. length+n_tokens-1 writable: takes pages, and copies the last one if it is partial and shared.

        Raises ContextLengthError when the cache has too few free pages, and changes nothing then.
        """
        cache, end = self.cache, self.length + _count(n_tokens)
        partial = self.length // PAGE
        copy = self._forked and end > self.length and self.length % PAGE > 0 and cache._references[self.pages[partial]] > 1
        n_new = max(0, n_pages_for(end) - len(self.pages))
        if n_new + copy > cache.n_free_pages:
            raise ContextLengthError(
                f"{n_tokens} tokens after position {self.length} need {n_new + copy} more pages of {PAGE} positions, but "
                f"{cache.n_free_pages} of the cache's {cache.n_pages} are free: shorten the text or ask for a longer context"
            )
        if n_new:
            self.pages = np.concatenate([self.pages, np.array([cache._take() for _ in range(n_new)], np.int32)])
        if copy:
            old, new = int(self.pages[partial]), cache._take()
            cache.k[:, new] = cache.k[:, old]
            cache.v[:, new] = cache.v[:, old]
            self._replace(partial, new)
        self._writable = max(self._writable, end)

    def advance(self, n_tokens: int) -> None:
        """Makes the next n_tokens positions, reserved and written, part of the sequence. Raises InvalidArgumentError beyond what is
        reserved."""
        end = self.length + _count(n_tokens)
        if end > max(self._writable, self.length):
            raise InvalidArgumentError(f"expected at most {self._writable - self.length} reserved tokens to advance by, found {n_tokens}")
        self.length = end

    def truncate(self, length: int) -> None:
        """Forgets the positions from `length` on, and what is reserved; gives back the pages no longer needed."""
        if not 0 <= length <= self.length:
            raise InvalidArgumentError(f"expected a length from 0 to {self.length} to truncate to, found {length}")
        kept = n_pages_for(length)
        self.cache._drop(self.pages[kept:])
        self.pages = self.pages[:kept].copy()
        self.length = self._writable = length

    def fork(self) -> Sequence:
        """A second sequence with the same contents, which shares all pages; whoever first writes to the shared partial page gets a
        copy of it. What this sequence had reserved must be reserved again."""
        other = Sequence(self.cache)
        self.truncate(self.length)
        other.length = other._writable = self.length
        other.pages = self.pages
        self._forked = other._forked = True
        self.cache._share(other.pages)
        return other

    def free(self) -> None:
        """Gives all pages back. The sequence is then empty; freeing it again does nothing."""
        self.truncate(0)

    def _replace(self, i: int, page: int) -> None:
        self.cache._drop(self.pages[i : i + 1])
        self.pages = self.pages.copy()
        self.pages[i] = page


def _count(n_tokens: int) -> int:
    if n_tokens < 0:
        raise InvalidArgumentError(f"expected a number of tokens of at least 0, found {n_tokens}")
    return n_tokens
