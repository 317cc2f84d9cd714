"""The pages of running texts, and the prefix cache that gets them afterwards."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from pymixtral.arrays import I32, U8
from pymixtral.engine.prefix_cache import PrefixCache
from pymixtral.engine.requests import Request
from pymixtral.engine.scheduler import Entry
from pymixtral.errors import ContextLengthError
from pymixtral.model.forward import Model
from pymixtral.model.kv_cache import KVCache
from pymixtral.ops import PAGE


class Pages:
    """The scheduler's pool.

    Args:
        cache: the model's cache.

    Attributes:
        cache: see above.
        requests: the request of each entry.
    """

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        self.requests: dict[Entry, Request] = {}
        self._prefix = PrefixCache(cache)

    @property
    def n_cached(self) -> int:
        """The number of pages that only the prefix cache holds, so that they can be evicted."""
        return self._prefix.n_evictable

    def n_available(self) -> int:
        """Count pages; see Pool."""
        return self.cache.n_free_pages + self._prefix.n_evictable

    def begin(self, entry: Entry) -> None:
        """Take a text up; see Pool."""
        request = self.requests[entry]
        most = request.n_ids - 1  # the last is computed in any case, for its row
        if request.rows:
            most = min(most, request.rows.start)
        if request.trace is not None:
            most = min(most, request.trace.n_tokens - request.n_cut)
        pages, length = self._prefix.match(request.ids[:most], request.namespace)
        request.sequence = self.cache.new_sequence(pages, length)
        request.n_indexed = length
        request.shifted = False
        entry.n_computed = length
        entry.shares_tail = length % PAGE > 0

    def release(self, entry: Entry) -> None:
        """Take all pages from a text; see Pool."""
        self.leave(self.requests[entry])
        entry.n_computed = 0
        entry.shares_tail = False

    def fork(self, entry: Entry, other: Entry) -> None:
        """Give a text the pages of another one that begins like it.

        Args:
            entry: has pages.
            other: has none.
        """
        sequence = self.requests[entry].sequence
        assert sequence
        self.requests[other].sequence = sequence.fork()
        other.n_computed = entry.n_computed
        other.shares_tail = entry.shares_tail = sequence.length % PAGE > 0

    def index(self, request: Request) -> None:
        """Let other texts share the whole pages that a running text has.

        Args:
            request: has a sequence.
        """
        sequence = request.sequence
        assert sequence
        if sequence.length // PAGE > request.n_indexed // PAGE and not request.shifted:
            request.n_indexed = sequence.length // PAGE * PAGE
            self._prefix.insert(self._ids(request), sequence, request.namespace)

    def leave(self, request: Request) -> None:
        """Give a text's pages to the prefix cache.

        Args:
            request: it may have none.
        """
        sequence, request.sequence = request.sequence, None
        if sequence is not None:
            if sequence.length > request.n_indexed and request.failed is None and not request.shifted:
                self._prefix.insert(request.ids[: sequence.length], sequence, request.namespace, tail=True)
            sequence.free()

    def shift(self, entry: Entry, pages: range, model: Model) -> None:
        """Drop whole pages from the middle of a text whose ids there are gone already.

        Those after them move to their place, or are computed again if there is no room for copies
        of pages that others have, too.

        Args:
            entry: has pages.
            pages: the numbers of those to drop.
            model: rotates the keys.

        Raises:
            NonFiniteError: for a rotated key beyond the range of the cache's type.
        """
        request = self.requests[entry]
        sequence = request.sequence
        assert sequence
        try:
            model.shift(sequence, pages.start, len(pages), self.make_free)
        except ContextLengthError:
            sequence.free()
            self.begin(entry)
        else:
            request.shifted = True
            entry.n_computed = sequence.length
            entry.shares_tail = False

    def find(self, ids: I32, first: int, n: int, namespace: Hashable = None) -> list[U8] | None:
        """Copy pages of a text out of the prefix cache.

        Args:
            ids: the text, int32 [1 or more].
            first: the number of the first page that is wanted.
            n: how many are wanted, fewer if the text ends before.
            namespace: the text's; see PrefixCache.

        Returns:
            The pages, as Sequence.read() gives them; None if the cache does not have all of them.
        """
        ids = ids[: (first + n) * PAGE]
        pages, length = self._prefix.match(ids, namespace)
        if length < len(ids):
            return None
        sequence = self.cache.new_sequence(pages, length)
        contents = sequence.read(first, n)
        sequence.free()
        return contents

    def put(self, ids: I32, first: int, contents: Sequence[bytes | U8], namespace: Hashable = None) -> int:
        """Put pages of a text into the prefix cache, as if they had just been computed.

        Pages that it has already stay. It evicts others, but none of running texts.

        Args:
            ids: the text, int32 [1 or more].
            first: the number of the first page. The prefix cache should have those before it.
            contents: the pages, as find() gives them.
            namespace: the text's; see PrefixCache.

        Returns:
            How many pages of the text the prefix cache has now. Where there is too little room, or
            pages before `first` are missing, some of `contents` are left out.
        """
        ids = ids[: (first + len(contents)) * PAGE]
        pages, length = self._prefix.match(ids, namespace)
        if length == len(ids):
            return len(pages)
        begin = length // PAGE
        if begin < first:
            return begin
        sequence = self.cache.new_sequence(pages[:begin], begin * PAGE)  # holds them while others are evicted
        n = min(first + len(contents) - begin, self.n_available())
        length = min((begin + n) * PAGE, len(ids))
        self.make_free(n)
        sequence.reserve(length - sequence.length)
        for i in range(begin, begin + n):
            self.cache.write(int(sequence.pages[i]), contents[i - first])
        sequence.advance(length - sequence.length)
        self._prefix.insert(ids[:length], sequence, namespace, tail=True)
        sequence.free()
        return begin + n

    def make_free(self, n: int) -> None:
        """Evict pages from the prefix cache until some are free.

        Args:
            n: how many, at most n_available().
        """
        if n > self.cache.n_free_pages:
            self._prefix.evict(n - self.cache.n_free_pages)

    def clear(self) -> None:
        """Empty the prefix cache."""
        self._prefix.clear()

    @staticmethod
    def _ids(request: Request) -> I32:
        assert request.sequence
        return request.ids[: request.sequence.length]
