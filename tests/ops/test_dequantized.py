"""Weight types that are dequantized first: values of gguf.quants to the bit, products as of f32."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from pymixtral import ops
from pymixtral.files.types import DEQUANTIZED_TYPES, Matrix, block_weights
from pymixtral.reference import oracle
from support.variants import (
    CONTEXTS,
    FIRST_CONTEXT,
    activations,
    every_context,
    generator,
    matrix,
    row_of,
    set_iq1_m_scales,
)

every_kind = pytest.mark.parametrize("kind", DEQUANTIZED_TYPES, ids=lambda kind: kind.name.lower())


@every_context
@every_kind
def test_values_are_those_of_gguf_for_any_valid_blocks(ctx: ops.Context, kind: GGMLQuantizationType) -> None:
    w = matrix(kind, 600, 4 * block_weights(kind), 1)
    want = quants.dequantize(w.data, kind)
    got = ops.embed(ctx, w, np.arange(600, dtype=np.int32))
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got.view(np.uint32) & 0x7FFFFFFF, want.view(np.uint32) & 0x7FFFFFFF)
    np.testing.assert_array_equal(got, want)


def test_every_entry_of_every_table_is_met() -> None:
    """All bytes equal, then all 16-bit words: with random blocks, this reads every index that a
    code can name.
    """
    for kind in DEQUANTIZED_TYPES:
        w = matrix(kind, 256, block_weights(kind), 2)
        body = w.data.copy()
        words = generator(3).permutation(1 << 16).astype(np.uint16).view(np.uint8)
        n = body.shape[1] - 2
        count = len(words) // n
        body = np.concatenate([body[i % 256 : i % 256 + 1] for i in range(count)])
        body[:, 2 : 2 + n] = words[: n * count].reshape(count, n)
        if kind == GGMLQuantizationType.IQ1_M:
            set_iq1_m_scales(body, np.full(len(body), 0x3C00, np.uint16))
        got = ops.embed(FIRST_CONTEXT, Matrix(kind, body), np.arange(len(body), dtype=np.int32))
        np.testing.assert_array_equal(got, quants.dequantize(body, kind))


@every_context
@every_kind
def test_products_are_those_of_the_values_as_f32(ctx: ops.Context, kind: GGMLQuantizationType) -> None:
    x, w = activations(4, 9, 512), matrix(kind, 75, 512, 5)
    f32 = Matrix.from_float(quants.dequantize(w.data, kind))
    for n in (1, 2, 9):
        np.testing.assert_array_equal(ops.matmul(ctx, x[:n], w), ops.matmul(ctx, x[:n], f32))
    np.testing.assert_array_equal(ops.matmul(ctx, x, w), oracle.matmul(x, w))


def test_rows_longer_than_a_kernels_scratch() -> None:
    kind, cols = GGMLQuantizationType.IQ1_S, 32768
    x, w = activations(6, 5, cols), matrix(kind, 3, cols, 7)
    want = oracle.matmul(x, w)
    for ctx in CONTEXTS.values():
        np.testing.assert_array_equal(ops.matmul(ctx, x, w), want)


@every_kind
def test_a_scale_that_is_not_finite_is_found(kind: GGMLQuantizationType) -> None:
    w = matrix(kind, 20, 512, 8)
    block = w.data[11].reshape(512 // block_weights(kind), -1)[-1:]
    infinity = np.array([np.inf], np.float16)
    if kind == GGMLQuantizationType.IQ1_M:
        set_iq1_m_scales(block, infinity.view(np.uint16))
    else:
        block[0, :2] = infinity.view(np.uint8)
    assert row_of(ops.embed, FIRST_CONTEXT, w, np.array([0, 11, 3], np.int32)) == 1
    assert row_of(ops.matmul, FIRST_CONTEXT, activations(9, 4, 512), w) == 0
