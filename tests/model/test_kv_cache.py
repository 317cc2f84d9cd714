"""The paged cache against a naive one that keeps a full copy of every sequence's contents."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from numpy.typing import NDArray

from pymixtral import ops
from pymixtral.errors import ContextLengthError, InvalidArgumentError, NativeError
from pymixtral.model.kv_cache import KV_TYPES, KVCache, Sequence, n_pages_for
from pymixtral.ops import PAGE

N_LAYERS, N_HEADS, HEAD_DIM = 2, 2, 8


def small_cache(n_pages: int) -> KVCache:
    return KVCache(N_LAYERS, N_HEADS, HEAD_DIM, n_pages, "f32")


def put(cache: KVCache, sequence: Sequence, values: list[float]) -> None:
    """Reserves, writes one value per position to all of its keys and its negative to the values,
    advances.
    """
    sequence.reserve(len(values))
    for position, value in enumerate(values, sequence.length):
        page, slot = sequence.pages[position // PAGE], position % PAGE
        cache.k[:, page, :, :, slot] = value
        cache.v[:, page, :, slot, :] = -value
    sequence.advance(len(values))


def contents(cache: KVCache, sequence: Sequence) -> list[float]:
    """The value of each position; fails unless all its keys and values hold it."""
    found: list[NDArray[np.float32]] = []
    for i in range(n_pages_for(sequence.length)):
        page, n = sequence.pages[i], min(PAGE, sequence.length - i * PAGE)
        keys, values = cache.k[:, page, :, :, :n], cache.v[:, page, :, :n, :]
        expected = keys[0, 0, 0]
        assert np.all(keys == expected)
        assert np.all(values == -expected[:, None])
        found.append(expected)
    return [float(x) for x in np.concatenate(found)] if found else []


def counting(first: int, n: int) -> list[float]:
    return [float(x) for x in range(first, first + n)]


def test_layout() -> None:
    cache = KVCache(3, 2, 16, 5)
    assert (cache.k.shape, cache.v.shape) == ((3, 5, 2, 16, 64), (3, 5, 2, 64, 16))
    assert cache.k.dtype == cache.v.dtype == np.float16
    assert cache.k.flags.c_contiguous
    assert cache.v.flags.c_contiguous
    assert KVCache(1, 1, 8, 1, "f32").k.dtype == np.float32
    blocks = KVCache(3, 2, 64, 5, "q8_0")
    assert blocks.k.shape == blocks.v.shape == (3, 5, 2, 68 * 64)
    assert blocks.k.dtype == blocks.v.dtype == np.uint8
    assert [kind for kind, n in KV_TYPES.items() if KVCache(1, 1, 32, 1, kind).k.nbytes == 64 * n] == [
        "f16",
        "f32",
        "q8_0",
    ]
    assert (cache.n_pages, cache.n_free_pages) == (5, 5)
    assert [n_pages_for(n) for n in (0, 1, 64, 65, 128)] == [0, 1, 1, 2, 2]


def test_pages_are_int32_that_c_can_read_and_are_never_changed_in_place() -> None:
    cache = small_cache(4)
    sequence = cache.new_sequence()
    put(cache, sequence, counting(1, 70))
    pages = sequence.pages
    before = pages.tolist()
    assert pages.dtype == np.int32
    assert pages.flags.c_contiguous
    assert len(pages) == 2
    other = sequence.fork()
    put(cache, sequence, [9.0])
    sequence.free()
    other.truncate(3)
    assert pages.tolist() == before


def test_a_page_is_taken_when_a_position_needs_it() -> None:
    cache = small_cache(3)
    sequence = cache.new_sequence()
    assert cache.n_free_pages == 3
    sequence.reserve(0)
    assert cache.n_free_pages == 3
    sequence.reserve(64)
    assert cache.n_free_pages == 2
    sequence.reserve(64)
    assert cache.n_free_pages == 2
    sequence.advance(64)
    sequence.reserve(1)
    assert cache.n_free_pages == 1
    sequence.free()
    assert cache.n_free_pages == 3


def test_a_full_cache_names_both_numbers_and_changes_nothing() -> None:
    cache = small_cache(2)
    sequence = cache.new_sequence()
    put(cache, sequence, counting(1, 60))
    pages = sequence.pages.tolist()
    with pytest.raises(
        ContextLengthError, match=r"2 free pages .* for 100 tokens after position 60, found 1 of the cache's 2"
    ):
        sequence.reserve(100)
    assert (sequence.length, sequence.pages.tolist(), cache.n_free_pages) == (60, pages, 1)
    with pytest.raises(InvalidArgumentError, match="at most 0 reserved tokens"):
        sequence.advance(1)
    put(cache, sequence, counting(61, 68))
    assert contents(cache, sequence) == counting(1, 128)


def test_a_copy_of_a_shared_page_needs_a_free_one() -> None:
    cache = small_cache(1)
    sequence = cache.new_sequence()
    put(cache, sequence, counting(1, 10))
    other = sequence.fork()
    with pytest.raises(ContextLengthError, match="expected 1 free pages"):
        other.reserve(1)
    sequence.free()
    put(cache, other, [11.0])
    assert contents(cache, other) == counting(1, 11)


def test_forks_share_pages_until_one_writes() -> None:
    cache = small_cache(4)
    sequence = cache.new_sequence()
    put(cache, sequence, counting(1, 100))
    other = sequence.fork()
    assert cache.n_free_pages == 2
    put(cache, other, [200.0])
    assert cache.n_free_pages == 1
    put(cache, sequence, [300.0])
    assert cache.n_free_pages == 1
    assert other.pages[0] == sequence.pages[0]
    assert contents(cache, other) == [*counting(1, 100), 200.0]
    assert contents(cache, sequence) == [*counting(1, 100), 300.0]


def test_whole_pages_are_shared_without_a_copy() -> None:
    cache = small_cache(3)
    sequence = cache.new_sequence()
    put(cache, sequence, counting(1, 64))
    other = sequence.fork()
    put(cache, other, [65.0])
    put(cache, sequence, [66.0])
    assert cache.n_free_pages == 0


def test_a_failed_pass_leaves_the_sequence_as_it_was() -> None:
    cache = small_cache(2)
    sequence = cache.new_sequence()
    put(cache, sequence, counting(1, 10))
    sequence.reserve(100)
    assert sequence.length == 10
    sequence.truncate(10)
    assert cache.n_free_pages == 1
    assert contents(cache, sequence) == counting(1, 10)


def test_a_fork_ends_what_was_reserved() -> None:
    cache = small_cache(3)
    sequence = cache.new_sequence()
    put(cache, sequence, counting(1, 10))
    sequence.reserve(5)
    sequence.fork()
    with pytest.raises(InvalidArgumentError, match="at most 0 reserved tokens to advance by, found 5"):
        sequence.advance(5)


def test_arguments_out_of_range() -> None:
    for sizes in [
        (0, 1, 8, 1),
        (1, 0, 8, 1),
        (1, 1, 8, 0),
        (1, 1, 8, 2**31),
        (1, 1, 12, 1),
        (1, 1, 0, 1),
        (1, 1, 1032, 1),
    ]:
        with pytest.raises(InvalidArgumentError):
            KVCache(*sizes)
    with pytest.raises(InvalidArgumentError, match=r"found \['f16'\]"):
        KVCache(1, 1, 32, 1, ["f16"])  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="found 'f64'"):
        KVCache(1, 1, 8, 1, "f64")
    with pytest.raises(InvalidArgumentError, match="multiple of 32"):
        KVCache(1, 1, 40, 1, "q8_0")
    sequence = small_cache(1).new_sequence()
    with pytest.raises(InvalidArgumentError):
        sequence.reserve(-1)
    with pytest.raises(InvalidArgumentError):
        sequence.advance(-1)
    with pytest.raises(InvalidArgumentError, match="from 0 to 0"):
        sequence.truncate(1)
    with pytest.raises(InvalidArgumentError):
        sequence.truncate(-1)


@pytest.mark.parametrize("value", [None, "8", 8.0, True, np.zeros(2), "x\n" * 1000, 10**1000])
def test_arguments_of_any_type_are_refused_in_one_line(value: Any) -> None:
    for i, name in enumerate(("n_layers", "n_kv_heads", "head_dim", "n_pages", "kv_type")):
        arguments: list[Any] = [1, 1, 8, 1, "f16"]
        arguments[i] = value
        if type(value) is int and i < 2:
            continue  # so many layers are for the system to refuse
        with pytest.raises(InvalidArgumentError, match=name) as caught:
            KVCache(*arguments)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 200


def test_more_memory_than_there_is() -> None:
    with pytest.raises(NativeError, match="expected memory for a cache of"):
        KVCache(2**20, 2**20, 1024, 2**30)


class CacheMachine(RuleBasedStateMachine):
    """Random operations; `expected` holds a full copy of what each live sequence should contain."""

    @initialize(n_pages=st.integers(1, 8))
    def start(self, n_pages: int) -> None:
        self.cache = small_cache(n_pages)
        self.context = ops.Context(1)
        self.live: list[tuple[Sequence, list[float]]] = []
        self.next = 1

    def pick(self, data: st.DataObject) -> tuple[Sequence, list[float]]:
        return self.live[data.draw(st.integers(0, len(self.live) - 1))]

    @precondition(lambda self: len(self.live) < 6)
    @rule()
    def new(self) -> None:
        self.live.append((self.cache.new_sequence(), []))

    @precondition(lambda self: self.live)
    @rule(data=st.data(), n=st.integers(0, 20) | st.integers(0, 200))
    def append(self, data: st.DataObject, n: int) -> None:
        sequence, expected = self.pick(data)
        values = counting(self.next, n)
        self.next += n
        free = self.cache.n_free_pages
        try:
            put(self.cache, sequence, values)
        except ContextLengthError:  # rightly only when the new positions and one copied page do not fit
            assert n > 0
            assert n_pages_for(len(expected) + n) - len(expected) // PAGE > free
            assert self.cache.n_free_pages == free
        else:
            expected += values

    @precondition(lambda self: self.live)
    @rule(data=st.data(), n=st.integers(0, 100))
    def reserve_and_fail(self, data: st.DataObject, n: int) -> None:
        sequence, _ = self.pick(data)
        try:
            sequence.reserve(n)
        except ContextLengthError:
            return
        for position in range(sequence.length, sequence.length + n):
            self.cache.k[:, sequence.pages[position // PAGE], :, :, position % PAGE] = -1
            self.cache.v[:, sequence.pages[position // PAGE], :, position % PAGE, :] = -1

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        sequence, expected = self.pick(data)
        length = data.draw(st.integers(0, len(expected)))
        sequence.truncate(length)
        del expected[length:]

    @precondition(lambda self: any(len(expected) >= PAGE for _, expected in self.live))
    @rule(data=st.data())
    def shift(self, data: st.DataObject) -> None:
        """With frequencies of 0, so that keys stay as they are."""
        full = [i for i, (_, expected) in enumerate(self.live) if len(expected) >= PAGE]
        i = data.draw(st.sampled_from(full))
        sequence, expected = self.live[i]
        first = data.draw(st.integers(0, len(expected) // PAGE - 1))
        n = data.draw(st.integers(1, len(expected) // PAGE - first))
        after = sequence.pages[first + n : n_pages_for(len(expected))]
        n_shared, free = int(np.count_nonzero(self.cache.references[after] > 1)), self.cache.n_free_pages
        try:
            sequence.shift(self.context, np.zeros(HEAD_DIM // 2), first, n)
        except ContextLengthError:
            assert n_shared > free
            sequence.free()
            del self.live[i]
        else:
            assert n_shared <= free
            del expected[first * PAGE : (first + n) * PAGE]

    @precondition(lambda self: 0 < len(self.live) < 6)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        sequence, expected = self.pick(data)
        self.live.append((sequence.fork(), list(expected)))

    @precondition(lambda self: self.live)
    @rule(data=st.data(), twice=st.booleans())
    def free(self, data: st.DataObject, twice: bool) -> None:
        i = data.draw(st.integers(0, len(self.live) - 1))
        sequence, _ = self.live.pop(i)
        sequence.free()
        if twice:
            sequence.free()

    @invariant()
    def every_sequence_holds_what_was_written(self) -> None:
        for sequence, expected in self.live:
            assert sequence.length == len(expected)
            assert contents(self.cache, sequence) == expected

    @invariant()
    def every_page_is_free_or_held(self) -> None:
        held = Counter(page for sequence, _ in self.live for page in sequence.pages.tolist())
        assert self.cache.n_free_pages == self.cache.n_pages - len(held)
        assert all(0 <= page < self.cache.n_pages for page in held)

    def teardown(self) -> None:
        for sequence, _ in self.live:
            sequence.free()
        assert self.cache.n_free_pages == self.cache.n_pages
        self.context.close()


TestRandomOperations = CacheMachine.TestCase
TestRandomOperations.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
