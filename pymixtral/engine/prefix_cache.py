"""The prefix cache: an index from the beginnings of texts to pages that have been computed.

It is a tree. An edge is the ids of a page, so that a hit compares ids and never a hash alone. A
text shares the pages of its whole edges, and of the edge where it ends or differs the positions
before that: the first to write to such a page gets a copy.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

import numpy as np

from pymixtral.arrays import I32
from pymixtral.model.kv_cache import KVCache, Sequence
from pymixtral.ops import PAGE


@dataclass(eq=False)
class _Node:
    """A page of the index; the root of a namespace has none.

    Attributes:
        ids: what the page has, int32 [1 to 64]; below 64 only in a leaf.
        page: the page of the cache.
        parent: the node of the positions before.
        depth: nodes above this one.
        used: when a text last went through the node, in calls.
        children: the nodes of the positions after, by the bytes of their ids.
    """

    ids: I32
    page: int
    parent: _Node | None
    depth: int
    used: int = 0
    children: dict[bytes, _Node] = field(default_factory=dict)


class PrefixCache:
    """An index over pages of a cache, which it holds until they are evicted.

    Whoever holds a page also holds those before it, since insert() gives a sequence the index's own
    pages in place of equal ones. So a page that nobody but the index holds can always be evicted
    once those after it are.

    Args:
        cache: the cache that has the pages.
    """

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._roots: dict[Hashable, _Node] = {}
        self._held = np.zeros(cache.n_pages, np.bool_)
        self._clock = 0

    def __len__(self) -> int:
        """The number of pages in the index."""
        return int(np.count_nonzero(self._held))

    @property
    def n_evictable(self) -> int:
        """The number of pages that nobody but the index holds."""
        return int(np.count_nonzero(self._held & (self._cache.references == 1)))

    def match(self, ids: I32, namespace: Hashable = None) -> tuple[I32, int]:
        """Find the longest beginning of a text that has been computed.

        Args:
            ids: the text, int32 [n].
            namespace: what else the keys and values depend on, such as an adapter.

        Returns:
            The pages of the beginning, int32 [pages], which stay valid until the next evict(), and
            its length.
        """
        pages: list[int] = []
        node, at = self._roots.get(namespace), 0
        while node:
            following = node.children.get(ids[at : at + PAGE].tobytes())
            if following is None or len(following.ids) < PAGE:
                break
            pages.append(following.page)
            node, at = following, at + PAGE
        if node:
            nearest = _nearest(node, ids[at : at + PAGE])
            n = _n_common(nearest.ids, ids[at:]) if nearest else 0
            if nearest and n:
                pages.append(nearest.page)
                node, at = nearest, at + n
            self._touch(node)
        return np.array(pages, np.int32), at

    def insert(self, ids: I32, sequence: Sequence, namespace: Hashable = None, *, tail: bool = False) -> None:
        """Add the pages of a sequence to the index.

        Where the index has a page of the same text already, the sequence takes that one.

        Args:
            ids: the ids of the sequence's positions, int32 [sequence.length].
            sequence: its whole pages are added.
            namespace: as for match().
            tail: also add the last page, if it is partly used. Nobody may write to it afterwards
                without a copy: the sequence must end here.
        """
        empty = np.empty(0, np.int32)
        node = self._roots.setdefault(namespace, _Node(empty, -1, None, 0))
        n = len(ids) if tail else len(ids) // PAGE * PAGE
        pages = sequence.pages.copy()
        for i in range(-(-n // PAGE)):
            part = ids[i * PAGE : min((i + 1) * PAGE, n)]
            child = node.children.get(part.tobytes())
            if child is None and len(part) < PAGE:
                nearest = _nearest(node, part)
                child = nearest if nearest and _n_common(nearest.ids, part) == len(part) else None
            if child is None:
                child = self._add(node, part.copy(), int(pages[i]))
            elif child.page != pages[i]:
                self._cache.hold(np.array([child.page], np.int32))
                self._cache.drop(pages[i : i + 1])
                pages[i] = child.page
            node = child
        self._touch(node)
        sequence.pages = pages

    def evict(self, n: int) -> int:
        """Free pages that nobody but the index holds, those first that were unused for longest.

        Args:
            n: how many.

        Returns:
            How many were freed, at most n.
        """
        # A node was used no later than those above it, so it comes before them in this order.
        free = (node for node in self._nodes() if self._cache.references[node.page] == 1)
        evicted = heapq.nsmallest(n, free, key=lambda node: (node.used, -node.depth))
        for node in evicted:
            self._remove(node)
        return len(evicted)

    def clear(self) -> None:
        """Let go of all pages."""
        for node in list(self._nodes()):
            self._release(node)
        self._roots.clear()

    def _add(self, parent: _Node, ids: I32, page: int) -> _Node:
        """A new node in place of leaves whose ids it begins with."""
        for other in [child for child in parent.children.values() if _n_common(child.ids, ids) == len(child.ids)]:
            self._remove(other)
        self._cache.hold(np.array([page], np.int32))
        self._held[page] = True
        node = parent.children[ids.tobytes()] = _Node(ids, page, parent, parent.depth + 1)
        return node

    def _remove(self, node: _Node) -> None:
        assert node.parent
        assert not node.children
        del node.parent.children[node.ids.tobytes()]
        self._release(node)

    def _release(self, node: _Node) -> None:
        self._held[node.page] = False
        self._cache.drop(np.array([node.page], np.int32))

    def _touch(self, node: _Node) -> None:
        """Marks a node and all above it as used now."""
        self._clock += 1
        above: _Node | None = node
        while above:
            above.used = self._clock
            above = above.parent

    def _nodes(self) -> Iterator[_Node]:
        stack = list(self._roots.values())
        while stack:
            node = stack.pop()
            stack.extend(node.children.values())
            if node.parent:
                yield node


def _nearest(node: _Node, ids: I32) -> _Node | None:
    """The child that has the longest common beginning with ids."""
    return max(node.children.values(), key=lambda child: _n_common(child.ids, ids), default=None)


def _n_common(a: I32, b: I32) -> int:
    """The length of the common beginning of two arrays."""
    n = min(len(a), len(b))
    if not n or a[0] != b[0]:
        return 0
    different = a[:n] != b[:n]
    first = int(different.argmax())
    return first if different[first] else n
