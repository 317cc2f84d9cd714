"""The oracle against exact rational arithmetic, float64, gguf.quants and Hugging Face's implementation."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import GOLDEN_MODELS, TINY_MIXTRAL, Shape, config_json, make_tensors, read_tensors
from gguf import GGMLQuantizationType, quants
from numpy.typing import NDArray

from pymixtral import reference
from pymixtral.config import ModelConfig
from pymixtral.errors import InvalidArgumentError, NonFiniteError, UnsupportedError
from pymixtral.matrix import Matrix
from pymixtral.weights import LayerWeights, ModelWeights

F32 = NDArray[np.float32]
GOLDENS = Path(__file__).parent / "goldens"


def normal(seed: int, *shape: int) -> F32:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


# --- fma and sum8 ------------------------------------------------------------------------------------------------


def nearest_float32(x: Fraction) -> np.float32:
    """x rounded to nearest even, from the definition of binary32."""
    if x == 0:
        return np.float32(0)
    exponent = x.numerator.bit_length() - x.denominator.bit_length()  # floor(log2 |x|) or one more
    if abs(x) < Fraction(2) ** exponent:
        exponent -= 1
    quantum = Fraction(2) ** max(exponent - 23, -149)
    rounded = round(x / quantum) * quantum  # Python rounds halves of a Fraction to even
    return np.float32(math.copysign(math.inf, x)) if abs(rounded) >= Fraction(2) ** 128 else np.float32(float(rounded))


def assert_fma_exact(a: F32, b: F32, c: F32) -> None:
    got = reference.fma(a, b, c)
    assert got.dtype == np.float32
    want = [nearest_float32(Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))) for x, y, z in zip(a, b, c, strict=True)]
    np.testing.assert_array_equal(got, np.array(want, np.float32))


def floats(generator: np.random.Generator, n: int) -> F32:
    """Finite float32 of any bit pattern: any exponent, subnormals too."""
    bits = generator.integers(0, 1 << 32, n, np.uint32)
    return np.where((bits & 0x7F800000) == 0x7F800000, bits & 0x807FFFFF, bits).view(np.float32)


def test_fma_of_any_bit_patterns() -> None:
    generator = np.random.default_rng(1)
    assert_fma_exact(floats(generator, 4000), floats(generator, 4000), floats(generator, 4000))


def test_fma_where_the_product_cancels_its_addend() -> None:
    a, b = normal(2, 3000), normal(3, 3000)
    assert_fma_exact(a, b, -(a * b))


def test_fma_where_the_sum_is_next_to_a_half() -> None:
    # An addend of 24 bits and a product that is half a unit of its last place, or just above or below: rounding twice gets these wrong.
    generator = np.random.default_rng(4)
    c = (generator.integers(1 << 23, 1 << 24, 4000) * generator.choice([-1.0, 1.0], 4000)).astype(np.float32)
    half = generator.choice([0.5, -0.5, 1.5], 4000).astype(np.float32)
    nudge = generator.choice([0, 1, -1, 3], 4000) * np.float32(2.0**-23)
    assert_fma_exact(half + nudge * abs(half), (1 + generator.choice([0, 1, -1], 4000) * 2.0**-23).astype(np.float32), c)


def test_fma_with_a_tiny_product_decides_a_tie_of_the_double_sum() -> None:
    # c + a*b is a tie of float32 up to a part that float64 cannot hold beside c.
    tiny = np.float32(2.0**-60)
    a = np.array([1 + 2.0**-23, 1 + 2.0**-23, tiny, tiny, -tiny], np.float32)
    b = np.array([1 + 2.0**-23, -1 - 2.0**-23, tiny, 1, 1], np.float32)
    c = np.array([2.0**24, -(2.0**24), 1, 1.5, 1 + 2.0**-23], np.float32)
    assert_fma_exact(a, b, c)
    # 2^-24 (1 + 2^-12)(1 - 2^-12) = 2^-24 (1 - 2^-24), a hair below half a unit of 1.
    assert_fma_exact(np.array([2.0**-24 * (1 + 2.0**-12)], np.float32), np.array([1 - 2.0**-12], np.float32), np.array([1], np.float32))
    assert_fma_exact(
        np.array([2.0**-24 * (1 + 2.0**-12)], np.float32), np.array([1 - 2.0**-12], np.float32), np.array([1 + 2.0**-23], np.float32)
    )


def test_fma_with_subnormal_results_and_operands() -> None:
    generator = np.random.default_rng(5)
    small = (generator.integers(-(1 << 24), 1 << 24, 4000) * 2.0**-149).astype(np.float32)
    a = (normal(6, 4000) * np.float32(2.0**-70)).astype(np.float32)
    b = (normal(7, 4000) * np.float32(2.0**-76)).astype(np.float32)
    assert_fma_exact(a, b, small)
    assert_fma_exact(small, normal(8, 4000), small[::-1])


def test_fma_near_overflow() -> None:
    generator = np.random.default_rng(9)
    large = np.ldexp(generator.uniform(1, 2, 2000), 127).astype(np.float32)
    near_one = (1 + generator.integers(-8, 8, 2000) * 2.0**-24).astype(np.float32)
    largest = np.finfo(np.float32).max
    assert_fma_exact(large, near_one, -large[::-1])
    assert_fma_exact(np.full(2000, largest), near_one, (normal(10, 2000) * np.float32(2.0**103)).astype(np.float32))


def test_fma_of_infinities_and_nan() -> None:
    inf, nan = np.float32(np.inf), np.float32(np.nan)
    got = reference.fma(
        np.array([inf, 1, inf, 0, 1], np.float32), np.array([2, 2, 1, inf, nan], np.float32), np.array([1, -inf, -inf, 1, 1], np.float32)
    )
    np.testing.assert_array_equal(got, np.array([inf, -inf, nan, nan, nan], np.float32))


@pytest.mark.parametrize("n", [1, 3, 8, 13, 32])
def test_sum8_follows_its_order(n: int) -> None:
    a, b = normal(11, 2, n), normal(12, 2, n)
    for row in range(2):
        plain, product = np.zeros(8, np.float32), np.zeros(8, np.float32)
        for k in range(n):
            plain[k % 8] += a[row, k]
            product[k % 8] = reference.fma(a[row, k], b[row, k], product[k % 8])
        for s, got in ((plain, reference.sum8(a)), (product, reference.sum8(a, b))):
            assert got[row] == ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]))


# --- Types, activation quantization, matmul ----------------------------------------------------------------------

TYPES = [GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0]
by_type = pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name.lower())


def encode(kind: GGMLQuantizationType, values: F32) -> Matrix:
    return Matrix(kind, np.ascontiguousarray(quants.quantize(values, kind)).view(np.uint8))


@by_type
def test_dequantize_equals_gguf(kind: GGMLQuantizationType) -> None:
    matrix = encode(kind, normal(20, 7, 96))
    np.testing.assert_array_equal(reference.dequantize(matrix), quants.dequantize(matrix.data, kind))


@pytest.mark.parametrize("kind", TYPES[2:], ids=lambda kind: kind.name.lower())
def test_dequantize_equals_gguf_for_any_bytes(kind: GGMLQuantizationType) -> None:
    matrix = encode(kind, normal(21, 50, 64))
    size = matrix.row_bytes // 2
    data = np.random.default_rng(22).integers(0, 256, matrix.data.shape, np.uint8)
    data[:, 1::size] &= 0xBF  # the scales' exponents: no infinity and no NaN
    np.testing.assert_array_equal(reference.dequantize(Matrix(kind, data)), quants.dequantize(data, kind))


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="q4_1"):
        reference.dequantize(Matrix(GGMLQuantizationType.Q4_1, np.zeros((1, 20), np.uint8)))


def test_embed_takes_rows() -> None:
    matrix = encode(GGMLQuantizationType.Q4_0, normal(23, 9, 64))
    np.testing.assert_array_equal(reference.embed(matrix, np.array([8, 0, 8], np.int32)), reference.dequantize(matrix)[[8, 0, 8]])


def test_quantized_activations_follow_the_rule() -> None:
    x = normal(24, 5, 96)
    x[1, 32:64] = 0
    x[2, :32] = 2.0**-101
    x[3, :32] = 2.0**-100
    x[4, :32] = np.arange(32) - 15.5  # halves
    x[4, 0] = 127
    q, d, sums = reference.quantize_activations(x)
    assert (q.dtype, d.dtype, sums.dtype) == (np.int8, np.float32, np.int32)
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


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_nonfinite_activation_names_its_row(value: float) -> None:
    x = normal(25, 4, 64)
    x[2, 40] = value
    with pytest.raises(NonFiniteError) as caught:
        reference.quantize_activations(x)
    assert caught.value.row == 2


@by_type
def test_matmul_is_close_to_the_product_in_float64(kind: GGMLQuantizationType) -> None:
    x, w = normal(26, 20, 512), encode(kind, normal(27, 80, 512))
    got = reference.matmul(x, w)
    seen = x.astype(np.float64)
    if kind in TYPES[2:]:
        q, d, _ = reference.quantize_activations(x)
        seen = q * np.repeat(d.astype(np.float64), 32, axis=1)
    want = seen @ reference.dequantize(w).T.astype(np.float64)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=0, atol=3e-6 * np.abs(want).max())


@by_type
def test_a_row_of_matmul_does_not_depend_on_the_others(kind: GGMLQuantizationType) -> None:
    x, w = normal(28, 9, 96), encode(kind, normal(29, 2500, 96))
    np.testing.assert_array_equal(reference.matmul(x, w)[4:5], reference.matmul(x[4:5], w))


@by_type
def test_matmul_names_the_row_that_overflows(kind: GGMLQuantizationType) -> None:
    x = normal(30, 3, 64)
    x[1] = np.float32(3e38)
    with pytest.raises(NonFiniteError) as caught:
        reference.matmul(x, encode(kind, np.full((5, 64), 2, np.float32)))
    assert caught.value.row == 1


# --- Elementwise -------------------------------------------------------------------------------------------------


def test_rms_norm_is_close_to_float64() -> None:
    x, w = normal(31, 6, 77) * np.float32(5), normal(32, 77)
    wide = x.astype(np.float64)
    want = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + 1e-5) * w
    np.testing.assert_allclose(reference.rms_norm(x, w, 1e-5), want, rtol=4e-7)


def test_exp_within_its_error_bound() -> None:
    x = np.linspace(-87.29, 88, 600_001).astype(np.float32)
    want = np.exp(x.astype(np.float64))
    unit = np.ldexp(1.0, np.frexp(want)[1] - 24)
    assert (np.abs(reference.exp(x) - want) / unit).max() < 0.85


def test_exp_at_its_limits() -> None:
    limit, floor = np.float32(88), np.float32(-87.3)
    inf = np.float32(np.inf)
    x = np.array([0, -0.0, limit, np.nextafter(limit, inf), floor, np.nextafter(floor, -inf), inf, -inf, np.nan], np.float32)
    y = reference.exp(x)
    np.testing.assert_array_equal(y[[0, 1, 3, 5, 6, 7, 8]], np.array([1, 1, np.inf, 0, np.inf, 0, np.nan], np.float32))
    assert np.isfinite(y[2])
    assert y[4] >= np.finfo(np.float32).tiny


def test_silu_mul_is_close_to_float64() -> None:
    gate = np.linspace(-100, 100, 20_001).astype(np.float32)
    up = normal(33, len(gate))
    wide = gate.astype(np.float64)
    want = wide / (1 + np.exp(-wide)) * up
    np.testing.assert_allclose(reference.silu_mul(gate, up), want, rtol=5e-7, atol=1e-35)


# --- Rotary positions --------------------------------------------------------------------------------------------


def test_rope_table_is_float64_sine_and_cosine_rounded_once() -> None:
    frequencies = np.random.default_rng(34).uniform(0, 1, 64)
    positions = np.concatenate([np.arange(500), np.random.default_rng(35).integers(0, 1 << 20, 2000)]).astype(np.int32)
    cosines, sines = reference.rope_table(frequencies, positions)
    angle = positions[:, None] * frequencies
    half_unit = 2.0**-25 + 1e-13
    assert np.abs(cosines - np.cos(angle)).max() <= half_unit
    assert np.abs(sines - np.sin(angle)).max() <= half_unit


def test_rope_table_scales_before_it_rounds() -> None:
    frequencies, positions = np.array([1.0, 0.1]), np.arange(50, dtype=np.int32)
    cosines, sines = reference.rope_table(frequencies, positions, 1.3)
    angle = positions[:, None] * frequencies
    assert np.abs(cosines - 1.3 * np.cos(angle)).max() <= 2.0**-24
    assert np.abs(sines - 1.3 * np.sin(angle)).max() <= 2.0**-24


@pytest.mark.parametrize("position", [-1, (1 << 20) + 1])
def test_rope_table_refuses_angles_out_of_range(position: int) -> None:
    with pytest.raises(InvalidArgumentError, match="angles"):
        reference.rope_table(np.array([1.0]), np.array([position], np.int32))


def test_rope_turns_adjacent_pairs() -> None:
    x = normal(36, 5, 3, 8)
    cosines, sines = reference.rope_table(np.array([1, 0.3, 0.1, 0.01]), np.arange(5, dtype=np.int32))
    turned = (x[..., 0::2] + 1j * x[..., 1::2].astype(np.complex128)) * (cosines + 1j * sines.astype(np.complex128))[:, None]
    y = reference.rope(x, cosines, sines)
    np.testing.assert_allclose(y[..., 0::2], turned.real, atol=1e-6)
    np.testing.assert_allclose(y[..., 1::2], turned.imag, atol=1e-6)
    np.testing.assert_array_equal(y[0], x[0])


# --- Attention ---------------------------------------------------------------------------------------------------


def softmax_attention(q: F32, k: F32, v: F32, first_position: int, window: int) -> NDArray[np.float64]:
    group = q.shape[1] // k.shape[1]
    keys, values = (a.astype(np.float64).repeat(group, axis=1) for a in (k, v))
    scores = np.einsum("thd,phd->htp", q.astype(np.float64), keys) / math.sqrt(q.shape[2])
    t, p = first_position + np.arange(len(q))[:, None], np.arange(len(k))
    seen = (p <= t) & ((p > t - window) | (window == 0))
    e = np.where(seen, np.exp(scores - scores.max(axis=-1, keepdims=True)), 0)
    return np.einsum("htp,phd->thd", e / e.sum(axis=-1, keepdims=True), values)


@pytest.mark.parametrize("window", [0, 1, 70, 128])
@pytest.mark.parametrize(("first_position", "n_tokens"), [(0, 1), (0, 150), (63, 3), (190, 12)])
def test_attention_is_close_to_softmax_in_float64(first_position: int, n_tokens: int, window: int) -> None:
    n_positions = first_position + n_tokens
    q, k, v = normal(40, n_tokens, 4, 16), normal(41, n_positions, 2, 16), normal(42, n_positions, 2, 16)
    got = reference.attention(q, k, v, first_position, window)
    np.testing.assert_allclose(got, softmax_attention(q, k, v, first_position, window), atol=2e-6)


def test_attention_follows_the_order_of_its_pages() -> None:
    q, k, v = normal(43, 1, 1, 8), normal(44, 150, 1, 8), normal(45, 150, 1, 8)
    fma, scale = reference.fma, np.float32(1 / math.sqrt(8))
    combined: tuple[np.float32, np.float32, F32] | None = None
    for begin, end in ((20, 64), (64, 128), (128, 150)):  # the window of 130 begins inside the first page
        s = np.zeros(end - begin, np.float32)
        for d in range(8):
            s = fma(q[0, 0, d] * scale, k[begin:end, 0, d], s)
        m = s.max()
        p = np.zeros(64, np.float32)
        p[begin % 64 : begin % 64 + len(s)] = reference.exp(s - m)
        o = np.zeros(8, np.float32)
        for j in range(begin, end):
            o = fma(p[j % 64], v[j, 0], o)
        if combined is None:
            combined = m, reference.sum8(p), o
            continue
        top = np.maximum(combined[0], m)
        a, b = reference.exp(np.array([combined[0] - top, m - top], np.float32))
        combined = top, fma(reference.sum8(p), b, combined[1] * a), fma(o, b, combined[2] * a)
    assert combined is not None
    want = combined[2] * (np.float32(1) / combined[1])
    np.testing.assert_array_equal(reference.attention(q, k, v, 149, 130)[0, 0], want)


@pytest.mark.parametrize("window", [0, 70])
def test_attention_does_not_depend_on_how_a_prompt_is_cut(window: int) -> None:
    q, k, v = normal(46, 140, 4, 8), normal(47, 140, 2, 8), normal(48, 140, 2, 8)
    whole = reference.attention(q, k, v, 0, window)
    np.testing.assert_array_equal(reference.attention(q[97:], k, v, 97, window), whole[97:])


def test_attention_never_touches_what_it_does_not_see() -> None:
    q, k, v = normal(49, 2, 2, 8), normal(50, 100, 2, 8), normal(51, 100, 2, 8)
    clean = reference.attention(q, k, v, 90, 20)
    for a in (k, v):
        a[:71] = np.nan
        a[92:] = np.nan
    np.testing.assert_array_equal(reference.attention(q, k, v, 90, 20), clean)


def test_a_cache_of_float16_rounds_and_refuses_overflow() -> None:
    x = normal(52, 3, 2, 8)
    stored = reference.round_to_cache(x, np.float16)
    assert stored.dtype == np.float16
    np.testing.assert_array_equal(stored, x.astype(np.float16))
    x[1, 0, 0] = 65520  # halfway between the largest float16 and the next, so that it rounds to infinity
    with pytest.raises(NonFiniteError) as caught:
        reference.round_to_cache(x, np.float16)
    assert caught.value.row == 1
    np.testing.assert_array_equal(reference.round_to_cache(x, np.float32), x)


# --- Router and experts ------------------------------------------------------------------------------------------


def test_route_is_a_renormalised_softmax() -> None:
    logits = normal(60, 50, 8) * np.float32(3)
    ids, weights = reference.route(logits, 3)
    probabilities = np.exp(logits.astype(np.float64))
    for t in range(50):
        best = sorted(np.argsort(logits[t])[-3:])
        assert ids[t].tolist() == best
        np.testing.assert_allclose(weights[t], probabilities[t, best] / probabilities[t, best].sum(), rtol=1e-6)


def test_route_breaks_ties_by_the_lower_index() -> None:
    logits = np.array([[1, 2, 2, 2], [0, 0, -0.0, 0], [5, 1, 1, 5]], np.float32)
    ids, weights = reference.route(logits, 2)
    assert ids.tolist() == [[1, 2], [0, 1], [0, 3]]
    np.testing.assert_array_equal(weights, np.full((3, 2), 0.5, np.float32))
    assert reference.route(logits, 3)[0].tolist() == [[1, 2, 3], [0, 1, 2], [0, 1, 3]]


def test_route_refuses_nan() -> None:
    with pytest.raises(NonFiniteError) as caught:
        reference.route(np.array([[0, 1], [np.nan, 1]], np.float32), 1)
    assert caught.value.row == 1


def test_experts_add_their_weighted_outputs() -> None:
    hidden, ffn, n_tokens = 32, 64, 9
    x, normed = normal(61, n_tokens, hidden), normal(62, n_tokens, hidden)
    arrays = [(normal(63 + e, ffn, hidden), normal(73 + e, ffn, hidden), normal(83 + e, hidden, ffn)) for e in range(4)]
    ids, weights = reference.route(normal(64, n_tokens, 4), 2)
    got = reference.experts(x, normed, ids, weights, [tuple(map(Matrix.from_float, arrays_of_one)) for arrays_of_one in arrays])  # type: ignore[misc]
    want = x.astype(np.float64)
    for t in range(n_tokens):
        for e, weight in zip(ids[t], weights[t], strict=True):
            gate, up, down = (a.astype(np.float64) for a in arrays[e])
            g = gate @ normed[t]
            want[t] += weight * (down @ (g / (1 + np.exp(-g)) * (up @ normed[t])))
    np.testing.assert_allclose(got, want, rtol=0, atol=3e-6 * np.abs(want).max())


def test_experts_name_the_row_of_the_batch() -> None:
    huge = Matrix.from_float(np.full((32, 32), 3e38, np.float32))
    plain = Matrix.from_float(normal(65, 32, 32))
    x = normal(66, 5, 32)
    ids, weights = np.array([[0], [0], [0], [1], [0]], np.int32), np.ones((5, 1), np.float32)
    with pytest.raises(NonFiniteError) as caught:
        reference.experts(x, x, ids, weights, [(plain, plain, plain), (huge, huge, huge)])
    assert caught.value.row == 3


# --- Model -------------------------------------------------------------------------------------------------------


def float32_model(config: dict[str, Any], tensors: dict[str, F32]) -> tuple[ModelWeights, ModelConfig]:
    """A Hugging Face checkpoint as float32 weights in GGUF's order."""
    n_heads, n_kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // n_heads
    n_experts = config.get("num_local_experts", 0)

    def matrix(name: str) -> Matrix:
        return Matrix.from_float(tensors[name])

    def adjacent(name: str, heads: int) -> Matrix:
        # Hugging Face rotates element i with i + head_dim/2; GGUF keeps the two side by side.
        halves = tensors[name].reshape(heads, 2, head_dim // 2, -1)
        return Matrix.from_float(np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(heads * head_dim, -1))

    layers = []
    for n in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{n}."
        attn, moe = prefix + "self_attn.", prefix + "block_sparse_moe."
        names = [f"{prefix}mlp.{part}_proj.weight" for part in ("gate", "up", "down")]
        experts = [(matrix(names[0]), matrix(names[1]), matrix(names[2]))] if n_experts == 0 else []
        for e in range(n_experts):
            gate, down, up = (matrix(f"{moe}experts.{e}.{part}.weight") for part in ("w1", "w2", "w3"))
            experts.append((gate, up, down))
        layers.append(
            LayerWeights(
                attn_norm=tensors[prefix + "input_layernorm.weight"],
                ffn_norm=tensors[prefix + "post_attention_layernorm.weight"],
                q=adjacent(attn + "q_proj.weight", n_heads),
                k=adjacent(attn + "k_proj.weight", n_kv_heads),
                v=matrix(attn + "v_proj.weight"),
                output=matrix(attn + "o_proj.weight"),
                router=matrix(moe + "gate.weight") if n_experts else None,
                experts=experts,
            )
        )
    weights = ModelWeights(
        embedding=matrix("model.embed_tokens.weight"),
        output_norm=tensors["model.norm.weight"],
        head=matrix("lm_head.weight"),
        layers=layers,
    )
    return weights, ModelConfig(
        name="test",
        n_vocab=config["vocab_size"],
        n_ctx_train=config["max_position_embeddings"],
        hidden=config["hidden_size"],
        n_layers=config["num_hidden_layers"],
        ffn=config["intermediate_size"],
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        n_experts=max(n_experts, 1),
        n_experts_used=config.get("num_experts_per_tok", 1),
        rms_eps=config["rms_norm_eps"],
        rope_base=config["rope_theta"],
        window=config["sliding_window"] or 0,
    )


def random_model(shape: Shape, seed: int) -> tuple[ModelWeights, ModelConfig]:
    return float32_model(config_json(shape), make_tensors(shape, seed=seed))


def largest_difference(name: str, weights: ModelWeights, config: ModelConfig, n_tokens: int | None = None) -> float:
    """Of the logits from Hugging Face's, relative to the largest logit, over the golden's rows among the first n_tokens (all if None)."""
    golden = np.load(GOLDENS / f"{name}.npz")
    tokens = golden["tokens"][:n_tokens]
    rows = golden["rows"][golden["rows"] < len(tokens)]
    logits = reference.logits(reference.forward(weights, config, tokens)[rows], weights, config)
    want = golden["logits"][: len(rows)]
    np.testing.assert_array_equal(want.argmax(axis=1), golden["argmax"][rows])
    return float(np.abs(logits - want).max() / np.abs(want).max())


@pytest.mark.parametrize("name", GOLDEN_MODELS)
def test_logits_of_random_models_are_those_of_hugging_face(name: str) -> None:
    shape, seed, _ = GOLDEN_MODELS[name]
    n_tokens = 97 if shape.window else 49  # past the window; a few rows of the golden
    assert largest_difference(name, *random_model(shape, seed), n_tokens) < 1e-4


def test_logits_of_tiny_mixtral_are_those_of_hugging_face() -> None:
    model = float32_model(json.loads((TINY_MIXTRAL / "config.json").read_text()), read_tensors(TINY_MIXTRAL))
    assert largest_difference("tiny-mixtral", *model, 17) < 1e-4


@pytest.mark.parametrize("n_experts", [4, 0])
@pytest.mark.parametrize("cache_dtype", [np.float32, np.float16])
def test_a_token_does_not_depend_on_what_follows(n_experts: int, cache_dtype: type) -> None:
    weights, config = random_model(Shape(n_vocab=64, n_experts=n_experts), 90)
    tokens = np.random.default_rng(91).integers(0, 64, 70).astype(np.int32)
    hidden = reference.forward(weights, config, tokens, cache_dtype)
    assert hidden.shape == (70, 64)
    assert hidden.dtype == np.float32
    np.testing.assert_array_equal(reference.forward(weights, config, tokens[:9], cache_dtype), hidden[:9])
    logits = reference.logits(hidden[-1:], weights, config)
    assert logits.shape == (1, 64)
    assert logits.std() > 0.3


def test_a_broken_embedding_is_found_in_its_row() -> None:
    weights, config = random_model(Shape(n_vocab=64), 92)
    weights.embedding.data.view(np.float32)[7, 3] = np.nan
    with pytest.raises(NonFiniteError) as caught:
        reference.forward(weights, config, [1, 2, 7, 3])
    assert caught.value.row == 2
