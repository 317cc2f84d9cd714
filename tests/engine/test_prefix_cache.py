"""The prefix cache against a plain table of all beginnings, with contents in the pages."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pymixtral.arrays import F32, I32
from pymixtral.engine import prefix_cache
from pymixtral.engine.prefix_cache import PrefixCache
from pymixtral.model.kv_cache import KVCache, Sequence, n_pages_for
from pymixtral.ops import PAGE

Ids = tuple[int, ...]

N_PAGES = 10


class Contents:
    """What keys and values stand for: a number for each beginning of a text in a namespace."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[object, int], int] = {}

    def of(self, ids: Ids, namespace: Hashable) -> F32:
        """The numbers of all beginnings of a text."""
        at: object = namespace
        numbers = []
        for id in ids:
            at = self._numbers.setdefault((at, id), len(self._numbers) + 1)
            numbers.append(at)
        return np.array(numbers, np.float32)


CONTENTS = Contents()


def new_cache(n_pages: int = N_PAGES) -> KVCache:
    return KVCache(1, 1, 8, n_pages, "f32")


def array(ids: Ids) -> I32:
    return np.array(ids, np.int32)


def write(sequence: Sequence, ids: Ids, namespace: Hashable = None) -> None:
    """What a pass does: the ids after those that the sequence has."""
    begin = sequence.length
    sequence.reserve(len(ids) - begin)
    numbers = CONTENTS.of(ids, namespace)
    for at in range(begin, len(ids)):
        page = sequence.pages[at // PAGE]
        sequence.cache.k[0, page, 0, :, at % PAGE] = numbers[at]
        sequence.cache.v[0, page, 0, at % PAGE] = numbers[at]
    sequence.advance(len(ids) - begin)


def read(cache: KVCache, pages: I32, n: int) -> F32:
    """The contents of the first n positions of some pages."""
    numbers: F32 = cache.k[0, pages, 0, 0].reshape(-1)[:n]
    assert (numbers == cache.v[0, pages, 0, :, 0].reshape(-1)[:n]).all()
    return numbers


def add(index: PrefixCache, cache: KVCache, ids: Ids, namespace: Hashable = None, *, tail: bool = True) -> list[int]:
    """Computes a text from nothing, and leaves it to the index.

    Returns:
        The pages that have it.
    """
    sequence = cache.new_sequence()
    write(sequence, ids, namespace)
    index.insert(array(ids), sequence, namespace, tail=tail)
    pages: list[int] = sequence.pages.tolist()
    sequence.free()
    return pages


def n_common(a: Ids, b: Ids) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


# Texts of few ids in runs of lengths about a page's, so that many begin alike and end at page ends.
TEXTS = st.lists(st.tuples(st.integers(0, 2), st.sampled_from([1, 2, 62, 63, 64])), min_size=1, max_size=4).map(
    lambda runs: tuple(id for id, n in runs for _ in range(n))
)
NAMESPACES = st.sampled_from([None, "other"])


class Text:
    """A text that runs: its ids, and its sequence."""

    def __init__(self, ids: Ids, namespace: Hashable, sequence: Sequence) -> None:
        self.ids = ids
        self.namespace = namespace
        self.sequence = sequence


class Machine(RuleBasedStateMachine):
    """Texts that begin, go on, fork, are cut and end, over a table of what the index must have.

    Attributes:
        known: of each page of the index the namespace and all ids up to the page's last.
        used: when each page was last used.
        apart: whether a text may have had whole pages that the index did not have.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cache = new_cache()
        self.index = PrefixCache(self.cache)
        self.texts: list[Text] = []
        self.known: dict[int, tuple[Hashable, Ids]] = {}
        self.used: dict[int, int] = {}
        self.clock = 0
        self.apart = False

    # --- The table --------------------------------------------------------------------------------

    def touch(self, pages: list[int]) -> None:
        self.clock += 1
        self.used |= dict.fromkeys(pages, self.clock)

    def children(self, page: int) -> list[int]:
        namespace, ids = self.known[page]
        return [
            other
            for other, (other_namespace, other_ids) in self.known.items()
            if other != page and namespace == other_namespace and len(ids) % PAGE == 0 and other_ids[: len(ids)] == ids
        ]

    def evictable(self) -> list[int]:
        """The pages of the table that nobody needs, in the order in which they go."""
        free = {page for page in self.known if self.cache.references[page] == 1}
        free = {page for page in free if free.issuperset(self.children(page))}
        return sorted(free, key=lambda page: (self.used[page], -len(self.known[page][1])))

    def longest(self, ids: Ids, namespace: Hashable) -> int:
        return max((n_common(ids, known) for other, known in self.known.values() if other == namespace), default=0)

    def insert(self, text: Text, *, tail: bool) -> None:
        before = text.sequence.pages.tolist()
        self.index.insert(array(text.ids), text.sequence, text.namespace, tail=tail)
        n = len(text.ids) if tail else len(text.ids) // PAGE * PAGE
        pages = text.sequence.pages.tolist()
        for i in range(n_pages_for(n)):
            ids = text.ids[: min((i + 1) * PAGE, n)]
            same = [page for page, (namespace, known) in self.known.items() if namespace == text.namespace
                    and known[: len(ids)] == ids and n_pages_for(len(known)) == i + 1]  # fmt: skip
            if same:
                assert pages[i] in same, "the sequence has not the index's page"
                assert len(same) == 1 or len(ids) % PAGE, "the index has a page twice"
            else:
                assert pages[i] == before[i]
                for page, (namespace, known) in list(self.known.items()):
                    if namespace == text.namespace and ids[: len(known)] == known and n_pages_for(len(known)) == i + 1:
                        del self.known[page]  # the new page has all of it
                self.known[pages[i]] = text.namespace, ids
        if n:
            self.touch(pages[: n_pages_for(n)])

    # --- What happens -----------------------------------------------------------------------------

    @precondition(lambda self: len(self.texts) < 5)
    @rule(ids=TEXTS, namespace=NAMESPACES)
    def begin(self, ids: Ids, namespace: Hashable) -> None:
        pages, length = self.index.match(array(ids), namespace)
        assert length == self.longest(ids, namespace)
        assert len(pages) == n_pages_for(length)
        assert (read(self.cache, pages, length) == CONTENTS.of(ids[:length], namespace)).all()
        self.touch(pages.tolist())
        self.texts.append(Text(ids[:length], namespace, self.cache.new_sequence(pages, length)))

    @precondition(lambda self: self.texts)
    @rule(data=st.data(), more=TEXTS, shares=st.sampled_from([True, True, True, False]))
    def go_on(self, data: st.DataObject, more: Ids, shares: bool) -> None:
        text = data.draw(st.sampled_from(self.texts))
        sequence = text.sequence
        ids = text.ids + more
        tail = len(text.ids) % PAGE and self.cache.references[sequence.pages[-1]] > 1
        n_new = n_pages_for(len(ids)) - len(sequence.pages) + bool(tail)
        self.make_room(n_new - self.cache.n_free_pages)
        if n_new <= self.cache.n_free_pages:
            write(sequence, ids, text.namespace)
            text.ids = ids
            if shares:
                self.insert(text, tail=False)
            else:
                self.apart = True

    @precondition(lambda self: self.texts)
    @rule(data=st.data(), tail=st.booleans())
    def end(self, data: st.DataObject, tail: bool) -> None:
        text = data.draw(st.sampled_from(self.texts))
        self.insert(text, tail=tail)
        self.texts.remove(text)
        text.sequence.free()

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        text = data.draw(st.sampled_from(self.texts))
        self.texts.remove(text)
        text.sequence.free()

    @precondition(lambda self: self.texts and len(self.texts) < 5)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        text = data.draw(st.sampled_from(self.texts))
        self.texts.append(Text(text.ids, text.namespace, text.sequence.fork()))

    @precondition(lambda self: self.texts)
    @rule(data=st.data(), n=st.sampled_from([1, 2, 63, 64, 65]))
    def cut(self, data: st.DataObject, n: int) -> None:
        text = data.draw(st.sampled_from(self.texts))
        text.ids = text.ids[: max(len(text.ids) - n, 0)]
        text.sequence.truncate(len(text.ids))

    @rule(n=st.integers(0, N_PAGES + 1))
    def make_room(self, n: int) -> None:
        order = self.evictable()
        n_free = self.cache.n_free_pages
        n_evicted = self.index.evict(max(n, 0))
        assert n_evicted == min(max(n, 0), len(order)) == self.cache.n_free_pages - n_free
        for page in order[:n_evicted]:
            assert self.cache.references[page] == 0, "another page was unused for longer"
            del self.known[page]

    @rule()
    def make_all_room(self) -> None:
        n = self.index.n_evictable
        self.make_room(n)
        assert self.index.n_evictable == 0

    @rule()
    def clear(self) -> None:
        self.index.clear()
        self.known.clear()
        self.apart = True

    # --- What always holds ------------------------------------------------------------------------

    @invariant()
    def each_page_has_its_holders(self) -> None:
        holders = np.zeros(N_PAGES, np.int32)
        for text in self.texts:
            holders[text.sequence.pages] += 1
            assert len(set(text.sequence.pages.tolist())) == len(text.sequence.pages)
        holders[list(self.known)] += 1
        assert (self.cache.references == holders).all()
        assert len(self.index) == len(self.known)
        assert self.cache.n_free_pages == np.count_nonzero(holders == 0)
        assert self.index.n_evictable == len(self.evictable())

    @invariant()
    def who_holds_a_page_holds_those_before(self) -> None:
        if self.apart:  # then texts may hold other pages than the index for what they begin with
            return
        for text in self.texts:
            pages = text.sequence.pages.tolist()
            for page in set(pages) & self.known.keys():
                before = [other for other in self.known if page in self.children(other)]
                assert set(before) <= set(pages)

    @invariant()
    def contents_are_those_of_the_texts(self) -> None:
        for text in self.texts:
            found = read(self.cache, text.sequence.pages, len(text.ids))
            assert (found == CONTENTS.of(text.ids, text.namespace)).all()
        for page, (namespace, ids) in self.known.items():
            part = CONTENTS.of(ids, namespace)[(len(ids) - 1) // PAGE * PAGE :]
            assert (read(self.cache, np.array([page]), len(part)) == part).all()


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


# --- Single cases ---------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(TEXTS, NAMESPACES), min_size=1, max_size=6), TEXTS)
def test_the_longest_known_beginning_is_found(texts: list[tuple[Ids, Hashable]], ids: Ids) -> None:
    cache = new_cache(32)
    index = PrefixCache(cache)
    for text, namespace in texts:
        add(index, cache, text, namespace)
    pages, n = index.match(array(ids))
    assert n == max((n_common(ids, text) for text, namespace in texts if namespace is None), default=0)
    assert (read(cache, pages, n) == CONTENTS.of(ids[:n], None)).all()


@pytest.mark.parametrize("n", [1, 63, 64, 65, 127, 128, 129])
@pytest.mark.parametrize("m", [1, 63, 64, 65, 127, 128, 129])
def test_a_text_and_its_beginning_share_pages_in_either_order(n: int, m: int) -> None:
    cache = new_cache()
    index = PrefixCache(cache)
    text = tuple(range(129))
    for length in (n, m):
        add(index, cache, text[:length])
    assert len(index) == n_pages_for(max(n, m)) == N_PAGES - cache.n_free_pages
    for length in (n, m, max(n, m)):
        pages, found = index.match(array(text[:length]))
        assert (found, len(pages)) == (length, n_pages_for(length))
    assert index.evict(N_PAGES) == n_pages_for(max(n, m))
    assert index.match(array(text))[1] == 0


def test_a_sequence_takes_the_pages_of_the_index() -> None:
    cache = new_cache()
    index = PrefixCache(cache)
    text = tuple(range(130))
    pages = add(index, cache, text)
    sequence = cache.new_sequence()
    write(sequence, text)
    index.insert(array(text), sequence)
    assert sequence.pages[:2].tolist() == pages[:2]
    assert sequence.pages[2] != pages[2]
    write(sequence, (*text, 7))
    assert (read(cache, sequence.pages, 131) == CONTENTS.of((*text, 7), None)).all()


def test_a_shared_page_is_copied_before_it_is_written_to() -> None:
    cache = new_cache()
    index = PrefixCache(cache)
    (page,) = add(index, cache, (1, 2, 3, 4))
    pages, n = index.match(array((1, 2, 9)))
    assert (pages.tolist(), n) == ([page], 2)
    sequence = cache.new_sequence(pages, n)
    assert index.n_evictable == 0
    write(sequence, (1, 2, 9, 9))
    assert sequence.pages.tolist() != [page]
    assert index.n_evictable == 1
    assert (read(cache, pages, 4) == CONTENTS.of((1, 2, 3, 4), None)).all()


def test_a_cut_text_does_not_write_to_the_page_that_the_index_has() -> None:
    cache = new_cache()
    index = PrefixCache(cache)
    text = tuple(range(64))
    sequence = cache.new_sequence()
    write(sequence, text)
    index.insert(array(text), sequence)
    sequence.truncate(63)
    write(sequence, (*text[:63], 99))
    pages, n = index.match(array(text))
    assert n == 64
    assert (read(cache, pages, n) == CONTENTS.of(text, None)).all()
    assert (read(cache, sequence.pages, n) == CONTENTS.of((*text[:63], 99), None)).all()


def test_a_page_of_which_the_index_has_the_beginning_is_added_whole() -> None:
    cache = new_cache()
    index = PrefixCache(cache)
    text = tuple(range(64))
    longer = cache.new_sequence()
    write(longer, text)
    shorter = longer.fork()
    shorter.truncate(60)
    index.insert(array(text[:60]), shorter, tail=True)
    index.insert(array(text), longer)
    assert shorter.pages.tolist() == longer.pages.tolist() == index.match(array(text))[0].tolist()
    assert cache.references[longer.pages].tolist() == [3]
    assert len(index) == 1


def test_the_document_that_was_unused_for_longest_goes_first() -> None:
    cache = new_cache()
    index = PrefixCache(cache)
    documents = [tuple(range(at, at + 128)) for at in (0, 1000, 2000)]
    for document in documents:
        add(index, cache, document)
    index.match(array(documents[0]))
    assert index.evict(3) == 3
    assert [index.match(array(document))[1] for document in documents] == [128, 0, 64]


def test_pages_that_a_text_holds_stay_though_the_index_has_others_before_them() -> None:
    cache = new_cache()
    index = PrefixCache(cache)
    text = tuple(range(128))
    first = cache.new_sequence()
    write(first, text[:64])
    second = first.fork()
    for sequence in (first, second):
        index.insert(array(text[:64]), sequence)
    write(first, text)
    third = first.fork()
    index.clear()
    add(index, cache, text[:64])
    index.insert(array(text), first)  # takes the index's first page, and adds its own second
    first.free()
    assert third.pages[0] != index.match(array(text))[0][0]
    assert index.n_evictable == 0  # as the third text holds the second page
    assert index.evict(N_PAGES) == 0
    third.free()
    assert index.evict(N_PAGES) == 2


def test_namespaces_are_apart_and_leave_nothing() -> None:
    cache = new_cache()
    index = PrefixCache(cache)
    for i in range(100):
        add(index, cache, (1, 2, 3), i)
        index.evict(1)
    assert index.match(array((1, 2, 3)), 99)[1] == 0
    assert cache.n_free_pages == N_PAGES
    assert not index._roots


def test_a_page_is_in_the_index_once() -> None:
    cache = new_cache()
    index = PrefixCache(cache)
    sequence = cache.new_sequence()
    write(sequence, tuple(range(64)))
    index.insert(array(tuple(range(64))), sequence)
    index.insert(array(tuple(range(64))), sequence, "other")
    sequence.free()
    assert (len(index), index.n_evictable, index.evict(5)) == (1, 1, 1)


def test_the_work_does_not_grow_with_the_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = new_cache(2001)
    index = PrefixCache(cache)
    rng = np.random.default_rng(0)
    documents = [(1, *rng.integers(0, 32000, 40).tolist()) for _ in range(2000)]
    calls = 0

    def counted(a: bytes, b: bytes) -> int:
        nonlocal calls
        calls += 1
        return n_common_of(a, b)

    n_common_of = prefix_cache._n_common
    monkeypatch.setattr(prefix_cache, "_n_common", counted)
    for document in documents:
        add(index, cache, document)
    assert calls <= 2 * len(documents)
    calls = 0
    assert index.match(array(documents[1234]))[1] == 41
    assert index.match(array((1, 5, 6)))[1] >= 1
    assert calls <= 4
