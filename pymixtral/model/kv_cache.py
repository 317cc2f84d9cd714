"""The key/value cache: fixed pages of 64 positions, shared by reference count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pymixtral import ops
from pymixtral.arguments import integer, shown
from pymixtral.arrays import F32, F64, I32, U8
from pymixtral.errors import ContextLengthError, InvalidArgumentError, NativeError
from pymixtral.model.page import PageForm, keys
from pymixtral.ops import PAGE, CacheLayer, Stack

KV_TYPES = {"f16": 64, "f32": 128, "q8_0": 34}
"""The types of a cache, and the bytes that 32 elements of a key or value take. In q8_0 they are 32
of int8 and a float16 scale."""


def check_kv_type(kv_type: str, head_dim: int) -> None:
    """Check the type of a cache.

    Args:
        kv_type: the type.
        head_dim: elements of a head.

    Raises:
        InvalidArgumentError: for an unknown type, and for one that cannot hold such heads.
    """
    if not isinstance(kv_type, str) or kv_type not in KV_TYPES:
        raise InvalidArgumentError(f"expected kv_type to be one of {', '.join(KV_TYPES)}, found {shown(kv_type)}")
    if kv_type == "q8_0" and head_dim % 32:
        raise InvalidArgumentError(
            f"expected a head dimension that is a multiple of 32 for kv_type q8_0, found {head_dim}: use f16"
        )


def n_pages_for(n_tokens: int) -> int:
    """Count the pages that a sequence takes.

    Args:
        n_tokens: positions of the sequence.

    Returns:
        The number of pages, of 64 positions each.
    """
    return -(-n_tokens // PAGE)


class KVCache:
    """The keys and values of all layers, in pages of 64 positions.

    A page holds 64 consecutive positions of one sequence, or of several that share a prefix. The
    arrays are zero at first, and the system commits their memory when it is written. The cache is
    not thread-safe: one thread owns it and its sequences.

    Args:
        n_layers: layers of the model.
        n_kv_heads: key/value heads of a layer.
        head_dim: elements of a head, a multiple of 8 from 8 to 1024; with q8_0 a multiple of 32.
        n_pages: pages for all sequences together.
        kv_type: "f16", "f32" or "q8_0".

    Attributes:
        n_pages: pages for all sequences together.
        form: the form of a page.
        references: how many holders each page has, int32 [n_pages].
        k: keys, float16 or float32 [n_layers, n_pages, n_kv_heads, head_dim, 64], or in q8_0 uint8
            [n_layers, n_pages, n_kv_heads, 68*head_dim]; C-contiguous. See pmx_cache in csrc/pmx.h.
        v: values, of the same type: [n_layers, n_pages, n_kv_heads, 64, head_dim], or in q8_0 the
            shape of k.
        layers: the part of each layer, as C sees it.
        stack: the same, for ops.run_layers().

    Raises:
        InvalidArgumentError: for sizes out of range, and an unknown type.
        NativeError: if there is no memory.
    """

    def __init__(self, n_layers: int, n_kv_heads: int, head_dim: int, n_pages: int, kv_type: str = "f16") -> None:
        n_layers = integer("n_layers", n_layers, 1)
        n_kv_heads = integer("n_kv_heads", n_kv_heads, 1)
        n_pages = integer("n_pages", n_pages, 1, (1 << 31) - 1)
        head_dim = integer("head_dim", head_dim, 8, 1024)
        if head_dim % 8:
            raise InvalidArgumentError(
                f"expected a head dimension that is a multiple of 8, from 8 to 1024, found {head_dim}"
            )
        check_kv_type(kv_type, head_dim)
        self.n_pages = n_pages
        form = self.form = PageForm(n_layers, n_kv_heads, head_dim, kv_type)
        try:
            self.k: NDArray[Any] = np.zeros((n_layers, n_pages, *form.k_shape[1:]), form.dtype)
            self.v: NDArray[Any] = np.zeros((n_layers, n_pages, *form.v_shape[1:]), form.dtype)
        except (MemoryError, ValueError) as error:  # ValueError: more bytes than an address holds
            raise NativeError(
                f"expected memory for a cache of {n_pages * PAGE} positions, found too little ({error}): "
                "ask for a shorter context"
            ) from error
        self.layers = [CacheLayer(k, v) for k, v in zip(self.k, self.v, strict=True)]
        self.stack = Stack(self.layers)
        self.references: I32 = np.zeros(n_pages, np.int32)
        self._free = list(range(n_pages - 1, -1, -1))

    @property
    def n_free_pages(self) -> int:
        """The number of pages that belong to no sequence."""
        return len(self._free)

    def new_sequence(self, pages: I32 | None = None, length: int = 0) -> Sequence:
        """Make a sequence. It takes no page before its first reserve().

        Args:
            pages: pages that have its first positions and that it shares with their holders,
                int32 [pages for `length`]; None: none.
            length: the number of these positions.

        Returns:
            The sequence.

        Raises:
            InvalidArgumentError: for pages that nobody holds, or more or fewer of them than
                `length` takes.
        """
        sequence = Sequence(self)
        if pages is not None:
            self.hold(pages)
            if len(pages) != n_pages_for(length):
                self.drop(pages)
                raise InvalidArgumentError(
                    f"expected {n_pages_for(length)} pages for a length of {length}, found {len(pages)}"
                )
            sequence.pages = np.ascontiguousarray(pages, np.int32)
            sequence.length = sequence._writable = length
        return sequence

    def hold(self, pages: I32) -> None:
        """Add a holder to pages that have one. A page is free when its last holder drops it.

        Args:
            pages: different pages, int32 [n].

        Raises:
            InvalidArgumentError: for a page that is free.
        """
        if len(pages) and not self.references[pages].all():
            raise InvalidArgumentError("expected pages that somebody holds, found a free one")
        self.references[pages] += 1

    def drop(self, pages: I32) -> None:
        """Take a holder from pages.

        Args:
            pages: different pages that somebody holds, int32 [n].
        """
        self.references[pages] -= 1
        self._free.extend(pages[self.references[pages] == 0].tolist())

    def write(self, page: int, content: bytes | U8) -> None:
        """Copy a page into the cache.

        Args:
            page: a page that nobody else holds.
            content: what Sequence.read() gave, of a cache of the same form.
        """
        self.k[:, page], self.v[:, page] = self.form.decode(content)

    def read(self, page: int, n: int) -> U8:
        """Copy a page out of the cache.

        Args:
            page: the page.
            n: positions that count, 1 to 64; the others become zeros.

        Returns:
            Its contents, as PageForm.encode() makes them.
        """
        return self.form.encode(self.k[:, page], self.v[:, page], n)

    def copy(self, page: int, to: int) -> None:
        """Copy a page into another one.

        Args:
            page: the page.
            to: a page that nobody else holds.
        """
        self.k[:, to] = self.k[:, page]
        self.v[:, to] = self.v[:, page]

    def rotate(self, context: ops.Context, page: int, cosines: F32, sines: F32) -> None:
        """Rotate the first keys of a page, in all layers, and round them again.

        Args:
            context: threads and instruction set.
            page: a page that nobody else holds.
            cosines: float32 [n, head_dim/2] of the n positions that are rotated, 1 to 64.
            sines: likewise.

        Raises:
            NonFiniteError: for a rotated key beyond the range of the cache's type.
        """
        runs = ops.Runs([(len(cosines), 0, np.array([page], np.int32))])
        for layer, k, v in zip(self.layers, self.k[:, page], self.v[:, page], strict=True):
            rotated, values = ops.rope(context, keys(k)[: len(cosines)], cosines, sines), v.copy()
            ops.cache_write(context, layer, rotated, rotated, runs)
            v[...] = values

    def _take(self) -> int:
        page = self._free.pop()
        self.references[page] = 1
        return page


class Sequence:
    """One text in a cache: its positions 0 to length-1.

    KVCache.new_sequence() and fork() make sequences; free() gives their pages back.

    A pass writes in three steps: reserve(n), write positions length to length+n-1, advance(n). A
    pass that fails leaves out advance(), and the sequence is as before.

    Args:
        cache: the cache that has the pages.

    Attributes:
        length: number of positions.
        pages: int32 [n], C-contiguous: pages[i] is the cache page of positions 64*i to 64*i+63, of
            those reserved too. The array is replaced, never changed in place, because a C call may
            still read it.
        cache: the cache that has the pages.
    """

    def __init__(self, cache: KVCache) -> None:
        self.length = 0
        self.pages: I32 = np.empty(0, np.int32)
        self.cache = cache
        self._writable = 0  # positions length to _writable-1 may be written

    def reserve(self, n_tokens: int) -> None:
        """Make positions length to length+n_tokens-1 writable.

        This takes pages from the cache, and copies the last page if it is partly used and shared.

        Args:
            n_tokens: number of positions, 0 or more.

        Raises:
            ContextLengthError: if the cache has too few free pages; nothing is changed then.
            InvalidArgumentError: for a negative number.
        """
        cache, end = self.cache, self.length + _count(n_tokens)
        partial = self.length // PAGE
        copy = end > self.length and self.length % PAGE > 0 and cache.references[self.pages[partial]] > 1
        n_new = max(0, n_pages_for(end) - len(self.pages))
        if n_new + copy > cache.n_free_pages:
            raise ContextLengthError(
                f"expected {n_new + copy} free pages of {PAGE} positions for {n_tokens} tokens after position "
                f"{self.length}, found {cache.n_free_pages} of the cache's {cache.n_pages}: "
                "shorten the text or ask for a longer context"
            )
        if n_new:
            self.pages = np.concatenate([self.pages, np.array([cache._take() for _ in range(n_new)], np.int32)])
        if copy:
            self._copy(partial)
        self._writable = max(self._writable, end)

    def advance(self, n_tokens: int) -> None:
        """Append positions that are reserved and written.

        Args:
            n_tokens: number of positions, 0 or more.

        Raises:
            InvalidArgumentError: for more positions than are reserved, and for a negative number.
        """
        end = self.length + _count(n_tokens)
        if end > max(self._writable, self.length):
            raise InvalidArgumentError(
                f"expected at most {self._writable - self.length} reserved tokens to advance by, found {n_tokens}: "
                "reserve them first"
            )
        self.length = end

    def truncate(self, length: int) -> None:
        """Drop the positions from `length` on and all reserved ones, and give back their pages.

        Args:
            length: the new length, 0 to the present one.

        Raises:
            InvalidArgumentError: for another length.
        """
        if not 0 <= length <= self.length:
            raise InvalidArgumentError(f"expected a length from 0 to {self.length} to truncate to, found {length}")
        kept = n_pages_for(length)
        self.cache.drop(self.pages[kept:])
        self.pages = self.pages[:kept].copy()
        self.length = self._writable = length

    def shift(
        self,
        context: ops.Context,
        frequencies: F64,
        first: int,
        n: int,
        make_free: Callable[[int], None] | None = None,
    ) -> None:
        """Drop whole pages, and move the positions after them to their place.

        The keys there are rotated to their new positions (docs/numerics.md, context shift) and
        rounded again; values stay. They were computed with the positions that are gone in sight, so
        they are not what the text that is left would give. Shared pages are copied first. What was
        reserved must be reserved again.

        Args:
            context: threads and instruction set.
            frequencies: of the model's rotary embedding, float64 [head_dim/2].
            first: the number of the first page to drop.
            n: how many pages, at least 1, all of them full.
            make_free: is called with a number of pages that are needed, before they are taken; None:
                they are free.

        Raises:
            InvalidArgumentError: for pages that the sequence does not have in full.
            ContextLengthError: if there are too few free pages. The sequence can only be freed then,
                and after any error that follows.
            NonFiniteError: for a rotated key beyond the range of the cache's type.
        """
        if first < 0 or n < 1 or (first + n) * PAGE > self.length:
            raise InvalidArgumentError(
                f"expected 1 or more of the {self.length // PAGE} full pages to drop, found {n} from {first} on"
            )
        self.truncate(self.length)
        cosines, sines = ops.rope_table(context, frequencies, np.full(PAGE, n * PAGE, np.int32))
        for i in reversed(range(first + n, len(self.pages))):  # a page is let go after those behind it
            if self.cache.references[self.pages[i]] > 1:
                if make_free:
                    make_free(1)
                if not self.cache.n_free_pages:
                    raise ContextLengthError(
                        f"expected a free page for a copy of page {i}, found none of the cache's {self.cache.n_pages}"
                    )
                self._copy(i)
            n_keys = min(self.length - i * PAGE, PAGE)
            self.cache.rotate(context, int(self.pages[i]), cosines[:n_keys], -sines[:n_keys])
        self.cache.drop(self.pages[first : first + n])
        self.pages = np.concatenate([self.pages[:first], self.pages[first + n :]])
        self.length = self._writable = self.length - n * PAGE

    def fork(self) -> Sequence:
        """Make a second sequence with the same contents.

        Both share all pages. The first to write to a shared, partly used page gets a copy of it.
        What this sequence had reserved must be reserved again.

        Returns:
            The new sequence.
        """
        other = Sequence(self.cache)
        self.truncate(self.length)
        other.length = other._writable = self.length
        other.pages = self.pages
        self.cache.hold(other.pages)
        return other

    def read(self, first: int, n: int) -> list[U8]:
        """Copy pages out of the cache.

        Args:
            first: the number of the first page in the text.
            n: how many, fewer if the text ends before.

        Returns:
            Their contents, as PageForm.encode() makes them, with zeros after the last position.
        """
        pages = self.pages[: n_pages_for(self.length)].tolist()
        return [
            self.cache.read(pages[i], min(self.length - i * PAGE, PAGE))
            for i in range(first, min(first + n, len(pages)))
        ]

    def free(self) -> None:
        """Give all pages back. The sequence is empty afterwards. A second free() does nothing."""
        self.truncate(0)

    def _copy(self, i: int) -> None:
        """Puts a copy in the place of a page."""
        cache, old, new = self.cache, int(self.pages[i]), self.cache._take()
        cache.copy(old, new)
        cache.drop(self.pages[i : i + 1])
        self.pages = self.pages.copy()
        self.pages[i] = new


def _count(n_tokens: int) -> int:
    if n_tokens < 0:
        raise InvalidArgumentError(f"expected a number of tokens of at least 0, found {n_tokens}")
    return n_tokens
