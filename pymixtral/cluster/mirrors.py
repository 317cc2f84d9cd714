"""The caches of a pipeline: the first stage's, which has the books, and the others, which repeat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pymixtral import ops
from pymixtral.arrays import F32, I32, U8
from pymixtral.cluster.messages import Change, Copied, Rotated, Written
from pymixtral.model.kv_cache import KVCache, Sequence
from pymixtral.model.page import PageForm

Read = Callable[[list[tuple[int, int]]], list[list[U8]]]
"""Reads pages of the other stages: page and positions that count to the contents, of each stage."""


class MirroredCache(KVCache):
    """The cache of the first stage. It notes what is done to pages, for the others to repeat.

    Args:
        layers: those of the first stage.
        form: a page of the whole model.
        n_pages: pages for all sequences together.
        read: reads pages of the others.

    Attributes:
        changes: what was done and not yet sent, in order.
    """

    def __init__(self, layers: range, form: PageForm, n_pages: int, read: Read) -> None:
        super().__init__(len(layers), form.n_kv_heads, form.head_dim, n_pages, form.kv_type)
        self.changes: list[Change] = []
        self._layers, self._whole, self._read = layers, form, read

    def copy(self, page: int, to: int) -> None:
        """Copy a page; see KVCache."""
        super().copy(page, to)
        self.changes.append(Copied(page, to))

    def rotate(self, context: ops.Context, page: int, cosines: F32, sines: F32) -> None:
        """Rotate keys; see KVCache."""
        super().rotate(context, page, cosines, sines)
        self.changes.append(Rotated(page, cosines, sines))

    def write(self, page: int, content: bytes | U8) -> None:
        """Copy a page of all layers into the cache; see KVCache."""
        super().write(page, part_of_page(self._whole, content, self._layers))
        self.changes.append(Written(page, content))

    def read(self, page: int, n: int) -> U8:
        """Copy a page of all layers out of the cache; see KVCache."""
        parts = [super().read(page, n), *(pages[0] for pages in self._read([(page, n)]))]
        halves = [part.reshape(2, -1) for part in parts]
        return np.concatenate([half[0] for half in halves] + [half[1] for half in halves])


class Mirror(KVCache):
    """The cache of another stage, in the same pages. It gives none away: the first stage does.

    Args:
        layers: those of the stage.
        form: a page of the whole model.
        n_pages: pages of the first stage's cache.
    """

    def __init__(self, layers: range, form: PageForm, n_pages: int) -> None:
        super().__init__(len(layers), form.n_kv_heads, form.head_dim, n_pages, form.kv_type)
        self._layers, self._whole = layers, form
        self._free = []

    def drop(self, pages: I32) -> None:
        """Leave the pages to the first stage."""

    def text(self, length: int, pages: I32) -> Sequence:
        """Make a sequence of pages.

        Args:
            length: its positions so far.
            pages: those of them, and of the positions that follow now, int32 [n].

        Returns:
            The sequence.
        """
        sequence = Sequence(self)
        sequence.length, sequence.pages = length, np.ascontiguousarray(pages, np.int32)
        return sequence

    def repeat(self, context: ops.Context, change: Change) -> None:
        """Do to a page what the first stage did.

        Args:
            context: threads and instruction set.
            change: what it did.

        Raises:
            NonFiniteError: for a rotated key beyond the range of the cache's type.
        """
        if isinstance(change, Copied):
            self.copy(change.page, change.to)
        elif isinstance(change, Rotated):
            self.rotate(context, change.page, change.cosines, change.sines)
        else:
            self.write(change.page, part_of_page(self._whole, change.content, self._layers))


def part_of_page(form: PageForm, content: bytes | U8, layers: range) -> U8:
    """Take some layers of a page.

    Args:
        form: a page of all layers.
        content: the page.
        layers: consecutive layers.

    Returns:
        The contents that PageForm.encode() would make of these layers.
    """
    some: list[NDArray[Any]] = [half[layers.start : layers.stop].reshape(-1) for half in form.decode(content)]
    joined: U8 = np.concatenate(some).view(np.uint8)
    return joined
