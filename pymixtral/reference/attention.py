"""The oracle's attention: keys and values as a cache stores them, and what a token makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pymixtral.arrays import F32, F64
from pymixtral.reference.arithmetic import exp, finite, fma, sum8
from pymixtral.reference.products import quantize_activations
from pymixtral.reference.rotation import rope, rope_table

PAGE = 64
"""Positions of a cache page: the contract computes attention page by page."""

Q8_0 = np.dtype([("d", np.float16), ("q", np.int8, 32)])
"""A block of 32 keys or values in a cache of q8_0."""


def round_to_cache(x: F32, dtype: Any) -> NDArray[Any]:
    """Round keys or values as a cache stores them.

    Args:
        x: float32 [n_tokens, n_kv_heads, head_dim].
        dtype: np.float16, np.float32 or Q8_0.

    Returns:
        The shape of x; with Q8_0 blocks, [n_tokens, n_kv_heads, head_dim/32].

    Raises:
        NonFiniteError: with the row, for numbers beyond the range of dtype too.
    """
    what = "the keys or values that the cache must hold"
    with np.errstate(over="ignore"):
        if np.dtype(dtype) != Q8_0:
            stored = x.astype(dtype)
            finite(stored, what)
            return stored
        q, d, _ = quantize_activations(x.reshape(len(x), -1))
        blocks = np.empty((*x.shape[:2], x.shape[2] // 32), Q8_0)
        blocks["q"] = q.reshape(*blocks.shape, 32)
        blocks["d"] = finite(d.astype(np.float16), what).reshape(blocks.shape)
        return blocks


def shift_keys(k: NDArray[Any], frequencies: F64, n_positions: int) -> NDArray[Any]:
    """Move stored keys to lower positions.

    Args:
        k: as round_to_cache() returns them, [n_tokens, n_kv_heads, ...].
        frequencies: float64 [n_pairs], in radians per position.
        n_positions: by how much the positions become lower.

    Returns:
        The shape and type of k.

    Raises:
        NonFiniteError: with the row.
    """
    if k.dtype == Q8_0:
        x = (k["q"] * k["d"].astype(np.float32)[..., None]).reshape(*k.shape[:2], -1)
    else:
        x = k.astype(np.float32)
    cosines, sines = rope_table(frequencies, np.full(len(k), n_positions, np.int32))
    return round_to_cache(rope(x, cosines, -sines), k.dtype)


def attention(q: F32, k: NDArray[Any], v: NDArray[Any], first_position: int = 0, window: int = 0) -> F32:
    """Attend to the cache: each token sees the positions up to its own.

    Args:
        q: rotated queries of consecutive positions, float32 [n_tokens, n_heads, head_dim].
        k: rotated keys, [n_positions, n_kv_heads, ...] as round_to_cache() returns them, from
            position 0 to at least the last query's.
        v: values, as k.
        first_position: position of the first query.
        window: positions that a token sees, its own included; 0: all.

    Returns:
        float32 [n_tokens, n_heads, head_dim].

    Raises:
        NonFiniteError: with the row.
    """
    n_tokens, n_heads, head_dim = q.shape
    group = n_heads // k.shape[1]
    with np.errstate(over="ignore", invalid="ignore"):
        q = q * np.float32(1 / np.sqrt(np.float64(head_dim)))
        last = first_position + np.arange(n_tokens)
        first = np.maximum(0, last - window + 1) if window else np.zeros_like(last)
        m: F32 = np.full((n_tokens, n_heads), -np.inf, np.float32)
        l: F32 = np.zeros((n_tokens, n_heads), np.float32)  # noqa: E741 - the contract's name
        o: F32 = np.zeros((n_tokens, n_heads, head_dim), np.float32)
        for begin in range(int(first[0]) // PAGE * PAGE, int(last[-1]) + 1, PAGE):
            page = slice(begin, min(begin + PAGE, len(k)))
            position = np.arange(page.start, page.stop)
            seen = (first[:, None] <= position) & (position <= last[:, None])
            keys, values = (a[page].repeat(group, axis=1) for a in (k, v))
            m_c, l_c, o_c = _attend_page(q, keys, values, seen[:, None])
            top = np.maximum(m, m_c)
            a, b = exp(m - top), exp(m_c - top)  # at the first page m is -inf and l, o are 0: it gives m_c, l_c, o_c
            some = np.any(seen, axis=1, keepdims=True)
            m = np.where(some, top, m)
            l = np.where(some, fma(l_c, b, l * a), l)  # noqa: E741
            o = np.where(some[..., None], fma(o_c, b[..., None], o * a[..., None]), o)
        return finite(o * (np.float32(1) / l)[..., None], "the attention")


def _attend_page(q: F32, k: NDArray[Any], v: NDArray[Any], seen: NDArray[np.bool_]) -> tuple[F32, F32, F32]:
    """Attention to one page, of up to 64 positions, by scaled queries.

    seen: bool [n_tokens, 1, n_positions]. The results are the largest scores and the sums, both
    [n_tokens, n_heads], and the outputs before division by the sums, [n_tokens, n_heads, head_dim].
    """
    s = np.where(seen, _scores_q8_0(q, k) if k.dtype == Q8_0 else _scores(q, k.astype(np.float32)), np.float32(-np.inf))
    m = s.max(axis=-1)
    p = np.where(seen, exp(s - m[..., None]), np.float32(0))
    if v.dtype == Q8_0:
        scale, values = (
            v["d"].astype(np.float32).repeat(32, axis=2),
            v["q"].reshape(*v.shape[:2], -1).astype(np.float32),
        )
    else:
        scale, values = np.ones((len(v), 1, 1), np.float32), v.astype(np.float32)  # a product with 1 changes nothing
    o = np.zeros_like(q)
    for j in range(len(v)):
        o = np.where(seen[..., j, None], fma(p[..., j, None] * scale[j], values[j], o), o)
    return m, sum8(p), o


def _scores(q: F32, k: F32) -> F32:
    """[n_tokens, n_heads, n_positions] for k [n_positions, n_heads, head_dim]."""
    s = np.zeros((*q.shape[:2], len(k)), np.float32)
    for d in range(q.shape[2]):
        s = fma(q[:, :, d, None], k[:, :, d].T, s)
    return s


def _scores_q8_0(q: F32, k: NDArray[Any]) -> F32:
    """As _scores(), for k of Q8_0 [n_positions, n_heads, head_dim/32].

    A query that is not finite gives NaN.
    """
    sound = np.isfinite(q).all(axis=2, keepdims=True)
    xq, d, _ = quantize_activations(np.where(sound, q, np.float32(0)).reshape(len(q), -1))
    xi, dq = (
        xq.reshape(*q.shape[:2], -1, 32).astype(np.int32),
        np.where(sound, d.reshape(*q.shape[:2], -1), np.float32(np.nan)),
    )
    dk = k["d"].astype(np.float32)
    s = np.zeros((*q.shape[:2], len(k)), np.float32)
    for b in range(k.shape[2]):
        isum = np.einsum("thi,phi->thp", xi[:, :, b], k["q"][:, :, b].astype(np.int32))
        s = fma(dq[:, :, b, None] * dk[:, :, b].T, isum.astype(np.float32), s)
    return s
