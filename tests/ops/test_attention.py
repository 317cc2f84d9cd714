"""Cache writes and attention over pages: every kernel equals the oracle, whatever the pages and the
cut of a prompt.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pymixtral import ops
from pymixtral.arrays import F32, I32
from pymixtral.errors import InvalidArgumentError
from pymixtral.model.kv_cache import KVCache, Sequence
from pymixtral.reference import oracle
from support.variants import every_context, generator, key_pages, normal, row_of, stored_bytes, value_pages

every_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float16, oracle.Q8_0], ids=["f32", "f16", "q8_0"])

PAGE = ops.PAGE


class Text:
    """Keys, values and queries of one sequence of n positions, and what the oracle makes of the
    queries from `first` on.
    """

    def __init__(
        self, seed: int, n: int, first: int, n_kv_heads: int, group: int, head_dim: int, dtype: Any, window: int = 0
    ) -> None:
        self.n, self.first = n, first
        self.k, self.v = normal(seed, n, n_kv_heads, head_dim), normal(seed + 1, n, n_kv_heads, head_dim)
        self.q = normal(seed + 2, n - first, n_kv_heads * group, head_dim) * np.float32(2)
        keys, values = (oracle.round_to_cache(a, dtype) for a in (self.k, self.v))
        self.want = oracle.attention(self.q, keys, values, first, window)


text = cache(Text)


def nan_cache(
    n_pages: int, n_kv_heads: int, head_dim: int, dtype: Any
) -> tuple[NDArray[Any], NDArray[Any], ops.CacheLayer]:
    """A cache whose unwritten positions would spoil every result that they reached."""
    pages = stored_bytes((n_pages, PAGE, n_kv_heads, head_dim), dtype)
    k, v = key_pages(pages), value_pages(pages)
    return k, v, ops.CacheLayer(k, v)


def fitting(head_dim: int, dtype: Any) -> int:
    """The next head_dim that the type takes."""
    return -(-head_dim // 32) * 32 if dtype == oracle.Q8_0 else head_dim


def scattered(n_positions: int, n_pages: int, seed: int = 0) -> I32:
    """Pages for n positions, in no order."""
    return generator(seed, n_pages).permutation(n_pages)[: -(-n_positions // PAGE)].astype(np.int32)


# --- cache_write -------------------------------------------------------------------------------------------------


@every_context
@every_dtype
@pytest.mark.parametrize("head_dim", [8, 24, 136])
def test_writes_touch_their_positions_only(ctx: ops.Context, dtype: Any, head_dim: int) -> None:
    head_dim = fitting(head_dim, dtype)
    spans = [(0, 3), (60, 9), (130, 0), (63, 70)]  # first position, tokens
    k, v = normal(1, 82, 3, head_dim), normal(2, 82, 3, head_dim)
    k[3, 0, :4] = [1e-7, -1e-8, 65519, -0.0]  # subnormal and rounded away as f16, and the largest that fits
    v[:9, 1] *= np.ldexp(np.float32(1), [-110, -93, -31, -21, -20, -18, -16, 3, 8])[
        :, None
    ]  # scales that are zero or subnormal
    kept_k, kept_v, layer = nan_cache(9, 3, head_dim, dtype)
    want_k, want_v = (stored_bytes((9, PAGE, 3, head_dim), dtype) for _ in range(2))
    stored_k, stored_v = (oracle.round_to_cache(a, dtype) for a in (k, v))
    order = scattered(PAGE * 9, 9)
    runs, row = [], 0
    for i, (first, n) in enumerate(spans):
        pages = order[2 * i : 2 * i + 3]
        runs.append((n, first, pages))
        for position in range(first, first + n):
            page, slot = pages[position // PAGE], position % PAGE
            want_k[page, slot], want_v[page, slot] = stored_k[row], stored_v[row]
            row += 1
    ops.cache_write(ctx, layer, k, v, ops.Runs(runs))
    np.testing.assert_array_equal(kept_k, key_pages(want_k))
    np.testing.assert_array_equal(kept_v, value_pages(want_v))


@every_context
@pytest.mark.parametrize("which", [0, 1], ids=["key", "value"])
def test_what_the_cache_cannot_hold_names_its_row_and_is_not_written(ctx: ops.Context, which: int) -> None:
    limit = np.float32(127 * 65520)  # as a scale in f16, infinite
    below = np.nextafter(limit, np.float32(0))
    for dtype, dim, largest, bad in (
        (np.float16, 8, 65519, [65520, -65520, 1e30, np.nan, np.inf]),
        (np.float32, 8, 3e38, [np.nan, np.inf, -np.inf]),
        (oracle.Q8_0, 64, below, [limit, -limit, 1e38, np.nan, np.inf]),
    ):
        for value in bad:
            arrays = [normal(3, 40, 2, dim), normal(4, 40, 2, dim)]
            arrays[which][16, 1, 6] = largest
            arrays[which][17, 1, dim - 1] = arrays[which][29, 0, 0] = value
            k, v, layer = nan_cache(1, 2, dim, dtype)
            runs = ops.Runs([(40, 5, np.zeros(1, np.int32))])
            assert row_of(ops.cache_write, ctx, layer, *arrays, runs) == 17
            assert row_of(oracle.round_to_cache, arrays[which], dtype) == 17
            pages = stored_bytes((1, PAGE, 2, dim), dtype)
            pages[0, 5 : 5 + 40] = stored_bytes((40, 2, dim), dtype, 0)
            pages[0, 5 + 17] = stored_bytes((2, dim), dtype)
            for found, kept in ((k, key_pages(pages)), (v, value_pages(pages))):
                untouched = kept.view(np.uint8) == 0xFF  # before the others, and in row 17
                assert (found.view(np.uint8)[untouched] == 0xFF).all()


# --- attention ---------------------------------------------------------------------------------------------------

CASES = [  # positions, first query, key/value heads, group, head_dim
    (1, 0, 1, 1, 8),
    (9, 0, 2, 1, 8),
    (70, 60, 1, 8, 8),
    (75, 0, 2, 2, 32),
    (131, 122, 1, 4, 64),
    (129, 128, 3, 2, 128),
    (66, 63, 2, 8, 136),
    (200, 180, 2, 1, 40),
    (192, 191, 1, 4, 16),
    (150, 0, 1, 1, 64),  # with one thread, tiles of 18 tokens
    (96, 80, 1, 7, 88),
    (100, 66, 1, 5, 72),
    (68, 65, 1, 150, 8),  # a tile is one token
    (600, 0, 1, 1, 8),  # with one thread, tiles of 75 tokens, of which a window shows each its own pages
    (67, 63, 1, 3, 1024),
]


@every_context
@every_dtype
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("window", [0, 1, 7, 64, 65, 130])
def test_attention(ctx: ops.Context, dtype: Any, case: tuple[int, int, int, int, int], window: int) -> None:
    n, first, n_kv_heads, group, head_dim = case
    head_dim = fitting(head_dim, dtype)
    t = text(10, n, first, n_kv_heads, group, head_dim, dtype, window)
    _, _, layer = nan_cache(10, n_kv_heads, head_dim, dtype)
    pages = scattered(n, 10)
    ops.cache_write(ctx, layer, t.k, t.v, ops.Runs([(n, 0, pages)]))
    np.testing.assert_array_equal(ops.attention(ctx, t.q, layer, ops.Runs([(n - first, first, pages)]), window), t.want)


@every_context
@every_dtype
@pytest.mark.parametrize("window", [0, 300])
def test_few_tokens_far_into_a_text(ctx: ops.Context, dtype: Any, window: int) -> None:
    for n_queries in (1, 3):
        t = text(20, 1000, 1000 - n_queries, 2, 4, 32, dtype, window)
        _, _, layer = nan_cache(20, 2, 32, dtype)
        pages = scattered(1000, 20)
        ops.cache_write(ctx, layer, t.k, t.v, ops.Runs([(1000, 0, pages)]))
        np.testing.assert_array_equal(
            ops.attention(ctx, t.q, layer, ops.Runs([(n_queries, t.first, pages)]), window), t.want
        )


@every_context
@every_dtype
def test_a_ragged_batch(ctx: ops.Context, dtype: Any) -> None:
    """Several sequences in one cache, one token of each or many: pages as items or tiles of tokens,
    the same results.
    """
    texts = [
        text(30 + i, n, first, 2, 2, 32, dtype, 0)
        for i, (n, first) in enumerate([(300, 299), (20, 0), (65, 63), (1, 0), (140, 100)])
    ]
    k, _, layer = nan_cache(20, 2, 32, dtype)
    order, taken, pages = scattered(20 * PAGE, 20), 0, []
    for t in texts:
        pages.append(order[taken : taken + -(-t.n // PAGE)])
        taken += len(pages[-1])
        ops.cache_write(ctx, layer, t.k, t.v, ops.Runs([(t.n, 0, pages[-1])]))
    before = k.copy()
    for chosen in ([0, 3], [0, 1, 2, 3, 4], [4, 2, 0]):
        runs = [(texts[i].n - texts[i].first, texts[i].first, pages[i]) for i in chosen]
        runs.insert(1, (0, 7, pages[0]))  # a sequence with nothing to do
        got = ops.attention(ctx, np.concatenate([texts[i].q for i in chosen]), layer, ops.Runs(runs))
        np.testing.assert_array_equal(got, np.concatenate([texts[i].want for i in chosen]))
    np.testing.assert_array_equal(k, before)


@every_context
@every_dtype
@pytest.mark.parametrize("window", [0, 70])
def test_a_prompt_in_pieces(ctx: ops.Context, dtype: Any, window: int) -> None:
    t = text(40, 140, 0, 2, 2, 32, dtype, window)
    for size in (1, 7, 64, 140):
        _, _, layer = nan_cache(5, 2, 32, dtype)
        pages = scattered(140, 5, size)
        for first in range(0, 140, size):
            part = slice(first, min(first + size, 140))
            runs = ops.Runs([(part.stop - first, first, pages)])
            ops.cache_write(ctx, layer, t.k[part], t.v[part], runs)
            np.testing.assert_array_equal(ops.attention(ctx, t.q[part], layer, runs, window), t.want[part])


@every_context
@pytest.mark.parametrize(("kv_type", "dtype"), [("f16", np.float16), ("q8_0", oracle.Q8_0)])
def test_a_forked_sequence_keeps_its_own_text(ctx: ops.Context, kv_type: str, dtype: Any) -> None:
    """Two continuations of 70 shared positions, written by turns: the page that both continue is
    copied.
    """
    shared, tails = normal(50, 2, 70, 2, 32), normal(51, 2, 2, 10, 2, 32)
    kv = KVCache(1, 2, 32, 6, kv_type)
    layer = ops.CacheLayer(kv.k[0], kv.v[0])

    def extend(sequence: Sequence, k: F32, v: F32) -> None:
        sequence.reserve(len(k))
        ops.cache_write(ctx, layer, k, v, ops.Runs([(len(k), sequence.length, sequence.pages)]))
        sequence.advance(len(k))

    sequences = [kv.new_sequence()]
    extend(sequences[0], *shared)
    sequences.append(sequences[0].fork())
    for j in range(10):
        for sequence, tail in zip(sequences, tails, strict=True):
            extend(sequence, tail[0, j : j + 1], tail[1, j : j + 1])
    q = normal(52, 1, 4, 32)
    for sequence, tail in zip(sequences, tails, strict=True):
        k, v = (oracle.round_to_cache(np.concatenate([a, b]), dtype) for a, b in zip(shared, tail, strict=True))
        got = ops.attention(ctx, q, layer, ops.Runs([(1, 79, sequence.pages)]))
        np.testing.assert_array_equal(got, oracle.attention(q, k, v, 79))


@every_context
@pytest.mark.parametrize("dtype", [np.float32, oracle.Q8_0], ids=["f32", "q8_0"])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 30.0, 3e4])
def test_scores_of_all_sizes(ctx: ops.Context, dtype: Any, scale: float) -> None:
    """From all alike to one that takes all; the largest differences are beyond exp's range, also
    between pages.
    """
    q, k, v = normal(60, 20, 2, 32) * np.float32(scale), normal(61, 150, 1, 32), normal(62, 150, 1, 32)
    _, _, layer = nan_cache(3, 1, 32, dtype)
    pages = np.arange(3, dtype=np.int32)
    ops.cache_write(ctx, layer, k, v, ops.Runs([(150, 0, pages)]))
    got = ops.attention(ctx, q, layer, ops.Runs([(20, 130, pages)]))
    np.testing.assert_array_equal(got, oracle.attention(q, *(oracle.round_to_cache(a, dtype) for a in (k, v)), 130))


@every_context
def test_the_largest_integers_of_q8_0(ctx: ops.Context) -> None:
    """Blocks of 127 and -127 in keys, values and queries, in all four combinations of signs, and
    mixed.
    """
    signs = np.ones((6, 64), np.float32)
    signs[1], signs[2, ::2], signs[3, ::3], signs[4, :32], signs[5, 32:] = -1, -1, -1, -1, -1
    k, v, q = signs[np.arange(70) % 6][:, None], signs[np.arange(70) * 5 % 6][:, None], signs[:, None].repeat(5, axis=1)
    _, _, layer = nan_cache(2, 1, 64, oracle.Q8_0)
    pages = np.arange(2, dtype=np.int32)
    ops.cache_write(ctx, layer, k, v, ops.Runs([(70, 0, pages)]))
    got = ops.attention(ctx, q, layer, ops.Runs([(6, 64, pages)]))
    np.testing.assert_array_equal(
        got, oracle.attention(q, *(oracle.round_to_cache(a, oracle.Q8_0) for a in (k, v)), 64)
    )


@every_context
@pytest.mark.parametrize("position", [3, 70, 149])
@pytest.mark.parametrize("n_queries", [1, 40])
def test_scores_that_overflow_are_found_on_every_page(ctx: ops.Context, position: int, n_queries: int) -> None:
    q, k, v = normal(70, n_queries, 2, 8), normal(71, 150, 1, 8), normal(72, 150, 1, 8)
    q[-1] = 1e25
    for value in (1e25, -1e25):
        k[position] = value
        _, _, layer = nan_cache(3, 1, 8, np.float32)
        pages = np.arange(3, dtype=np.int32)
        ops.cache_write(ctx, layer, k, v, ops.Runs([(150, 0, pages)]))
        runs = ops.Runs([(n_queries, 150 - n_queries, pages)])
        if value > 0:
            assert row_of(ops.attention, ctx, q, layer, runs) == n_queries - 1
            assert row_of(oracle.attention, q, k, v, 150 - n_queries) == n_queries - 1
        else:  # a score of minus infinity has no weight
            np.testing.assert_array_equal(
                ops.attention(ctx, q, layer, runs), oracle.attention(q, k, v, 150 - n_queries)
            )


@every_context
@pytest.mark.parametrize("dtype", [np.float16, oracle.Q8_0], ids=["f16", "q8_0"])
def test_a_nonfinite_query_names_its_row(ctx: ops.Context, dtype: Any) -> None:
    _, _, layer = nan_cache(2, 2, 64, dtype)
    pages = np.arange(2, dtype=np.int32)
    runs = ops.Runs([(100, 0, pages)])
    k, v = normal(80, 100, 2, 64), normal(81, 100, 2, 64)
    ops.cache_write(ctx, layer, k, v, runs)
    for value in (np.nan, np.inf, -np.inf):
        q = normal(82, 100, 4, 64)
        q[71, 3, 63] = q[99, 0, 0] = value
        assert row_of(ops.attention, ctx, q, layer, runs) == 71
        assert row_of(oracle.attention, q, *(oracle.round_to_cache(a, dtype) for a in (k, v))) == 71
    half = ops.Runs([(1, 71, pages)])  # a page is an item
    assert row_of(ops.attention, ctx, q[71:72], layer, half) == 0


@every_context
def test_batches_that_do_not_fit_are_refused(ctx: ops.Context) -> None:
    k, v, layer = nan_cache(3, 2, 8, np.float32)
    pages = np.arange(3, dtype=np.int32)
    ops.cache_write(ctx, layer, normal(90, 192, 2, 8), normal(91, 192, 2, 8), ops.Runs([(192, 0, pages)]))
    before = k.copy(), v.copy()
    x = normal(92, 2, 2, 8)
    bad = [
        [(2, 191, pages)],  # one position too many
        [(2, 0, pages[:0])],
        [(2, -1, pages)],
        [(3, 0, pages), (-1, 0, pages)],
        [(2, 0, np.array([3], np.int32))],
        [(2, 100, np.array([0, -1], np.int32))],
        [(2, (1 << 31) - 2, pages)],
    ]
    for runs in bad:
        with pytest.raises(InvalidArgumentError, match="run"):
            ops.cache_write(ctx, layer, x, x, ops.Runs(runs))
        with pytest.raises(InvalidArgumentError, match="run"):
            ops.attention(ctx, x, layer, ops.Runs(runs))
    good = ops.Runs([(2, 100, pages)])
    with pytest.raises(InvalidArgumentError, match="heads"):
        ops.attention(ctx, normal(93, 2, 3, 8), layer, good)
    with pytest.raises(InvalidArgumentError, match="window"):
        ops.attention(ctx, x, layer, good, -1)
    with pytest.raises(InvalidArgumentError, match="shape"):
        ops.attention(ctx, x[:, :, :4], layer, good)
    with pytest.raises(InvalidArgumentError, match="shape"):
        ops.cache_write(ctx, layer, x[:1], x, good)
    np.testing.assert_array_equal(k, before[0])
    np.testing.assert_array_equal(v, before[1])
