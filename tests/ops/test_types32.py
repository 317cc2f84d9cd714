"""Weights in blocks of 32: the oracle against gguf.quants and exact arithmetic, and sums as large
as a kernel can meet.
"""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from numpy.typing import NDArray

from pymixtral import ops
from pymixtral.arrays import F32, U8
from pymixtral.files.types import Matrix, block_bytes, block_weights
from pymixtral.reference import oracle
from support.exact import exact_fma
from support.variants import INTEGER_TYPES, SCALES, every_context, generator, matrix, normal, row_of

KINDS = [kind for kind in INTEGER_TYPES if block_weights(kind) == 32]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name.lower())


def set_units(kind: GGMLQuantizationType, blocks: U8) -> None:
    """Scales of 1 and minimums of 0, into blocks [..., block bytes]."""
    for value, at in zip((1, 0), SCALES[kind.name], strict=False):
        blocks[..., at : at + 2] = np.array([value], "<f2").view(np.uint8)
    if kind == GGMLQuantizationType.MXFP4:
        blocks[..., 0] = 128


def pieces(w: Matrix) -> tuple[NDArray[np.float64], list[F32]]:
    """A matrix's integers [rows, cols], read by gguf with scales of 1 and minimums of 0, and its
    scales and minimums [rows, n_blocks].
    """
    size = block_bytes(w.type)
    data = w.data.reshape(w.rows, -1, size).copy()
    numbers = [
        np.ascontiguousarray(data[..., at : at + 2]).view("<f2")[..., 0].astype(np.float32)
        for at in SCALES[w.type.name]
    ]
    if w.type == GGMLQuantizationType.MXFP4:
        numbers = [np.ldexp(1.0, data[..., 0].astype(np.int32) - 128).astype(np.float32)]
    set_units(w.type, data)
    return quants.dequantize(data.reshape(w.rows, -1), w.type).astype(np.float64), numbers


@every_kind
def test_dequantize_equals_gguf_for_any_bytes(kind: GGMLQuantizationType) -> None:
    w = matrix(kind, 200, 320, 1)
    np.testing.assert_array_equal(oracle.dequantize(w), quants.dequantize(w.data, kind))


@every_kind
def test_the_oracle_multiplies_in_the_order_of_the_contract(kind: GGMLQuantizationType) -> None:
    x, w = normal(2, 3, 96), matrix(kind, 12, 96, 3)
    q, dx, sums = oracle.quantize_activations(x)
    integers, numbers = pieces(w)
    got = oracle.matmul(x, w)
    for t in range(3):
        for r in range(12):
            acc = np.float32(0)
            for b in range(3):
                block = slice(32 * b, 32 * b + 32)
                acc = exact_fma(numbers[0][r, b] * dx[t, b], integers[r, block] @ q[t, block].astype(np.float64), acc)
                if len(numbers) > 1:
                    acc = exact_fma(numbers[1][r, b], dx[t, b] * np.float32(sums[t, b]), acc)
            assert got[t, r] == acc


@every_context
@every_kind
def test_sums_as_large_as_they_get(ctx: ops.Context, kind: GGMLQuantizationType) -> None:
    """Activations of 127 and -127 in every pattern of 8, each with the weights that make its dot
    product largest and smallest.
    """
    size = block_bytes(kind)
    every_byte = np.repeat(np.arange(256, dtype=np.uint8), size).reshape(256, size)
    set_units(kind, every_byte)
    values = quants.dequantize(every_byte, kind)
    lowest, highest = every_byte[values.max(axis=1).argmin()], every_byte[values.min(axis=1).argmax()]
    patterns = (np.arange(256)[:, None] >> np.arange(8) & 1).astype(bool)
    up = np.concatenate([np.tile(patterns, 4), np.repeat(patterns[generator(4).permutation(256)], 4, axis=1)])
    x = np.where(up, np.float32(127), np.float32(-127))
    w = Matrix(kind, np.concatenate([blend(kind, up, highest, lowest), blend(kind, ~up, highest, lowest)]))
    got = ops.matmul(ctx, x, w)
    integers = quants.dequantize(w.data, kind).astype(np.float64)
    np.testing.assert_array_equal(got, x.astype(np.float64) @ integers.T)
    np.testing.assert_array_equal(got[:3], ops.matmul(ctx, x[:3], w))
    one = np.concatenate([ops.matmul(ctx, row[None], w) for row in x[::37]])
    np.testing.assert_array_equal(one, got[::37])


def blend(
    kind: GGMLQuantizationType, up: NDArray[np.bool_], highest: NDArray[np.uint8], lowest: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """One block a row: element i has the code of `highest` where up[row, i], else of `lowest`."""
    if kind == GGMLQuantizationType.Q8_0:
        mask = np.where(up, 255, 0).astype(np.uint8)
    else:
        mask = np.where(up[:, :16], 15, 0).astype(np.uint8) | np.where(up[:, 16:], 240, 0).astype(np.uint8)
        if kind in (GGMLQuantizationType.Q5_0, GGMLQuantizationType.Q5_1):
            mask = np.concatenate([np.packbits(up, axis=1, bitorder="little"), mask], axis=1)
    mask = np.pad(mask, ((0, 0), (len(highest) - mask.shape[1], 0)))
    return (highest & mask) | (lowest & ~mask)


@every_context
def test_scales_of_every_exponent(ctx: ops.Context) -> None:
    """All bytes that a scale of mxfp4 can be, the subnormal ones and 2^127 too: a row for each."""
    w = matrix(GGMLQuantizationType.MXFP4, 256, 224, 5)
    w.data[:, 0::17] = np.arange(256)[:, None]
    x = normal(6, 11, 224) * np.ldexp(1, np.arange(-40, -7, 3))[:, None].astype(np.float32)
    want = oracle.matmul(x, w)
    assert np.all(np.any(want != 0, axis=0))
    for n in (1, 2, 3, 11):
        np.testing.assert_array_equal(ops.matmul(ctx, x[:n], w), want[:n])
    ids = np.arange(252, dtype=np.int32)
    np.testing.assert_array_equal(ops.embed(ctx, w, ids), quants.dequantize(w.data[:252], w.type))
    w.data[255, 1] = 7  # 12 times 2^127
    assert row_of(ops.embed, ctx, w, np.array([3, 0, 255], np.int32)) == 2
    assert row_of(ops.matmul, ctx, np.full((2, 224), 1e3, np.float32), w) == 0
