"""The oracle's operations against gguf.quants, float64, and a second statement of their order."""

from __future__ import annotations

import math

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from pymixtral.arrays import F32, F64
from pymixtral.errors import InvalidArgumentError, NonFiniteError, UnsupportedError
from pymixtral.files.types import FLOAT_TYPES, Matrix
from pymixtral.reference import oracle
from support.exact import exact_fma


def normal(seed: int, *shape: int) -> F32:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.parametrize("n", [1, 3, 8, 13, 32])
def test_sum8_follows_its_order(n: int) -> None:
    a, b = normal(11, 2, n), normal(12, 2, n)
    for row in range(2):
        plain, product = np.zeros(8, np.float32), np.zeros(8, np.float32)
        for k in range(n):
            plain[k % 8] += a[row, k]
            product[k % 8] = oracle.fma(a[row, k], b[row, k], product[k % 8])
        for s, got in ((plain, oracle.sum8(a)), (product, oracle.sum8(a, b))):
            assert got[row] == ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]))


# --- Types, activation quantization, matmul ----------------------------------------------------------------------

FLOATS = list(FLOAT_TYPES)
BLOCKS = [GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0]
TYPES = FLOATS + BLOCKS
by_type = pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name.lower())


def encode(kind: GGMLQuantizationType, values: F32) -> Matrix:
    return Matrix(kind, np.ascontiguousarray(quants.quantize(values, kind)).view(np.uint8))


@by_type
def test_dequantize_equals_gguf(kind: GGMLQuantizationType) -> None:
    matrix = encode(kind, normal(20, 7, 96))
    np.testing.assert_array_equal(oracle.dequantize(matrix), quants.dequantize(matrix.data, kind))


@pytest.mark.parametrize("kind", BLOCKS, ids=lambda kind: kind.name.lower())
def test_dequantize_equals_gguf_for_any_bytes(kind: GGMLQuantizationType) -> None:
    matrix = encode(kind, normal(21, 50, 64))
    size = matrix.row_bytes // 2
    data = np.random.default_rng(22).integers(0, 256, matrix.data.shape, np.uint8)
    data[:, 1::size] &= 0xBF  # the scales' exponents: no infinity and no NaN
    np.testing.assert_array_equal(oracle.dequantize(Matrix(kind, data)), quants.dequantize(data, kind))


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="q8_k"):
        oracle.dequantize(Matrix(GGMLQuantizationType.Q8_K, np.zeros((1, 292), np.uint8)))


def test_embed_takes_rows() -> None:
    matrix = encode(GGMLQuantizationType.Q4_0, normal(23, 9, 64))
    np.testing.assert_array_equal(
        oracle.embed(matrix, np.array([8, 0, 8], np.int32)), oracle.dequantize(matrix)[[8, 0, 8]]
    )


def test_quantized_activations_follow_the_rule() -> None:
    x = normal(24, 5, 96)
    x[1, 32:64] = 0
    x[2, :32] = 2.0**-101
    x[3, :32] = 2.0**-100
    x[4, :32] = np.arange(32) - 15.5  # halves
    x[4, 0] = 127
    q, d, sums = oracle.quantize_activations(x)
    assert [a.dtype.name for a in (q, d, sums)] == ["int8", "float32", "int32"]
    for t in range(5):
        for b in range(3):
            block = x[t, 32 * b : 32 * b + 32]
            amax = np.abs(block).max()
            if amax < 2.0**-100:
                want, scale = [0] * 32, np.float32(0)
            else:
                inverse, scale = np.float32(127) / amax, amax / np.float32(127)
                want = [round(float(np.float32(value * inverse))) for value in block]
            np.testing.assert_array_equal(q[t, 32 * b : 32 * b + 32], want)
            assert d[t, b] == scale
            assert sums[t, b] == sum(want)
    assert q[4, 1:4].tolist() == [-14, -14, -12]  # -14.5, -13.5, -12.5


def test_quantized_activations_next_to_a_half_multiply_by_the_inverse() -> None:
    generator = np.random.default_rng(19)
    amax = generator.uniform(1, 2, (500, 1)).astype(np.float32)
    x = ((generator.integers(0, 126, (500, 32)) + 0.5) * (amax.astype(np.float64) / 127)).astype(np.float32)
    x[:, :1] = amax
    q, _, _ = oracle.quantize_activations(x)
    np.testing.assert_array_equal(q, np.rint((x * (np.float32(127) / amax)).astype(np.float64)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_nonfinite_activation_names_its_row(value: float) -> None:
    x = normal(25, 4, 64)
    x[2, 40] = value
    with pytest.raises(NonFiniteError) as caught:
        oracle.quantize_activations(x)
    assert caught.value.row == 2


@by_type
def test_matmul_is_close_to_the_product_in_float64(kind: GGMLQuantizationType) -> None:
    x, w = normal(26, 20, 512), encode(kind, normal(27, 80, 512))
    got = oracle.matmul(x, w)
    seen = x.astype(np.float64)
    if kind in BLOCKS:
        q, d, _ = oracle.quantize_activations(x)
        seen = q.astype(np.float64) * np.repeat(d.astype(np.float64), 32, axis=1)
    want = seen @ oracle.dequantize(w).T.astype(np.float64)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=0, atol=3e-6 * np.abs(want).max())


@pytest.mark.parametrize("kind", BLOCKS, ids=lambda kind: kind.name.lower())
def test_matmul_of_blocks_follows_its_order(kind: GGMLQuantizationType) -> None:
    x, w = normal(37, 4, 96), encode(kind, normal(38, 10, 96))
    q, dx, _ = oracle.quantize_activations(x)
    size = w.row_bytes // 3
    got = oracle.matmul(x, w)
    for t in range(4):
        for r in range(10):
            acc = np.float32(0)
            for b in range(3):
                dw = w.data[r, size * b : size * b + 2].view(np.float16)[0].astype(np.float32)
                integers = np.rint(oracle.dequantize(w)[r, 32 * b : 32 * b + 32].astype(np.float64) / dw)
                acc = exact_fma(dw * dx[t, b], np.dot(integers, q[t, 32 * b : 32 * b + 32].astype(np.float64)), acc)
            assert got[t, r] == acc


@by_type
def test_a_row_of_matmul_does_not_depend_on_the_others(kind: GGMLQuantizationType) -> None:
    x, w = normal(28, 9, 96), encode(kind, normal(29, 2500, 96))
    np.testing.assert_array_equal(oracle.matmul(x, w)[4:5], oracle.matmul(x[4:5], w))


@by_type
def test_matmul_names_the_row_that_overflows(kind: GGMLQuantizationType) -> None:
    x = normal(30, 3, 64)
    x[1] = np.float32(3e38)
    with pytest.raises(NonFiniteError) as caught:
        oracle.matmul(x, encode(kind, np.full((5, 64), 2, np.float32)))
    assert caught.value.row == 1


# --- Elementwise -------------------------------------------------------------------------------------------------


def test_rms_norm_is_close_to_float64() -> None:
    x, w = normal(31, 6, 77) * np.float32(5), normal(32, 77)
    wide = x.astype(np.float64)
    want = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + 1e-5) * w
    np.testing.assert_allclose(oracle.rms_norm(x, w, 1e-5), want, rtol=4e-7)


def test_rms_norm_rounds_in_its_order() -> None:
    x, w, n, eps = normal(53, 8, 40), normal(54, 40), np.float32(40), np.float32(1e-5)
    r = np.float32(1) / np.sqrt(oracle.sum8(x, x) / n + eps)
    np.testing.assert_array_equal(oracle.rms_norm(x, w, 1e-5), (x * r[:, None]) * w)


def test_exp_within_its_error_bound() -> None:
    x = np.linspace(-87.29, 88, 600_001).astype(np.float32)
    want = np.exp(x.astype(np.float64))
    unit = np.ldexp(1.0, np.frexp(want)[1] - 24)
    assert (np.abs(oracle.exp(x) - want) / unit).max() < 0.85


def test_exp_at_its_limits() -> None:
    limit, floor = np.float32(88), np.float32(-87.3)
    inf = np.float32(np.inf)
    x = np.array(
        [0, -0.0, limit, np.nextafter(limit, inf), floor, np.nextafter(floor, -inf), inf, -inf, np.nan], np.float32
    )
    y = oracle.exp(x)
    np.testing.assert_array_equal(y[[0, 1, 3, 5, 6, 7, 8]], np.array([1, 1, np.inf, 0, np.inf, 0, np.nan], np.float32))
    assert np.isfinite(y[2])
    assert y[4] >= np.finfo(np.float32).tiny


def test_silu_mul_is_close_to_float64() -> None:
    gate = np.linspace(-100, 100, 20_001).astype(np.float32)
    up = normal(33, len(gate))
    wide = gate.astype(np.float64)
    want = wide / (1 + np.exp(-wide)) * up
    np.testing.assert_allclose(oracle.silu_mul(gate, up), want, rtol=5e-7, atol=1e-35)


def test_silu_mul_rounds_in_its_order() -> None:
    gate, up = normal(55, 500), normal(56, 500)
    np.testing.assert_array_equal(oracle.silu_mul(gate, up), (gate / (np.float32(1) + oracle.exp(-gate))) * up)


def test_silu_mul_names_the_row_that_overflows() -> None:
    with pytest.raises(NonFiniteError) as caught:
        oracle.silu_mul(np.array([[1, 2], [3, 1e20]], np.float32), np.full((2, 2), 1e20, np.float32))
    assert caught.value.row == 1


# --- Rotary positions --------------------------------------------------------------------------------------------


def test_rope_table_is_float64_sine_and_cosine_rounded_once() -> None:
    frequencies = np.random.default_rng(34).uniform(0, 1, 64)
    positions = np.concatenate([np.arange(500), np.random.default_rng(35).integers(0, 1 << 20, 2000)]).astype(np.int32)
    cosines, sines = oracle.rope_table(frequencies, positions)
    angle = positions[:, None] * frequencies
    half_unit = 2.0**-25 + 1e-13
    assert np.abs(cosines - np.cos(angle)).max() <= half_unit
    assert np.abs(sines - np.sin(angle)).max() <= half_unit


def test_rope_table_scales_before_it_rounds() -> None:
    frequencies, positions = np.array([1.0, 0.1]), np.arange(50, dtype=np.int32)
    cosines, sines = oracle.rope_table(frequencies, positions, 1.3)
    angle = positions[:, None] * frequencies
    assert np.abs(cosines - 1.3 * np.cos(angle)).max() <= 2.0**-24
    assert np.abs(sines - 1.3 * np.sin(angle)).max() <= 2.0**-24


@pytest.mark.parametrize("position", [-1, (1 << 20) + 1])
def test_rope_table_refuses_angles_out_of_range(position: int) -> None:
    with pytest.raises(InvalidArgumentError, match="angles"):
        oracle.rope_table(np.array([1.0]), np.array([position], np.int32))


def test_rope_turns_adjacent_pairs() -> None:
    x = normal(36, 5, 3, 8)
    cosines, sines = oracle.rope_table(np.array([1, 0.3, 0.1, 0.01]), np.arange(5, dtype=np.int32))
    turned = (x[..., 0::2] + 1j * x[..., 1::2].astype(np.complex128)) * (cosines + 1j * sines.astype(np.complex128))[
        :, None
    ]
    y = oracle.rope(x, cosines, sines)
    np.testing.assert_allclose(y[..., 0::2], turned.real, atol=1e-6)
    np.testing.assert_allclose(y[..., 1::2], turned.imag, atol=1e-6)
    np.testing.assert_array_equal(y[0], x[0])
    for t, h, i in np.ndindex(5, 3, 4):
        x0, x1, c, s = x[t, h, 2 * i], x[t, h, 2 * i + 1], cosines[t, i], sines[t, i]
        assert y[t, h, 2 * i] == exact_fma(x0, c, -(x1 * s))
        assert y[t, h, 2 * i + 1] == exact_fma(x0, s, x1 * c)


# --- Attention ---------------------------------------------------------------------------------------------------


def softmax_attention(q: F32, k: F32, v: F32, first_position: int, window: int) -> F64:
    group = q.shape[1] // k.shape[1]
    keys, values = (a.astype(np.float64).repeat(group, axis=1) for a in (k, v))
    scores = np.einsum("thd,phd->htp", q.astype(np.float64), keys) / math.sqrt(q.shape[2])
    t, p = first_position + np.arange(len(q))[:, None], np.arange(len(k))
    seen = (p <= t) & ((p > t - window) | (window == 0))
    e = np.where(seen, np.exp(scores - scores.max(axis=-1, keepdims=True)), 0)
    result: F64 = np.einsum("htp,phd->thd", e / e.sum(axis=-1, keepdims=True), values)
    return result


@pytest.mark.parametrize("window", [0, 1, 70, 128])
@pytest.mark.parametrize(("first_position", "n_tokens"), [(0, 1), (0, 150), (63, 3), (190, 12)])
def test_attention_is_close_to_softmax_in_float64(first_position: int, n_tokens: int, window: int) -> None:
    n_positions = first_position + n_tokens
    q, k, v = normal(40, n_tokens, 4, 16), normal(41, n_positions, 2, 16), normal(42, n_positions, 2, 16)
    got = oracle.attention(q, k, v, first_position, window)
    np.testing.assert_allclose(got, softmax_attention(q, k, v, first_position, window), atol=2e-6)


def test_attention_follows_the_order_of_its_pages() -> None:
    n_heads = 64
    q, k, v = normal(43, 1, n_heads, 8), normal(44, 150, n_heads, 8), normal(45, 150, n_heads, 8)
    fma, scale = oracle.fma, np.float32(1 / math.sqrt(8))
    pages = []
    for begin, end in ((20, 64), (64, 128), (128, 150)):  # the window of 130 begins inside the first page
        s = np.zeros((n_heads, end - begin), np.float32)
        for d in range(8):
            s = fma((q[0, :, d] * scale)[:, None], k[begin:end, :, d].T, s)
        m = s.max(axis=1)
        p = np.zeros((n_heads, 64), np.float32)
        p[:, begin % 64 : begin % 64 + end - begin] = oracle.exp(s - m[:, None])
        o = np.zeros((n_heads, 8), np.float32)
        for j in range(begin, end):
            o = fma(p[:, j % 64, None], v[j], o)
        pages.append((m, oracle.sum8(p), o))
    m, l, o = pages[0]  # noqa: E741
    for m_c, l_c, o_c in pages[1:]:
        top = np.maximum(m, m_c)
        a, b = oracle.exp(m - top), oracle.exp(m_c - top)
        m, l, o = top, fma(l_c, b, l * a), fma(o_c, b[:, None], o * a[:, None])  # noqa: E741
    want = o * (np.float32(1) / l)[:, None]
    np.testing.assert_array_equal(oracle.attention(q, k, v, 149, 130)[0], want)


@pytest.mark.parametrize("window", [0, 70])
def test_attention_does_not_depend_on_how_a_prompt_is_cut(window: int) -> None:
    q, k, v = normal(46, 140, 4, 8), normal(47, 140, 2, 8), normal(48, 140, 2, 8)
    whole = oracle.attention(q, k, v, 0, window)
    np.testing.assert_array_equal(oracle.attention(q[97:], k, v, 97, window), whole[97:])


def test_attention_never_touches_what_it_does_not_see() -> None:
    q, k, v = normal(49, 2, 2, 8), normal(50, 100, 2, 8), normal(51, 100, 2, 8)
    clean = oracle.attention(q, k, v, 90, 20)
    for a in (k, v):
        a[:71] = np.nan
        a[92:] = np.nan
    np.testing.assert_array_equal(oracle.attention(q, k, v, 90, 20), clean)


def test_a_cache_of_float16_rounds_and_refuses_overflow() -> None:
    x = normal(52, 3, 2, 8)
    stored = oracle.round_to_cache(x, np.float16)
    assert stored.dtype == np.float16
    np.testing.assert_array_equal(stored, x.astype(np.float16))
    x[1, 0, 0] = 65520  # halfway between the largest float16 and the next, so that it rounds to infinity
    with pytest.raises(NonFiniteError) as caught:
        oracle.round_to_cache(x, np.float16)
    assert caught.value.row == 1
    np.testing.assert_array_equal(oracle.round_to_cache(x, np.float32), x)


# --- Router and experts ------------------------------------------------------------------------------------------


def test_route_is_a_renormalised_softmax() -> None:
    logits = normal(60, 50, 8) * np.float32(3)
    ids, weights = oracle.route(logits, 3)
    probabilities = np.exp(logits.astype(np.float64))
    for t in range(50):
        best = sorted(np.argsort(logits[t])[-3:])
        assert ids[t].tolist() == best
        np.testing.assert_allclose(weights[t], probabilities[t, best] / probabilities[t, best].sum(), rtol=1e-6)


def test_route_breaks_ties_by_the_lower_index() -> None:
    logits = np.array([[1, 2, 2, 2], [0, 0, -0.0, 0], [5, 1, 1, 5]], np.float32)
    ids, weights = oracle.route(logits, 2)
    assert ids.tolist() == [[1, 2], [0, 1], [0, 3]]
    np.testing.assert_array_equal(weights, np.full((3, 2), 0.5, np.float32))
    assert oracle.route(logits, 3)[0].tolist() == [[1, 2, 3], [0, 1, 2], [0, 1, 3]]
    many = np.random.default_rng(71).integers(0, 4, (20, 64)).astype(np.float32)
    for row, chosen in zip(many.tolist(), oracle.route(many, 20)[0].tolist(), strict=True):
        assert chosen == sorted(sorted(range(64), key=lambda e: -row[e])[:20])


def test_dropped_experts_have_no_weight_and_the_others_are_as_with_fewer() -> None:
    logits = np.round(normal(72, 200, 8) * np.float32(2))  # with ties
    (few, few_weights), (ids, weights) = oracle.route(logits, 2), oracle.route(logits, 4, 2)
    np.testing.assert_array_equal(ids, oracle.route(logits, 4)[0])
    for row in range(200):
        used = weights[row] != 0
        np.testing.assert_array_equal(ids[row, used], few[row])
        np.testing.assert_array_equal(weights[row, used], few_weights[row])


def test_unlikely_experts_are_dropped() -> None:
    ratios = np.array([[1, 0.5, 0.25, 0.1], [0.26, 0.24, 1, 0.01], [1, 1, 1, 1]])
    ids, weights = oracle.route(np.log(ratios).astype(np.float32), 3, min_p=0.25 - 1e-6)
    assert ids.tolist() == [[0, 1, 2], [0, 1, 2], [0, 1, 2]]
    want = [[1 / 1.75, 0.5 / 1.75, 0.25 / 1.75], [0.26 / 1.26, 0, 1 / 1.26], [1 / 3] * 3]
    np.testing.assert_allclose(weights, want, rtol=1e-5)
    best_weights = oracle.route(normal(73, 99, 8), 3, min_p=1.0)[1]
    np.testing.assert_array_equal(best_weights.max(axis=1), 1)
    np.testing.assert_array_equal(best_weights.sum(axis=1), 1)


def test_route_refuses_nan() -> None:
    with pytest.raises(NonFiniteError) as caught:
        oracle.route(np.array([[0, 1], [np.nan, 1]], np.float32), 1)
    assert caught.value.row == 1


def test_experts_add_their_weighted_outputs() -> None:
    hidden, ffn, n_tokens = 32, 64, 9
    x, normed = normal(61, n_tokens, hidden), normal(62, n_tokens, hidden)
    arrays = [(normal(63 + e, ffn, hidden), normal(73 + e, ffn, hidden), normal(83 + e, hidden, ffn)) for e in range(4)]
    ids, weights = oracle.route(normal(64, n_tokens, 4), 2)
    got = oracle.experts(
        x, normed, ids, weights, [tuple(map(Matrix.from_float, arrays_of_one)) for arrays_of_one in arrays]
    )  # type: ignore[misc]
    want = x.astype(np.float64)
    for t in range(n_tokens):
        for e, weight in zip(ids[t], weights[t], strict=True):
            gate, up, down = (a.astype(np.float64) for a in arrays[e])
            g = gate @ normed[t]
            want[t] += weight * (down @ (g / (1 + np.exp(-g)) * (up @ normed[t])))
    np.testing.assert_allclose(got, want, rtol=0, atol=3e-6 * np.abs(want).max())


def test_experts_round_in_their_order() -> None:
    hidden, n_tokens = 32, 6
    x, normed = normal(67, n_tokens, hidden), normal(68, n_tokens, hidden)
    matrices = [(Matrix.from_float(normal(69 + e, 32, 32)),) * 3 for e in range(3)]
    ids = np.array([[0, 1, 2]] * n_tokens, np.int32)
    weights = np.random.default_rng(70).uniform(0.1, 0.6, (n_tokens, 3)).astype(np.float32)
    got = oracle.experts(x, normed, ids, weights, matrices)
    out = [oracle.feed_forward(normed, *matrix) for matrix in matrices]
    for t, i in np.ndindex(n_tokens, hidden):
        y = exact_fma(weights[t, 2], out[2][t, i], exact_fma(weights[t, 1], out[1][t, i], weights[t, 0] * out[0][t, i]))
        assert got[t, i] == x[t, i] + y


def test_experts_name_the_row_of_the_batch() -> None:
    huge = Matrix.from_float(np.full((32, 32), 3e38, np.float32))
    plain = Matrix.from_float(normal(65, 32, 32))
    x = normal(66, 5, 32)
    ids, weights = np.array([[0], [0], [0], [1], [0]], np.int32), np.ones((5, 1), np.float32)
    with pytest.raises(NonFiniteError) as caught:
        oracle.experts(x, x, ids, weights, [(plain, plain, plain), (huge, huge, huge)])
    assert caught.value.row == 3
