"""Types whose blocks are entries of tables: values of gguf.quants to the bit, tables that are the
package's, kernels where their integers are largest.
"""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from numpy.typing import NDArray

from pymixtral import ops
from pymixtral.arrays import F32, U8
from pymixtral.files.types import Matrix, block_bytes
from pymixtral.reference import oracle
from pymixtral.reference.blocks import decode
from support.paths import CSRC
from support.variants import (
    FIRST_CONTEXT,
    activations,
    every_context,
    generator,
    matrix,
    normal,
    row_of,
    set_iq1_m_scales,
)

Type = GGMLQuantizationType

LARGEST = {
    Type.IQ1_S: (9, 15),
    Type.IQ1_M: (9, 15),
    Type.IQ2_XXS: (43, 31),
    Type.IQ2_XS: (43, 31),
    Type.IQ2_S: (43, 31),
    Type.IQ3_XXS: (62, 31),
    Type.IQ3_S: (15, 31),
}
"""The largest magnitudes of integers and scales."""
every_lattice = pytest.mark.parametrize("kind", LARGEST, ids=lambda kind: kind.name.lower())


def set_scales(kind: Type, blocks: U8, scales: NDArray[np.float16]) -> None:
    """Writes f16 numbers [...] into blocks [..., bytes]."""
    if kind == Type.IQ1_M:
        set_iq1_m_scales(blocks, scales.view(np.uint16))
    else:
        blocks[..., :2] = scales[..., None].view(np.uint8)


def every_entry(kind: Type) -> Matrix:
    """All 16-bit words in turn beside a scale of 1, in rows of one block: with them every index
    that a code can name is met, and every byte of signs.
    """
    n = block_bytes(kind) - 2
    words = generator(3).permutation(1 << 16).astype(np.uint16).view(np.uint8)
    data = np.empty((len(words) // n, n + 2), np.uint8)
    data[:, -2:] = 0
    body = data[:, :n] if kind == Type.IQ1_M else data[:, 2:]
    body[...] = words[: body.size].reshape(-1, n)
    set_scales(kind, data, np.ones(len(data), np.float16))
    return Matrix(kind, data)


def largest(kind: Type) -> Matrix:
    """Rows of two blocks, each of them one row of every_entry: those with the largest sums of
    magnitudes in a sub-block, before and after scaling, and those with the largest single ones.
    """
    every = every_entry(kind)
    blocks = decode(every)
    assert blocks.sc is not None
    n_sub = blocks.sc.shape[2]
    sums = np.abs(blocks.q).reshape(len(blocks.q), n_sub, -1).sum(axis=2)
    best = [np.argsort(by.max(axis=1))[-9:] for by in (sums, sums * blocks.sc[:, 0], np.abs(blocks.q[:, 0]))]
    return Matrix(kind, np.concatenate([every.data[i] for i in best]).repeat(2, axis=0).reshape(27, -1))


def filled(kind: Type) -> Matrix:
    """Rows whose bits are all zero, and all one but for the scale, which is 1: entries at the ends of
    the tables with all signs the same, and the largest scales.
    """
    data = np.array([0x00, 0xFF], np.uint8)[:, None].repeat(2 * block_bytes(kind), axis=1)
    set_scales(kind, data.reshape(2, 2, -1), np.ones((2, 2), np.float16))
    return Matrix(kind, data)


# --- Values --------------------------------------------------------------------------------------


@every_context
@every_lattice
def test_values_are_those_of_gguf(ctx: ops.Context, kind: Type) -> None:
    for w in (matrix(kind, 600, 512, 1), every_entry(kind)):
        want = quants.dequantize(w.data, kind)
        got = ops.embed(ctx, w, np.arange(w.rows, dtype=np.int32))
        np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))
        np.testing.assert_array_equal(oracle.dequantize(w), want)


@every_lattice
def test_integers_and_scales_have_the_ends_that_bounds_count_on(kind: Type) -> None:
    blocks = decode(every_entry(kind))
    assert blocks.sc is not None
    assert (int(blocks.q.max()), -int(blocks.q.min()), int(blocks.sc.max())) == (LARGEST[kind][0], *LARGEST[kind])
    assert int(blocks.sc.min()) == 1


def test_the_tables_are_those_of_the_package() -> None:
    kernels = CSRC / "kernels"
    made = subprocess.run(
        [sys.executable, kernels / "make_lattices.py"], capture_output=True, text=True, check=True
    ).stdout
    assert made == (kernels / "lattices.c").read_text()


# --- Products ------------------------------------------------------------------------------------


@every_context
@every_lattice
def test_every_entry_is_multiplied(ctx: ops.Context, kind: Type) -> None:
    x, w = activations(2, 11, 256), every_entry(kind)
    want = oracle.matmul(x, w)
    np.testing.assert_array_equal(ops.matmul(ctx, x, w), want)
    for n in (1, 3):
        np.testing.assert_array_equal(ops.matmul(ctx, x[:n], w), want[:n])


def towards(w: Matrix) -> F32:
    """Rows of activations that quantize to 127 and -127: by the signs of each row of weights, and
    against them, then all of one sign.
    """
    signs = np.sign(oracle.dequantize(w))
    return np.concatenate([signs, -signs, np.ones((1, w.cols)), -np.ones((1, w.cols))]).astype(np.float32)


@every_context
@every_lattice
def test_no_integer_overflows(ctx: ops.Context, kind: Type) -> None:
    for w in (largest(kind), filled(kind)):
        x = towards(w)
        assert np.all(np.abs(oracle.quantize_activations(x, 256)[0]) == 127)
        want = oracle.matmul(x, w)
        np.testing.assert_array_equal(ops.matmul(ctx, x, w), want)
        for t in range(len(x)):
            np.testing.assert_array_equal(ops.matmul(ctx, x[t : t + 1], w)[0], want[t])


@every_context
@every_lattice
def test_scales_of_zero_and_subnormal_ones(ctx: ops.Context, kind: Type) -> None:
    w = matrix(kind, 21, 768, 8)
    values = np.array([0, -0.0, 6e-8, -6e-8, 6e-5, 1, -65504], np.float16)
    set_scales(kind, w.data.reshape(21, 3, -1), values.repeat(9).reshape(21, 3))
    x = normal(9, 9, 768)
    want = oracle.matmul(x, w)
    for n in (1, 3, 9):
        np.testing.assert_array_equal(ops.matmul(ctx, x[:n], w), want[:n])
    np.testing.assert_array_equal(ops.embed(ctx, w, np.arange(21, dtype=np.int32)), quants.dequantize(w.data, kind))


@every_lattice
def test_a_scale_that_is_not_finite_is_found(kind: Type) -> None:
    w = matrix(kind, 20, 512, 8)
    set_scales(kind, w.data[11].reshape(2, -1)[-1], np.array(np.inf, np.float16))
    assert row_of(ops.embed, FIRST_CONTEXT, w, np.array([0, 11, 3], np.int32)) == 1
    assert row_of(ops.matmul, FIRST_CONTEXT, activations(9, 4, 512), w) == 0
