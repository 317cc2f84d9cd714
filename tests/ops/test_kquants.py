"""Blocks of 256: the oracle against gguf.quants and a second statement of its order, kernels where
their integers are largest, and a whole model that mixes types.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, quants

from pymixtral import ops
from pymixtral.arrays import F32
from pymixtral.files.gguf import GGUFFile
from pymixtral.files.types import Matrix, block_bytes
from pymixtral.model.config import ModelConfig
from pymixtral.model.forward import Model
from pymixtral.model.weights import load_weights
from pymixtral.reference import oracle
from pymixtral.reference.blocks import decode
from support.exact import exact_fma
from support.ggufs import finish
from support.variants import ISAS, SCALES, activations, every_context, generator, matrix, model_matrix, normal

Type = GGMLQuantizationType


@dataclass(frozen=True)
class Extremes:
    """The bytes of a block that are scales and minimums, and the ends of its integers, scales and
    minimums; a type without sub-blocks has no scales.
    """

    scales: slice
    q: tuple[int, int]
    sc: tuple[int, int] | None = None
    mins: tuple[int, int] | None = None


KQUANTS = {
    Type.Q2_K: Extremes(slice(0, 16), (0, 3), (0, 15), (0, 15)),
    Type.Q3_K: Extremes(slice(96, 108), (-4, 3), (-32, 31)),
    Type.Q4_K: Extremes(slice(4, 16), (0, 15), (0, 63), (0, 63)),
    Type.Q5_K: Extremes(slice(4, 16), (0, 31), (0, 63), (0, 63)),
    Type.Q6_K: Extremes(slice(192, 208), (-32, 31), (-128, 127)),
    Type.IQ4_XS: Extremes(slice(2, 8), (-127, 113), (-32, 31)),
    Type.TQ1_0: Extremes(slice(0), (-1, 1)),
    Type.TQ2_0: Extremes(slice(0), (-1, 2)),
}
every_kquant = pytest.mark.parametrize("kind", KQUANTS, ids=lambda kind: kind.name.lower())


# --- The oracle --------------------------------------------------------------------------------------------------


@every_kquant
def test_dequantize_equals_gguf_for_any_bytes(kind: Type) -> None:
    w = matrix(kind, 60, 768, 1)
    np.testing.assert_array_equal(oracle.dequantize(w), quants.dequantize(w.data, kind))


@every_kquant
def test_matmul_follows_its_order(kind: Type) -> None:
    x, w = activations(2, 3, 512), matrix(kind, 5, 512, 3)
    xq, dx, sums = oracle.quantize_activations(x, 256)
    blocks = decode(w)
    n_sub = 1 if blocks.sc is None else blocks.sc.shape[2]
    got = oracle.matmul(x, w)
    for t, r in np.ndindex(3, 5):
        acc = np.float32(0)
        for b in range(2):
            isum = msum = 0
            for j in range(n_sub):
                part = slice(j * 256 // n_sub, (j + 1) * 256 // n_sub)
                dot = sum(
                    a * c for a, c in zip(xq[t, 256 * b :][part].tolist(), blocks.q[r, b, part].tolist(), strict=True)
                )
                isum += dot if blocks.sc is None else int(blocks.sc[r, b, j]) * dot
                if blocks.mins is not None:
                    msum += int(blocks.mins[r, b, j]) * int(xq[t, 256 * b :][part].sum(dtype=np.int64))
            acc = exact_fma(blocks.d[r, b] * dx[t, b], np.float32(isum), acc)
            if blocks.m is not None:
                acc = exact_fma(-(blocks.m[r, b] * dx[t, b]), np.float32(msum), acc)
        assert got[t, r] == acc
    np.testing.assert_array_equal(sums, xq.reshape(3, 32, 16).sum(axis=2))


@every_kquant
def test_products_are_near_those_of_the_weights(kind: Type) -> None:
    x, w = normal(4, 7, 1024), model_matrix(kind, 30, 1024, 5)
    exact = x.astype(np.float64) @ quants.dequantize(w.data, kind).astype(np.float64).T
    assert np.abs(oracle.matmul(x, w) - exact).max() < 0.03 * np.abs(exact).max()


# --- Kernels -----------------------------------------------------------------------------------------------------


def extreme(kind: Type, q: int, scales: int, rows: int = 17, cols: int = 512) -> Matrix:
    """Every byte of the integers is q, every one of the scales and minimums `scales`; d and dmin
    are odd numbers of both signs.
    """
    data = np.full((rows, cols // 256, block_bytes(kind)), q, np.uint8)
    data[..., KQUANTS[kind].scales] = scales
    for at in SCALES[kind.name]:
        d = (generator(6, at).integers(-512, 512, (rows, cols // 256, 1)) * 2 + 1).astype(np.float16)
        data[..., at : at + 2] = d.view(np.uint8)
    return Matrix(kind, data.reshape(rows, -1))


BYTES = {
    Type.Q6_K: [(q, scales) for q in (0x00, 0xFF) for scales in (0x80, 0x7F)],
    Type.IQ4_XS: [(q, scales) for q in (0x00, 0xFF, 0xF0) for scales in (0x00, 0xFF)],
}
"""Bytes of integers and scales that give the ends of both; 0x00 and 0xff where nothing is said."""


@every_kquant
def test_the_bytes_give_the_ends(kind: Type) -> None:
    found = [decode(extreme(kind, *b)) for b in BYTES.get(kind, [(q, s) for q in (0, 255) for s in (0, 255)])]
    ends = KQUANTS[kind]
    assert (min(b.q.min() for b in found), max(b.q.max() for b in found)) == ends.q
    scales = [b.sc for b in found if b.sc is not None]
    assert ((min(s.min() for s in scales), max(s.max() for s in scales)) if scales else None) == ends.sc
    mins = [b.mins for b in found if b.mins is not None]
    assert ((min(m.min() for m in mins), max(m.max() for m in mins)) if mins else None) == ends.mins


def largest_activations(n: int) -> F32:
    """Rows whose quantized values are all 127 or -127: of one sign, alternating by 1, 2, 4, 16 and
    32 elements, and at random.
    """
    k = np.arange(n)
    rows = [
        np.ones(n),
        -np.ones(n),
        *(1 - 2 * (k // step % 2) for step in (1, 2, 4, 16, 32)),
        generator(7).choice([-1, 1], n),
    ]
    return np.array(rows, np.float32)


@every_context
@every_kquant
def test_no_integer_overflows(ctx: ops.Context, kind: Type) -> None:
    x = largest_activations(512)
    assert np.all(np.abs(oracle.quantize_activations(x, 256)[0]) == 127)
    for q, scales in BYTES.get(kind, [(q, s) for q in (0, 255) for s in (0, 255)]):
        w = extreme(kind, q, scales)
        want = oracle.matmul(x, w)
        np.testing.assert_array_equal(ops.matmul(ctx, x, w), want)
        for t in range(len(x)):
            np.testing.assert_array_equal(ops.matmul(ctx, x[t : t + 1], w)[0], want[t])


@every_context
def test_every_byte_as_digits(ctx: ops.Context) -> None:
    """All bytes at every place of tq1_0, also those that no quantizer writes: whose multiples of 3
    are near the ends of a digit.
    """
    w = extreme(Type.TQ1_0, 0, 0, rows=256)
    w.data.reshape(256, 2, -1)[..., :52] = (np.arange(256)[:, None, None] + np.arange(52)).astype(np.uint8)
    x = activations(10, 9, 512)
    want = oracle.matmul(x, w)
    for n in (1, 3, 9):
        np.testing.assert_array_equal(ops.matmul(ctx, x[:n], w), want[:n])
    np.testing.assert_array_equal(oracle.dequantize(w), quants.dequantize(w.data, w.type))


@every_context
@every_kquant
def test_scales_of_zero_and_subnormal_ones(ctx: ops.Context, kind: Type) -> None:
    w = matrix(kind, 21, 768, 8)
    values = np.array([0, -0.0, 6e-8, -6e-8, 6e-5, 1, -65504], np.float16)
    for shift, at in enumerate(SCALES[kind.name]):
        blocks = w.data.reshape(21, 3, -1)
        blocks[..., at : at + 2] = np.roll(values, shift).repeat(3)[:, None, None].view(np.uint8)
    x = normal(9, 9, 768)
    want = oracle.matmul(x, w)
    for n in (1, 3, 9):
        np.testing.assert_array_equal(ops.matmul(ctx, x[:n], w), want[:n])
    ids = np.arange(21, dtype=np.int32)
    np.testing.assert_array_equal(ops.embed(ctx, w, ids), quants.dequantize(w.data, kind))


# --- A whole model -----------------------------------------------------------------------------------------------

CONFIG = ModelConfig(
    name="mixed",
    n_vocab=300,
    n_ctx_train=256,
    hidden=256,
    n_layers=2,
    ffn=512,
    n_heads=4,
    n_kv_heads=2,
    head_dim=64,
    n_experts=4,
    n_experts_used=2,
    rms_eps=1e-5,
    rope_base=1e6,
    window=0,
)


def mixed_model(path: Path) -> None:
    """CONFIG's tensors in a file: q4_k with q6_k where it matters, q8_0 and f32 as mixes have them,
    and experts of every other type.
    """
    c = CONFIG
    writer = GGUFWriter(path, "llama")

    def add(name: str, kind: Type, rows: int, cols: int) -> None:
        w = model_matrix(kind, rows, cols, sum(name.encode()))
        writer.add_tensor(f"{name}.weight", w.data.view(np.float32) if kind == Type.F32 else w.data, raw_dtype=kind)

    def norm(name: str, seed: int) -> None:
        writer.add_tensor(f"{name}.weight", 1 + normal(seed, c.hidden) / np.float32(8))

    gates = [Type.Q4_K, Type.Q2_K, Type.Q5_K, Type.Q8_0]
    ups = [Type.Q4_K, Type.Q3_K, Type.IQ4_XS, Type.Q4_K]
    downs = [Type.Q6_K, Type.Q4_K, Type.Q8_0, Type.Q3_K]
    add("token_embd", Type.Q4_K, c.n_vocab, c.hidden)
    add("output", Type.Q6_K, c.n_vocab, c.hidden)
    norm("output_norm", 10)
    for i in range(c.n_layers):
        add(f"blk.{i}.attn_q", Type.Q4_K, c.n_heads * c.head_dim, c.hidden)
        add(f"blk.{i}.attn_k", Type.Q8_0, c.n_kv_heads * c.head_dim, c.hidden)
        add(f"blk.{i}.attn_v", Type.Q6_K, c.n_kv_heads * c.head_dim, c.hidden)
        add(f"blk.{i}.attn_output", Type.Q4_K, c.hidden, c.n_heads * c.head_dim)
        add(f"blk.{i}.ffn_gate_inp", Type.F32, c.n_experts, c.hidden)
        norm(f"blk.{i}.attn_norm", 11 + i)
        norm(f"blk.{i}.ffn_norm", 13 + i)
        for e in range(c.n_experts):
            add(f"blk.{i}.ffn_gate.{e}", gates[e - i], c.ffn, c.hidden)
            add(f"blk.{i}.ffn_up.{e}", ups[e - i], c.ffn, c.hidden)
            add(f"blk.{i}.ffn_down.{e}", downs[e - i], c.hidden, c.ffn)
    finish(writer)


def test_a_model_of_mixed_types(tmp_path: Path) -> None:
    mixed_model(tmp_path / "mixed.gguf")
    with GGUFFile(tmp_path / "mixed.gguf") as file:
        weights = load_weights(file, CONFIG)
    tokens = generator(15).integers(0, CONFIG.n_vocab, 70).astype(np.int32)
    want = oracle.forward(weights, CONFIG, tokens)
    assert 0.1 < np.abs(want).max() < 1e4
    want_logits = oracle.logits(want, weights, CONFIG)
    for isa in ISAS:
        model = Model(weights, CONFIG, n_threads=2, isa=isa)
        for pieces in ([70], [1, 2, 3, 64], [66, 1, 1, 1, 1]):
            cache = model.new_cache(len(tokens), "f32")
            sequence = cache.new_sequence()
            ends = np.cumsum(pieces)
            rows = [
                model.forward(tokens[end - n : end], [(sequence, n)], cache)
                for n, end in zip(pieces, ends, strict=True)
            ]
            np.testing.assert_array_equal(np.concatenate(rows), want)
        np.testing.assert_array_equal(model.logits(want), want_logits)
        model.close()
