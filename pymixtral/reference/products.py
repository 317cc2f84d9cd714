"""The oracle's products of rows with a matrix of any type, by activations rounded to int8."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pymixtral.arrays import F32, I32
from pymixtral.files.types import FLOAT_TYPES, Matrix
from pymixtral.reference.arithmetic import finite, fma, sum8
from pymixtral.reference.blocks import Blocks, decode, dequantize


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


def matmul(x: F32, w: Matrix, planes: int = 1) -> F32:
    """Multiply rows by a matrix.

    Args:
        x: float32 [n_tokens, cols].
        w: the matrix, one row for each output.
        planes: int8 numbers that stand for an activation, 1 or 2, where they are quantized.

    Returns:
        float32 [n_tokens, rows].

    Raises:
        NonFiniteError: with the row.
        UnsupportedError: for a type that this project does not run.
    """
    if w.type in FLOAT_TYPES:
        widened = dequantize(w)
        strip = 1 + 2048 // max(1, len(x))  # outputs at a time, so that their sums stay in the CPU's cache
        y = [sum8(x[:, None], widened[r : r + strip]) for r in range(0, w.rows, strip)]
        return finite(np.concatenate(y, axis=1), "a matrix product")
    blocks = decode(w)
    xq, dx, sums = quantize_activations(x, blocks.size)
    acc = _multiply(xq, dx, sums, blocks)
    if planes == 2:
        rest = fma(-dx.repeat(blocks.size, axis=1), xq.astype(np.float32), x)
        with np.errstate(over="ignore", invalid="ignore"):
            acc = acc + _multiply(*quantize_activations(rest, blocks.size), blocks)
    return finite(acc, "a matrix product")


def _multiply(xq: NDArray[np.int8], dx: F32, sums: I32, blocks: Blocks) -> F32:
    """The product of one plane, float32 [n_tokens, rows]."""
    xi = xq.reshape(*dx.shape, blocks.size).astype(np.int32)
    sums = sums.reshape(*dx.shape, -1)
    acc: F32 = np.zeros((len(xq), len(blocks.q)), np.float32)
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
    return acc
