"""Matrix products, activation quantization, embedding rows and the encoders: every kernel equals the oracle."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from pymixtral import ops
from pymixtral.errors import InvalidArgumentError
from pymixtral.files.types import Matrix, block_weights
from pymixtral.reference import oracle
from support.variants import (
    F32,
    FIRST_CONTEXT,
    INTEGER_TYPES,
    SCALES,
    TYPES,
    activations,
    every_context,
    every_type,
    generator,
    matrix,
    normal,
    row_of,
)

COLS = {1: (1, 7, 8, 9, 31, 67), 32: (32, 64, 96, 224), 256: (256, 512, 768)}
LONG = {1: (2001,), 32: (1024, 1056, 2080), 256: (1024, 1280, 2304)}
"""Columns beyond one strip of any kernel."""


@cache
def product(
    kind: GGMLQuantizationType, n_tokens: int, rows: int, cols: int, fill: int | None = None
) -> tuple[F32, Matrix, F32]:
    """Activations, weights and what the oracle makes of them."""
    x, w = activations(cols, n_tokens, cols), matrix(kind, rows, cols, cols, fill=fill)
    return x, w, oracle.matmul(x, w)


# --- matmul ------------------------------------------------------------------------------------------------------


@every_context
@every_type
def test_odd_sizes(ctx: ops.Context, kind: GGMLQuantizationType) -> None:
    for cols in COLS[block_weights(kind)]:
        x, w, want = product(kind, 10, 65, cols)
        for rows in (1, 7, 8, 9, 16, 17, 33, 65):
            part = Matrix(kind, w.data[:rows])
            for n in range(1, 10):
                np.testing.assert_array_equal(ops.matmul(ctx, x[10 - n :], part), want[10 - n :, :rows])


@every_context
@pytest.mark.parametrize(
    "kind", [kind for kind in TYPES if block_weights(kind) == 32], ids=lambda kind: kind.name.lower()
)
def test_few_tokens(ctx: ops.Context, kind: GGMLQuantizationType) -> None:
    """Every number of tokens to beyond PMX_FEW_TOKENS, and rows that end within every register of blocks."""
    for cols in (32, 160, 192, 224, 384):
        x, w, want = product(kind, 18, 19, cols)
        for n in range(1, 19):
            np.testing.assert_array_equal(ops.matmul(ctx, x[18 - n :], w), want[18 - n :])


@every_context
@every_type
def test_two_planes(ctx: ops.Context, kind: GGMLQuantizationType) -> None:
    cols = COLS[block_weights(kind)][-1]
    x, w = activations(cols, 300, cols), matrix(kind, 73, cols, cols)
    want = two_planes(kind)
    ctx.planes = 2
    try:
        for n in (1, 2, 3, 9, 127, 128, 129, 300):
            np.testing.assert_array_equal(ops.matmul(ctx, x[300 - n :], w), want[300 - n :])
    finally:
        ctx.planes = 1
    np.testing.assert_array_equal(ops.matmul(ctx, x[:3], w), oracle.matmul(x[:3], w))


@cache
def two_planes(kind: GGMLQuantizationType) -> F32:
    cols = COLS[block_weights(kind)][-1]
    return oracle.matmul(activations(cols, 300, cols), matrix(kind, 73, cols, cols), 2)


@every_context
@every_type
def test_blocks_of_tokens(ctx: ops.Context, kind: GGMLQuantizationType) -> None:
    x, w, want = product(kind, 514, 130, COLS[block_weights(kind)][1])
    for n in (127, 130, 255, 256, 257, 258, 514):
        np.testing.assert_array_equal(ops.matmul(ctx, x[:n], w), want[:n])


@every_context
@every_type
def test_long_rows(ctx: ops.Context, kind: GGMLQuantizationType) -> None:
    for cols in LONG[block_weights(kind)]:
        x, w, want = product(kind, 12, 19, cols)
        for n in (1, 6, 12):
            np.testing.assert_array_equal(ops.matmul(ctx, x[:n], w), want[:n])


@pytest.mark.parametrize("isa", ops.available_isas())
@every_type
def test_no_bit_depends_on_the_prefetch_hint(isa: str, kind: GGMLQuantizationType) -> None:
    x, w, want = product(kind, 12, 19, LONG[block_weights(kind)][-1])
    with ops.Context(2, isa) as ctx:
        for hint, ahead in (("near", 0), ("far", 8192), ("near", 1 << 20)):
            ctx.prefetch = f"{hint}:{ahead}"
            for n in (1, 2, 3, 5, 12):
                np.testing.assert_array_equal(ops.matmul(ctx, x[:n], w), want[:n])


@every_context
@pytest.mark.parametrize(
    "kind", [kind for kind in INTEGER_TYPES if block_weights(kind) == 256], ids=lambda k: k.name.lower()
)
def test_one_token_of_very_long_rows(ctx: ops.Context, kind: GGMLQuantizationType) -> None:
    x, w, want = product(kind, 1, 11, 16384 + 3 * 256)
    np.testing.assert_array_equal(ops.matmul(ctx, x, w), want)


@every_context
@pytest.mark.parametrize("kind", INTEGER_TYPES, ids=lambda kind: kind.name.lower())
def test_the_largest_integers(ctx: ops.Context, kind: GGMLQuantizationType) -> None:
    for fill in (0x00, 0x0F, 0x7F, 0x80, 0xF0, 0xFF):  # -128 of q8_0, both ends of every nibble and of every scale
        x, w, want = product(kind, 12, 17, 512, fill)
        for n in (1, 6, 12):
            np.testing.assert_array_equal(ops.matmul(ctx, x[:n], w), want[:n])


@every_context
@every_type
def test_no_tokens_give_no_rows(ctx: ops.Context, kind: GGMLQuantizationType) -> None:
    w = matrix(kind, 5, 256, 1)
    assert ops.matmul(ctx, np.empty((0, 256), np.float32), w).shape == (0, 5)
    assert ops.embed(ctx, w, np.empty(0, np.int32)).shape == (0, 256)


@every_context
@every_type
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_nonfinite_activation_names_its_row(ctx: ops.Context, kind: GGMLQuantizationType, value: float) -> None:
    x, w = normal(1, 9, 256), matrix(kind, 20, 256, 2)
    w.data[:, -1] |= 1  # no weight that meets the last activation is zero
    x[4, 255] = x[7, 0] = value
    for first in (0, 4):  # the matrix kernel, and one token alone
        assert row_of(ops.matmul, ctx, x[first : first + 5], w) == 4 - first


@every_context
@pytest.mark.parametrize("kind", [kind for kind in TYPES if SCALES.get(kind.name)], ids=lambda kind: kind.name.lower())
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_nonfinite_scale_is_found(ctx: ops.Context, kind: GGMLQuantizationType, value: float) -> None:
    for at in SCALES[kind.name]:
        w = matrix(kind, 20, 512, 3)
        block = w.data[11].reshape(512 // block_weights(kind), -1)[-1]
        block[at : at + 2] = np.array([value], np.float16).view(np.uint8)
        x = normal(4, 9, 512)
        for n in (1, 9):
            assert row_of(ops.matmul, ctx, x[:n], w) == row_of(oracle.matmul, x[:n], w) == 0
        assert row_of(ops.embed, ctx, w, np.array([0, 11, 3], np.int32)) == 1


@every_context
@every_type
def test_a_product_that_overflows_names_its_row(ctx: ops.Context, kind: GGMLQuantizationType) -> None:
    w = matrix(kind, 20, 256, 5, fill=0x77 if kind == GGMLQuantizationType.MXFP4 else 0x7F)  # 7: 12, 15: -12
    if block_weights(kind) == 1:
        w = Matrix(kind, np.full_like(w.data, 0x44))  # 784 or about 4
    for at in SCALES.get(kind.name, []):
        w.data.reshape(20, 256 // block_weights(kind), -1)[..., at : at + 2] = np.array([60000], np.float16).view(
            np.uint8
        )
    x = normal(6, 6, 256)
    x[3] = 3e38
    assert row_of(ops.matmul, ctx, x, w) == row_of(oracle.matmul, x, w) == 3
    assert row_of(ops.matmul, ctx, x[3:4], w) == 0


# --- Activation quantization -------------------------------------------------------------------------------------


@every_context
@pytest.mark.parametrize(("n", "block"), [(32, 32), (64, 32), (96, 32), (1056, 32), (256, 256), (768, 256)])
def test_quantized_activations(ctx: ops.Context, n: int, block: int) -> None:
    x = activations(n, 60, n)
    got, want = ops.quantize_activations(ctx, x, block), oracle.quantize_activations(x, block)
    assert [a.dtype for a in got] == [a.dtype for a in want]
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


@every_context
@pytest.mark.parametrize("block", [32, 256])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_quantized_activations_name_the_row(ctx: ops.Context, block: int, value: float) -> None:
    for at in range(0, 512, 13):
        x = normal(7, 40, 512)
        x[31, at] = x[38, 0] = value
        assert row_of(ops.quantize_activations, ctx, x, block) == 31


def test_quantized_activations_want_whole_blocks() -> None:
    for block, n in ((32, 31), (32, 33), (256, 128), (64, 64)):
        with pytest.raises(InvalidArgumentError):
            ops.quantize_activations(FIRST_CONTEXT, np.zeros((1, n), np.float32), block)


# --- embed -------------------------------------------------------------------------------------------------------


@every_context
@every_type
def test_embedding_rows(ctx: ops.Context, kind: GGMLQuantizationType) -> None:
    for cols in COLS[block_weights(kind)]:
        w = matrix(kind, 50, cols, cols)
        for ids in ([49], [0, 49, 0, 7], generator(8).integers(0, 50, 300).tolist()):
            array = np.array(ids, np.int32)
            np.testing.assert_array_equal(ops.embed(ctx, w, array), oracle.embed(w, array))


@every_context
def test_embed_refuses_ids_outside_the_matrix(ctx: ops.Context) -> None:
    w = matrix(GGMLQuantizationType.Q4_0, 9, 32, 9)
    for bad in (-1, 9, -(1 << 31), (1 << 31) - 1):
        with pytest.raises(InvalidArgumentError, match=rf"^ids\[1\]: expected .* found {bad}$"):
            ops.embed(ctx, w, np.array([8, bad], np.int32))
