"""The oracle: every operation of docs/numerics.md and the whole forward pass in plain NumPy.

This is what pymixtral computes, to the bit; tests compare the C kernels with it by `==`. Read it
beside docs/numerics.md, the contract: each function has the name of its section there, works on
all outputs at once, and loops over the one axis whose order the contract fixes. The row of a
NonFiniteError is the index along the first axis at which NaN or infinity was found.

The model is Mixtral's (Jiang et al. 2024, arXiv:2401.04088): a decoder with RMS norms,
grouped-query attention with rotary positions, and a feed-forward network in which a router chooses
a few experts for each token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pymixtral.arrays import F32, F64, I32
from pymixtral.errors import InvalidArgumentError, NonFiniteError
from pymixtral.files.types import DEQUANTIZED_TYPES, FLOAT_TYPES, Matrix
from pymixtral.reference.blocks import decode
from pymixtral.reference.blocks import dequantize as dequantize

if TYPE_CHECKING:
    from pymixtral.model.config import ModelConfig
    from pymixtral.model.weights import LayerWeights, ModelWeights


PAGE = 64
"""Positions of a cache page: the contract computes attention page by page."""


def finite(y: F32, what: str) -> F32:
    """Refuse NaN and infinity.

    Args:
        y: float, of any shape with a first axis.
        what: names y in the message.

    Returns:
        y itself.

    Raises:
        NonFiniteError: with the row, the index along the first axis.
    """
    bad = ~np.isfinite(y.reshape(len(y), -1)).all(axis=1)
    if bad.any():
        row = int(bad.argmax())
        raise NonFiniteError(
            f"expected finite numbers, found NaN or infinity in {what} of row {row}: check the model's weights", row
        )
    return y


# --- Ground ---------------------------------------------------------------------------------------


def fma(a: Any, b: Any, c: Any) -> F32:
    """Compute a*b + c with one rounding, infinities and NaN as in IEEE 754.

    The product of two float32 numbers is exact in float64, but the sum is not. Knuth's two-sum
    gives its error. An inexact sum is moved to the neighbour whose last bit is odd, which makes the
    second rounding, to float32, correct (Boldo and Melquiond 2008).

    Args:
        a: float32, of any shape that broadcasts with the others.
        b: float32.
        c: float32.

    Returns:
        float32, of the common shape.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        product = np.asarray(a, np.float64) * np.asarray(b, np.float64)
        addend = np.asarray(c, np.float64)
        total = np.asarray(product + addend)
        back = total - product
        error = (product - (total - back)) + (addend - back)
        bits = total.view(np.int64)
        toward_error = np.where((error > 0) == (total > 0), bits + 1, bits - 1)
        inexact = (error < 0) | (error > 0)
        odd: F64 = np.where(inexact & (bits & 1 == 0), toward_error, bits).view(np.float64)
        return odd.astype(np.float32)


def sum8(a: F32, b: F32 | None = None) -> F32:
    """Sum along the last axis, in eight partial sums and a tree.

    Args:
        a: float32 [..., n].
        b: float32 [..., n], which broadcasts with a; if given, the products a*b are summed by fma.

    Returns:
        float32 [...].
    """
    n = a.shape[-1]
    shape = a.shape[:-1] if b is None else np.broadcast_shapes(a.shape[:-1], b.shape[:-1])
    s = np.zeros((*shape, 8), np.float32)
    for k in range(0, n, 8):
        lanes = s[..., : n - k]  # a short tail leaves the other sums as they are
        lanes[...] = lanes + a[..., k : k + 8] if b is None else fma(a[..., k : k + 8], b[..., k : k + 8], lanes)
    with np.errstate(over="ignore", invalid="ignore"):
        total: F32 = ((s[..., 0] + s[..., 4]) + (s[..., 2] + s[..., 6])) + (
            (s[..., 1] + s[..., 5]) + (s[..., 3] + s[..., 7])
        )
        return total


# --- Activation quantization and matmul -----------------------------------------------------------


def embed(w: Matrix, ids: I32) -> F32:
    """Look up rows of a matrix.

    Args:
        w: the matrix, one row for each id.
        ids: int32 [n_ids].

    Returns:
        float32 [n_ids, cols], widened or dequantized.
    """
    return dequantize(Matrix(w.type, w.data[ids]))


def quantize_activations(x: F32, block: int = 32) -> tuple[NDArray[np.int8], F32, I32]:
    """Round activations to int8, with a scale for each block.

    Args:
        x: float32 [n_tokens, n], where n is a multiple of `block`.
        block: values that share a scale, 32 or 256.

    Returns:
        The values, int8 [n_tokens, n]; the scales, float32 [n_tokens, n/block]; and the sums of
        each 32 values (of each 16 with block 256), int32 [n_tokens, n/32 or n/16].

    Raises:
        NonFiniteError: with the row.
    """
    blocks = finite(x, "the activations").reshape(len(x), -1, block)
    amax = np.abs(blocks).max(axis=-1)
    zero = amax < np.float32(2.0**-100)
    scaled = np.where(zero, np.float32(1), amax)
    d = np.where(zero, np.float32(0), scaled / np.float32(127))
    inverse = np.where(zero, np.float32(0), np.float32(127) / scaled)
    q = np.rint(blocks * inverse[..., None]).astype(np.int8)
    return q.reshape(x.shape), d, q.reshape(len(x), -1, 32 if block == 32 else 16).sum(axis=-1, dtype=np.int32)


def matmul(x: F32, w: Matrix) -> F32:
    """Multiply rows by a matrix.

    Args:
        x: float32 [n_tokens, cols].
        w: the matrix, one row for each output.

    Returns:
        float32 [n_tokens, rows].

    Raises:
        NonFiniteError: with the row.
        UnsupportedError: for a type that this project does not run.
    """
    if w.type in FLOAT_TYPES or w.type in DEQUANTIZED_TYPES:
        widened = dequantize(w)
        strip = 1 + 2048 // max(1, len(x))  # outputs at a time, so that their sums stay in the CPU's cache
        y = [sum8(x[:, None], widened[r : r + strip]) for r in range(0, w.rows, strip)]
        return finite(np.concatenate(y, axis=1), "a matrix product")
    blocks = decode(w)
    xq, dx, sums = quantize_activations(x, blocks.size)
    xi = xq.reshape(*dx.shape, blocks.size).astype(np.int32)
    sums = sums.reshape(*dx.shape, -1)
    acc: F32 = np.zeros((len(x), w.rows), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for b in range(dx.shape[1]):
            wi, d = blocks.q[:, b], dx[:, b, None]
            if blocks.sc is not None:
                wi = wi * blocks.sc[:, b].repeat(blocks.size // blocks.sc.shape[2], axis=1)
            acc = fma(blocks.d[:, b] * d, (xi[:, b] @ wi.T).astype(np.float32), acc)
            if blocks.m is not None and blocks.mins is None:
                acc = fma(blocks.m[:, b], d * sums[:, b].astype(np.float32), acc)
            elif blocks.m is not None and blocks.mins is not None:
                mins = blocks.mins[:, b].repeat(16 // blocks.mins.shape[2], axis=1)
                acc = fma(-(blocks.m[:, b] * d), (sums[:, b] @ mins.T).astype(np.float32), acc)
    return finite(acc, "a matrix product")


# --- Elementwise ----------------------------------------------------------------------------------


def rms_norm(x: F32, weight: F32, eps: float) -> F32:
    """Normalise each row to a root mean square of 1 and multiply it by weights.

    Zhang and Sennrich 2019, arXiv:1910.07467.

    Args:
        x: float32 [n_tokens, n].
        weight: float32 [n].
        eps: added to the mean of the squares.

    Returns:
        float32 [n_tokens, n].

    Raises:
        NonFiniteError: with the row.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        squares = finite(sum8(x, x), "a sum of squares")
        r = np.float32(1) / np.sqrt(squares / np.float32(x.shape[-1]) + np.float32(eps))
        return finite((x * r[:, None]) * weight, "a normalised vector")


_LOG2_E = np.float32(float.fromhex("0x1.715476p+0"))
_LN2 = [np.float32(float.fromhex(c)) for c in ("-0x1.62e430p-1", "0x1.05c610p-29")]
_EXP = [
    np.float32(float.fromhex(c))
    for c in (
        "0x1.a125f6p-13",
        "0x1.6d444ap-10",
        "0x1.1110e0p-7",
        "0x1.5554e8p-5",
        "0x1.555556p-3",
        "0x1p-1",
        "0x1p0",
        "0x1p0",
    )
]
_EXP_MAX, _EXP_MIN = np.float32(88), np.float32(-87.3)


def exp(x: F32) -> F32:
    """Compute e**x, with an error of at most 0.85 ulp from -87.3 to 88.

    Args:
        x: float32, of any shape.

    Returns:
        float32, of the shape of x: +0 below -87.3, infinity above 88, NaN for NaN.
    """
    inside = np.clip(x, _EXP_MIN, _EXP_MAX)
    n = np.rint(inside * _LOG2_E)
    r = fma(n, _LN2[1], fma(n, _LN2[0], inside))
    p = np.broadcast_to(_EXP[0], r.shape)
    for c in _EXP[1:]:
        p = fma(p, r, c)
    with np.errstate(invalid="ignore"):
        y: F32 = np.ldexp(p, n.astype(np.int32))
    y[x > _EXP_MAX] = np.inf
    y[x < _EXP_MIN] = 0
    return y


def silu_mul(gate: F32, up: F32) -> F32:
    """Compute (gate / (1 + exp(-gate))) * up, the gated unit of an expert.

    Shazeer 2020, arXiv:2002.05202.

    Args:
        gate: float32 [n_tokens, ffn].
        up: float32 [n_tokens, ffn].

    Returns:
        float32 [n_tokens, ffn].

    Raises:
        NonFiniteError: with the row.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return finite((gate / (np.float32(1) + exp(-gate))) * up, "a gated product")


# --- Rotary positions -----------------------------------------------------------------------------

_TWO_OVER_PI = float.fromhex("0x1.45f306dc9c883p-1")
_HALF_PI = [float.fromhex(c) for c in ("0x1.921fb544p+0", "0x1.0b4611a6p-34", "0x1.3198a2e037073p-69")]
_SINE = [
    float.fromhex(c)
    for c in (
        *("0x1.952c77030ad4ap-49", "-0x1.ae7f3e733b81fp-41", "0x1.6124613a86d09p-33", "-0x1.ae64567f544e4p-26"),
        *("0x1.71de3a556c734p-19", "-0x1.a01a01a01a01ap-13", "0x1.1111111111111p-7", "-0x1.5555555555555p-3"),
    )
]
_COSINE = [
    float.fromhex(c)
    for c in (
        *("0x1.ae7f3e733b81fp-45", "-0x1.93974a8c07c9dp-37", "0x1.1eed8eff8d898p-29", "-0x1.27e4fb7789f5cp-22"),
        *("0x1.a01a01a01a01ap-16", "-0x1.6c16c16c16c17p-10", "0x1.5555555555555p-5", "-0x1p-1"),
    )
]
_MAX_ANGLE = 2.0**20  # radians; n has 20 bits and _HALF_PI's first number 33, so their product is exact


def rope_table(frequencies: F64, positions: I32, factor: float = 1.0) -> tuple[F32, F32]:
    """Compute the cosines and sines of the rotary embedding.

    Args:
        frequencies: float64 [n_pairs], in radians per position.
        positions: int32 [n_tokens].
        factor: multiplies cosines and sines.

    Returns:
        Cosines and sines, each float32 [n_tokens, n_pairs].

    Raises:
        InvalidArgumentError: for a negative position or an angle above 2^20.
    """
    angle = positions.astype(np.float64)[:, None] * frequencies
    if angle.size and not (positions.min() >= 0 and angle.max() <= _MAX_ANGLE):
        raise InvalidArgumentError(
            f"expected rope angles from 0 to 2^20, found {angle.min():g} to {angle.max():g}: use smaller positions"
        )
    n = np.rint(angle * _TWO_OVER_PI)
    r = ((angle - n * _HALF_PI[0]) - n * _HALF_PI[1]) - n * _HALF_PI[2]
    z = r * r
    p, q = np.full_like(z, _SINE[0]), np.full_like(z, _COSINE[0])
    for s, c in zip(_SINE[1:], _COSINE[1:], strict=True):
        p, q = p * z + s, q * z + c
    sine, cosine = r + (r * z) * p, 1 + z * q
    quadrant = n.astype(np.int64) & 3
    cosines = np.choose(quadrant, [cosine, -sine, -cosine, sine])
    sines = np.choose(quadrant, [sine, cosine, -sine, -cosine])
    return (cosines * factor).astype(np.float32), (sines * factor).astype(np.float32)


def rope(x: F32, cosines: F32, sines: F32) -> F32:
    """Rotate each pair of adjacent elements by the angle of its position.

    Su et al. 2021, arXiv:2104.09864.

    Args:
        x: queries or keys, float32 [n_tokens, n_heads, head_dim].
        cosines: float32 [n_tokens, head_dim/2].
        sines: float32 [n_tokens, head_dim/2].

    Returns:
        float32 [n_tokens, n_heads, head_dim].

    Raises:
        NonFiniteError: with the row.
    """
    c, s = cosines[:, None], sines[:, None]
    even, odd = x[..., 0::2], x[..., 1::2]
    y = np.empty_like(x)
    y[..., 0::2] = fma(even, c, -(odd * s))
    y[..., 1::2] = fma(even, s, odd * c)
    return finite(y, "the rotated vectors")


# --- Attention ------------------------------------------------------------------------------------


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


# --- Router and experts ---------------------------------------------------------------------------


def route(logits: F32, n_used: int, n_dropped: int = 0, min_p: float = 0.0) -> tuple[I32, F32]:
    """Choose the experts of each token.

    Args:
        logits: of the router, float32 [n_tokens, n_experts].
        n_used: experts to choose, 1 to n_experts.
        n_dropped: how many of these, the least likely, have weight 0; 0 to n_used - 1.
        min_p: experts that are less than this part as likely as the first one have weight 0; 0 to 1.

    Returns:
        The chosen experts in ascending order, int32 [n_tokens, n_used], and their weights, float32
        [n_tokens, n_used]: the softmax of the chosen logits whose weight is not 0.

    Raises:
        NonFiniteError: with the row.
    """
    order = np.argsort(-finite(logits, "the router's logits"), axis=1, kind="stable")
    ids = np.sort(order[:, :n_used], axis=1)
    e = exp(np.take_along_axis(logits, ids, axis=1) - logits.max(axis=1, keepdims=True))
    last = order[:, n_used - n_dropped : n_used]
    e[(ids[:, :, None] == last[:, None]).any(axis=2) | (e < np.float32(min_p))] = 0
    total = e[:, 0]
    for i in range(1, n_used):
        total = total + e[:, i]
    return ids.astype(np.int32), e / total[:, None]


def feed_forward(x: F32, gate: Matrix, up: Matrix, down: Matrix) -> F32:
    """Compute one expert.

    Args:
        x: float32 [n_tokens, hidden].
        gate: ffn x hidden.
        up: ffn x hidden.
        down: hidden x ffn.

    Returns:
        float32 [n_tokens, hidden].

    Raises:
        NonFiniteError: with the row.
    """
    return matmul(silu_mul(matmul(x, gate), matmul(x, up)), down)


def experts(x: F32, normed: F32, ids: I32, weights: F32, matrices: Sequence[tuple[Matrix, Matrix, Matrix]]) -> F32:
    """Add the weighted outputs of the chosen experts to the residual stream.

    Args:
        x: the residual stream, float32 [n_tokens, hidden].
        normed: the experts' input, float32 [n_tokens, hidden].
        ids: the chosen experts, int32 [n_tokens, n_used], ascending.
        weights: their weights, float32 [n_tokens, n_used]; experts of weight 0 are not computed.
        matrices: gate, up (ffn x hidden) and down (hidden x ffn) of each expert.

    Returns:
        float32 [n_tokens, hidden].

    Raises:
        NonFiniteError: with the row.
    """
    out = np.zeros((*ids.shape, x.shape[1]), np.float32)
    for e, (gate, up, down) in enumerate(matrices):
        rows, slots = np.nonzero((ids == e) & (weights != 0))
        if not len(rows):
            continue
        try:
            out[rows, slots] = feed_forward(normed[rows], gate, up, down)
        except NonFiniteError as error:
            row = int(rows[error.row])
            raise NonFiniteError(
                f"expected finite numbers, found NaN or infinity in expert {e} for row {row}: check its weights", row
            ) from error
    with np.errstate(over="ignore", invalid="ignore"):
        y = weights[:, 0, None] * out[:, 0]
        for i in range(1, ids.shape[1]):
            y = fma(weights[:, i, None], out[:, i], y)
        return finite(x + y, "the experts' sum")


# --- Model ----------------------------------------------------------------------------------------


def layer_attention(
    x: F32, w: LayerWeights, config: ModelConfig, cosines: F32, sines: F32, cache_dtype: Any = np.float32
) -> F32:
    """Add a layer's attention to the residual stream.

    Args:
        x: a whole sequence from position 0, float32 [n_tokens, hidden].
        w: the layer's weights.
        config: the model's numbers.
        cosines: of rope_table(), float32 [n_tokens, head_dim/2].
        sines: of rope_table(), float32 [n_tokens, head_dim/2].
        cache_dtype: np.float32, np.float16 or Q8_0, to which keys and values are rounded.

    Returns:
        float32 [n_tokens, hidden].

    Raises:
        NonFiniteError: with the row.
    """
    n_tokens = len(x)
    n = rms_norm(x, w.attn_norm, config.rms_eps)
    q = rope(matmul(n, w.q).reshape(n_tokens, config.n_heads, config.head_dim), cosines, sines)
    k = rope(matmul(n, w.k).reshape(n_tokens, config.n_kv_heads, config.head_dim), cosines, sines)
    v = matmul(n, w.v).reshape(n_tokens, config.n_kv_heads, config.head_dim)
    seen = attention(q, round_to_cache(k, cache_dtype), round_to_cache(v, cache_dtype), window=config.window)
    return finite(x + matmul(seen.reshape(n_tokens, -1), w.output), "the residual stream")


def layer(
    x: F32,
    w: LayerWeights,
    config: ModelConfig,
    cosines: F32,
    sines: F32,
    cache_dtype: Any = np.float32,
    n_experts_used: int | None = None,
) -> F32:
    """Compute one decoder layer.

    Args:
        x: a whole sequence from position 0, float32 [n_tokens, hidden].
        w: the layer's weights.
        config: the model's numbers.
        cosines: of rope_table(), float32 [n_tokens, head_dim/2].
        sines: of rope_table(), float32 [n_tokens, head_dim/2].
        cache_dtype: np.float32, np.float16 or Q8_0, to which keys and values are rounded.
        n_experts_used: experts that a token uses in this layer; None: config.n_experts_used.

    Returns:
        float32 [n_tokens, hidden].

    Raises:
        NonFiniteError: with the row.
    """
    x = layer_attention(x, w, config, cosines, sines, cache_dtype)
    n = rms_norm(x, w.ffn_norm, config.rms_eps)
    if w.router is None:
        return experts(x, n, np.zeros((len(x), 1), np.int32), np.ones((len(x), 1), np.float32), w.experts)
    ids, weights = route(matmul(n, w.router), n_experts_used or config.n_experts_used, min_p=config.expert_min_p)
    return experts(x, n, ids, weights, w.experts)


def forward(
    weights: ModelWeights, config: ModelConfig, tokens: Sequence[int] | I32, cache_dtype: Any = np.float32
) -> F32:
    """Compute all layers for a sequence that begins at position 0.

    Args:
        weights: the model's weights.
        config: the model's numbers.
        tokens: token ids [n_tokens].
        cache_dtype: np.float32, np.float16 or Q8_0, to which keys and values are rounded.

    Returns:
        The residual stream after the last layer, float32 [n_tokens, hidden].

    Raises:
        NonFiniteError: with the row.
    """
    x = embed(weights.embedding, np.asarray(tokens, np.int32))
    cosines, sines = rope_table(config.rope_frequencies(), np.arange(len(x), dtype=np.int32), config.rope_factor())
    for w, n_used in zip(weights.layers, config.experts_used, strict=True):
        x = layer(x, w, config, cosines, sines, cache_dtype, n_used)
    return x


def logits(hidden: F32, weights: ModelWeights, config: ModelConfig) -> F32:
    """Compute logits.

    Args:
        hidden: rows of forward(), float32 [n_tokens, hidden].
        weights: the model's weights.
        config: the model's numbers.

    Returns:
        float32 [n_tokens, n_vocab].

    Raises:
        NonFiniteError: with the row.
    """
    return matmul(rms_norm(hidden, weights.output_norm, config.rms_eps), weights.head)
