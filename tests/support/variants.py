"""What the kernels' tests run over: every instruction set with 1, 2 and 3 threads, every weight
type, and numbers that are hard on them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from pymixtral import ops
from pymixtral.arrays import F32, U8
from pymixtral.errors import NonFiniteError
from pymixtral.files.types import ENCODED_TYPES, FLOAT_TYPES, WEIGHT_TYPES, Matrix, block_bytes, block_weights
from pymixtral.ops.native import lib
from pymixtral.quantize.encoders import formats
from pymixtral.reference import blocks, oracle

ISAS = ops.available_isas()
CONTEXTS = {f"{isa}-{n}": ops.Context(n, isa) for isa in ISAS for n in (1, 2, 3)}
FIRST_CONTEXT = CONTEXTS["scalar-1"]
TYPES = [kind for kind in GGMLQuantizationType if lib.pmx_row_bytes(kind, 256) >= 0]
ENCODED = list(ENCODED_TYPES)
UNSEARCHED = [kind for kind in ENCODED if kind in FLOAT_TYPES or kind in formats.UNSEARCHED]
"""Types that gguf-py encodes as well."""
SEARCHED = [kind for kind in ENCODED if kind not in UNSEARCHED]
assert CONTEXTS, "tests of no instruction set prove nothing"
assert TYPES, "tests of no weight type prove nothing"

every_context = pytest.mark.parametrize("ctx", CONTEXTS.values(), ids=CONTEXTS)
every_type = pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name.lower())

SCALES = {kind.name: of.f16_at for kind, of in WEIGHT_TYPES.items() if kind not in FLOAT_TYPES}
"""Where the f16 numbers of a block begin, in bytes; its other bytes may be anything but the scales
of iq1_m and mxfp4.
"""

INTEGER_TYPES = [kind for kind in TYPES if kind in blocks.DECODERS]
"""Types whose products are sums of integers."""


def row_of(call: Callable[..., Any], *args: Any) -> int:
    """The row of the NonFiniteError that a call raises."""
    with pytest.raises(NonFiniteError) as caught:
        call(*args)
    assert f"row {caught.value.row}" in str(caught.value)
    return caught.value.row


def generator(*seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def normal(seed: int, *shape: int) -> F32:
    return generator(seed).standard_normal(shape, np.float32)


def wide(seed: int, *shape: int) -> F32:
    """Numbers of all sizes between 1e-25 and 1e9, some of them zero, -0 or subnormal."""
    g = generator(seed)
    values = np.ldexp(g.standard_normal(shape), g.integers(-83, 28, shape)).astype(np.float32)
    which = g.integers(0, 20, shape)
    values[which == 0] = 0
    values[which == 1] = -0.0
    values[which == 2] *= np.float32(1e-38)
    return values


def activations(seed: int, n_tokens: int, n: int) -> F32:
    """Rows whose blocks differ in size; the first ones hold what activation quantization must get
    right.
    """
    g = generator(seed)
    sizes = np.ldexp(1.0, g.integers(-20, 20, (n_tokens, -(-n // 32)))).repeat(32, axis=1)[:, :n]
    x = (g.standard_normal((n_tokens, n)) * sizes).astype(np.float32)
    halves = (g.integers(-126, 126, n) + 0.5).astype(np.float32)
    halves[0] = 127
    special = [
        halves,
        np.where(np.arange(n) % 2, -1, 1),
        np.full(n, -3e4),
        2.0**-101,
        -(2.0**-100),
        1e-40,
        -0.0,
        halves * np.float32(1e20),
    ]
    for row, values in enumerate(special[: n_tokens - 1], 1):
        x[row] = values
    if n_tokens > len(special) + 1:
        x[len(special) + 1] = wide(seed, n)
    return x


def matrix(kind: GGMLQuantizationType, rows: int, cols: int, seed: int, *, fill: int | None = None) -> Matrix:
    """Any valid bits: scales of every size and sign, zero and subnormal ones too. fill: every byte
    of a block that is no scale.
    """
    g = generator(seed, kind)
    if kind == GGMLQuantizationType.F32:
        return Matrix.from_float(wide(seed, rows, cols))
    if kind == GGMLQuantizationType.BF16:
        return Matrix(kind, np.ascontiguousarray(wide(seed, rows, cols).view(np.uint16)[:, 1::2]).view(np.uint8))
    if kind == GGMLQuantizationType.F16:
        return Matrix(kind, _finite_f16(g, (rows, cols)).view(np.uint8))
    block, size = block_weights(kind), block_bytes(kind)
    data = g.integers(0, 256, (rows, cols // block, size), np.uint8)
    if fill is not None:
        data[...] = fill
    for at in SCALES[kind.name]:
        data[..., at : at + 2] = _finite_f16(g, (rows, cols // block, 1)).view(np.uint8)
    if kind == GGMLQuantizationType.IQ1_M:
        set_iq1_m_scales(data, _finite_f16(g, (rows, cols // block)))
    if kind == GGMLQuantizationType.MXFP4:
        data[..., 0] %= 160  # up to 2^31: products stay finite
    return Matrix(kind, data.reshape(rows, -1))


def set_iq1_m_scales(blocks: U8, f16: NDArray[np.uint16]) -> None:
    """Writes the bits of f16 numbers [...] into blocks [..., 56] of iq1_m: a nibble each in the top
    of the last four 16-bit words.
    """
    for i in range(4):
        nibble = (f16 >> 4 * i & 15).astype(np.uint8)
        blocks[..., 49 + 2 * i] = blocks[..., 49 + 2 * i] & 15 | nibble << 4


def model_matrix(kind: GGMLQuantizationType, rows: int, cols: int, seed: int) -> Matrix:
    """A matrix as models have them: it leaves the size of what it multiplies about as it was."""
    if block_weights(kind) == 1:
        values = normal(seed, rows, cols) / np.float32(np.sqrt(cols))
        if kind == GGMLQuantizationType.BF16:
            return Matrix(kind, np.ascontiguousarray(values.view(np.uint16)[:, 1::2]).view(np.uint8))
        return Matrix.from_float(values if kind == GGMLQuantizationType.F32 else values.astype(np.float16))
    block, size = block_weights(kind), block_bytes(kind)
    data = generator(seed, kind).integers(0, 256, (rows, cols // block, size), np.uint8)
    sizes = {"Q8_0": 74, "IQ4_NL": 70, "IQ4_XS": 1300, "Q6_K": 1400, "IQ1_S": 7, "IQ1_M": 7, "TQ1_0": 1, "TQ2_0": 1}
    largest = sizes.get(kind.name, 5 if block == 32 else 100)
    scale = np.float16(1 / (largest * np.sqrt(cols)))
    for at in SCALES[kind.name]:
        data[..., at : at + 2] = np.array([scale], np.float16).view(np.uint8)
    if kind == GGMLQuantizationType.IQ1_M:
        set_iq1_m_scales(data, np.full(data.shape[:-1], scale.view(np.uint16)))
    if kind == GGMLQuantizationType.MXFP4:
        data[..., 0] = 128 + round(float(np.log2(scale)))
    return Matrix(kind, data.reshape(rows, -1))


def _finite_f16(g: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.uint16]:
    bits = g.integers(0, 1 << 16, shape, np.uint16)
    bits[g.integers(0, 8, shape) == 0] &= 0x83FF  # zero and subnormal
    bits[(bits & 0x7C00) == 0x7C00] ^= 0x4000
    return bits


# --- Cache pages -------------------------------------------------------------------------------------------------


def _pages(x: NDArray[Any], axes: tuple[int, ...]) -> NDArray[Any]:
    """axes: of a page, from [64, n_kv_heads, *rest]; the rest is head_dim, which keys in q8_0 have
    as [head_dim/4, 4].
    """
    axes = (0, *(1 + axis for axis in axes))
    if x.dtype != oracle.Q8_0:
        return np.ascontiguousarray(x.transpose(axes))
    pages, n, heads = x.shape[:3]
    q = np.ascontiguousarray(x["q"].reshape(pages, n, heads, *((-1, 4) if len(axes) == 5 else (-1,))).transpose(axes))
    d = np.ascontiguousarray(x["d"].transpose(0, 2, 3, 1))
    return np.concatenate([a.view(np.uint8).reshape(pages, heads, -1) for a in (q, d)], axis=2)


def key_pages(x: NDArray[Any]) -> NDArray[Any]:
    """x [n_pages, 64, n_kv_heads, ...], keys as oracle.round_to_cache gives them, as they lie in a
    cache (pmx_cache in pmx.h).
    """
    return _pages(x, (1, 2, 0, 3) if x.dtype == oracle.Q8_0 else (1, 2, 0))


def value_pages(x: NDArray[Any]) -> NDArray[Any]:
    """The same for values."""
    return _pages(x, (1, 0, 2))


def stored_bytes(shape: tuple[int, ...], dtype: Any, fill: int = 0xFF) -> NDArray[Any]:
    """What oracle.round_to_cache gives for a shape [..., head_dim], every byte `fill`: 0xff makes
    NaN of numbers and scales.
    """
    last = shape[-1] // 32 if np.dtype(dtype) == oracle.Q8_0 else shape[-1]
    n_bytes = int(np.prod((*shape[:-1], last))) * np.dtype(dtype).itemsize
    return np.full(n_bytes, fill, np.uint8).view(dtype).reshape(*shape[:-1], last)
