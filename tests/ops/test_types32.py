"""Weights in blocks of 32: the oracle against gguf.quants and exact arithmetic, and sums as large
as a kernel can meet.
"""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from numpy.typing import NDArray

from pymixtral import ops
from pymixtral.arrays import F32
from pymixtral.files.types import Matrix, block_bytes, block_weights
from pymixtral.reference import oracle
from support.exact import exact_fma
from support.variants import INTEGER_TYPES, SCALES, every_context, generator, matrix, normal

KINDS = [kind for kind in INTEGER_TYPES if block_weights(kind) == 32]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name.lower())


def pieces(w: Matrix) -> tuple[NDArray[np.float64], list[F32]]:
    """A matrix's integers [rows, cols], read by gguf with scales of 1 and minimums of 0, and its
    f16 numbers [rows, n_blocks].
    """
    size = block_bytes(w.type)
    data = w.data.reshape(w.rows, -1, size).copy()
    numbers = []
    for value, at in zip((1, 0), SCALES[w.type.name], strict=False):
        numbers.append(np.ascontiguousarray(data[..., at : at + 2]).view("<f2")[..., 0].astype(np.float32))
        data[..., at : at + 2] = np.array([value], "<f2").view(np.uint8)
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
    for value, at in zip((1, 0), SCALES[kind.name], strict=False):
        every_byte[:, at : at + 2] = np.array([value], "<f2").view(np.uint8)
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
