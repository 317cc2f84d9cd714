"""The prefix cache: an index from the beginnings of texts to pages that have been computed.

It is a tree. An edge is the ids of a page, so that a hit compares ids and never a hash alone. A
text shares the pages of its whole edges, and of the edge where it ends or differs the positions
before that: the first to write to such a page gets a copy.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pymixtral.arrays import I32
from pymixtral.model.kv_cache import KVCache, Sequence
from pymixtral.ops import PAGE

_ID = 4
"""Bytes of an id."""

_EDGE = PAGE * _ID
"""Bytes of the ids of a whole page."""

_DEPTH = 1 << 20
"""More than the pages of any text."""


@dataclass(eq=False)
class _Node:
    """A page of the index; the root of a namespace has none.

    Attributes:
        edge: the ids that the page has, 1 to 64, big-endian, so that bytes and ids have one order;
            below 64 only in a leaf.
        page: the page of the cache.
        parent: the node of the positions before.
        namespace: that of a root.
        children: the nodes of the positions after, by their edges. None of these begins with
            another one.
        edges: the edges of the children, in order.
    """

    edge: bytes
    page: int
    parent: _Node | None
    namespace: Hashable = None
    children: dict[bytes, _Node] = field(default_factory=dict)
    edges: list[bytes] = field(default_factory=list)

    def nearest(self, edge: bytes) -> tuple[_Node | None, int]:
        """The child that has the longest common beginning with an edge, and its ids."""
        i = bisect_left(self.edges, edge)  # it is one of the two beside that place
        beside = ((_n_common(other, edge), other) for other in self.edges[max(i - 1, 0) : i + 1])
        n, other = max(beside, default=(0, b""))
        return (self.children[other], n) if n else (None, 0)


class PrefixCache:
    """An index over pages of a cache, which it holds until they are evicted.

    Whoever holds a page mostly holds those before it, too, since insert() gives a sequence the
    index's own pages in place of equal ones. A page that nobody but the index holds, nor any page
    after it, can be evicted.

    Args:
        cache: the cache that has the pages.
    """

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._roots: dict[Hashable, _Node] = {}
        self._nodes: dict[int, _Node] = {}  # by page
        self._held = np.zeros(cache.n_pages, np.bool_)
        self._above = np.full(cache.n_pages, -1, np.int32)  # the page before; -1: none
        self._age = np.zeros(cache.n_pages, np.int64)  # grows with use; less than that of the page before
        self._clock = 0

    def __len__(self) -> int:
        """The number of pages in the index."""
        return len(self._nodes)

    @property
    def n_evictable(self) -> int:
        """The number of pages that can be evicted."""
        return int(np.count_nonzero(self._evictable()))

    def match(self, ids: I32, namespace: Hashable = None) -> tuple[I32, int]:
        """Find the longest beginning of a text that has been computed.

        Args:
            ids: the text, int32 [n].
            namespace: what else the keys and values depend on, such as an adapter.

        Returns:
            The pages of the beginning, int32 [pages], which stay valid until the next evict() or
            insert(), and its length.
        """
        pages: list[int] = []
        node, at, n = self._roots.get(namespace), 0, 0
        data = _edges(ids)
        while node:
            edge = data[at : at + _EDGE]
            following = node.children.get(edge) if len(edge) == _EDGE else None
            if following is None:
                nearest, n = node.nearest(edge)
                if nearest:
                    pages.append(nearest.page)
                break
            pages.append(following.page)
            node, at = following, at + _EDGE
        found = np.array(pages, np.int32)
        self._touch(found)
        return found, at // _ID + n

    def insert(self, ids: I32, sequence: Sequence, namespace: Hashable = None, *, tail: bool = False) -> None:
        """Add the pages of a sequence to the index.

        Where the index has a page of the same text already, the sequence takes that one. A page
        that the index has for another text or namespace is left out, with those after it.

        Args:
            ids: the ids of the sequence's positions, int32 [sequence.length].
            sequence: its whole pages are added.
            namespace: as for match().
            tail: also add the last page, if it is partly used. Nobody may write to it afterwards
                without a copy: the sequence must end here.
        """
        data = _edges(ids if tail else ids[: len(ids) // PAGE * PAGE])
        if not data:
            return
        node = self._roots.get(namespace) or _Node(b"", -1, None, namespace)
        pages = sequence.pages.copy()
        n = 0
        for begin in range(0, len(data), _EDGE):
            edge, page = data[begin : begin + _EDGE], int(pages[n])
            child = node.children.get(edge)
            if child is None and len(edge) < _EDGE:
                nearest, n_common = node.nearest(edge)
                child = nearest if n_common * _ID == len(edge) else None
            if child is None:
                if self._held[page] and not self._grows(page, node, edge):
                    break
                child = self._add(node, edge, page)
            elif child.page != page:
                self._cache.hold(np.array([child.page], np.int32))
                self._cache.drop(pages[n : n + 1])
                pages[n] = child.page
            node, n = child, n + 1
        self._touch(pages[:n])
        sequence.pages = pages

    def evict(self, n: int) -> int:
        """Free pages that can be evicted, those first that were unused for longest.

        Args:
            n: how many.

        Returns:
            How many were freed, at most n.
        """
        pages = np.flatnonzero(self._evictable())
        if n < len(pages):
            pages = pages[np.argpartition(self._age[pages], n)[:n]]
        pages = pages[np.argsort(self._age[pages])]
        for page in pages.tolist():  # those after a page come before it, as they are older
            self._remove(self._nodes[page])
        return len(pages)

    def clear(self) -> None:
        """Let go of all pages."""
        self._cache.drop(np.flatnonzero(self._held).astype(np.int32))
        self._held[:] = False
        self._nodes.clear()
        self._roots.clear()

    def _evictable(self) -> NDArray[np.bool_]:
        """Whether each page can be evicted."""
        needed = self._held & (self._cache.references > 1)
        above = self._above[needed]
        while True:  # once, but for sequences that hold other pages than the index for the same text
            above = above[above >= 0]
            above = above[~needed[above]]
            if not len(above):
                return self._held & ~needed
            needed[above] = True
            above = self._above[above]

    def _grows(self, page: int, parent: _Node, edge: bytes) -> bool:
        """Whether the index has a page for the beginning of what it now has."""
        node = self._nodes[page]
        return node.parent is parent and edge.startswith(node.edge)

    def _add(self, parent: _Node, edge: bytes, page: int) -> _Node:
        """A new node, in place of a leaf that its edge begins with."""
        i = bisect_left(parent.edges, edge)
        if i and edge.startswith(parent.edges[i - 1]):
            i -= 1
            self._remove(parent.children[parent.edges[i]])
        if not parent.parent:
            self._roots[parent.namespace] = parent  # it may have been empty just now
        node = parent.children[edge] = self._nodes[page] = _Node(edge, page, parent)
        parent.edges.insert(i, edge)
        self._cache.hold(np.array([page], np.int32))
        self._held[page] = True
        self._above[page] = parent.page
        return node

    def _remove(self, node: _Node) -> None:
        parent = node.parent
        assert parent
        assert not node.children
        del parent.children[node.edge]
        del parent.edges[bisect_left(parent.edges, node.edge)]
        if not parent.children and not parent.parent:
            del self._roots[parent.namespace]
        del self._nodes[node.page]
        self._held[node.page] = False
        self._cache.drop(np.array([node.page], np.int32))

    def _touch(self, pages: I32) -> None:
        """Marks the pages of a text as used now."""
        self._clock += 1
        self._age[pages] = self._clock * _DEPTH - np.arange(len(pages))


def _edges(ids: I32) -> bytes:
    """The ids in the form of edges, one after the other."""
    return ids.astype(">i4").tobytes()


def _n_common(a: bytes, b: bytes) -> int:
    """The number of ids with which both begin."""
    n = min(len(a), len(b))
    different = np.frombuffer(a[:n], np.int32) != np.frombuffer(b[:n], np.int32)
    first = int(different.argmax()) if n else 0
    return first if n and different[first] else n // _ID
