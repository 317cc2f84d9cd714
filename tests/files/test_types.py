"""The table of weight types: it agrees with the C library's, and rows have GGUF's bytes."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from pymixtral import ops
from pymixtral.errors import InvalidArgumentError, UnsupportedError
from pymixtral.files.types import (
    ENCODED_TYPES,
    FLOAT_TYPES,
    MATRIX_TYPES,
    Matrix,
    bits_per_weight,
    row_bytes,
    show_type,
)
from pymixtral.ops.native import lib

Type = GGMLQuantizationType


def test_python_and_c_have_the_same_types() -> None:
    assert set(MATRIX_TYPES) == {kind for kind in Type if lib.pmx_row_bytes(kind, 256) >= 0}
    for kind in MATRIX_TYPES:
        assert lib.pmx_row_bytes(kind, 512) == row_bytes(kind, 512)


@pytest.mark.parametrize("kind", MATRIX_TYPES, ids=show_type)
def test_c_encodes_what_the_table_says(kind: Type) -> None:
    x = np.ones((1, 256), np.float32)
    with ops.Context(1) as context:
        if kind in ENCODED_TYPES:
            assert ops.encode(context, kind, x).shape == (1, row_bytes(kind, 256))
        else:
            with pytest.raises((InvalidArgumentError, UnsupportedError)):
                ops.encode(context, kind, x)


def test_row_bytes() -> None:
    for name, n_bytes in {
        "f32": 1024, "f16": 512, "bf16": 512, "q8_0": 272, "q6_k": 210, "q5_1": 192, "q5_0": 176, "q5_k": 176,
        "q4_1": 160, "q4_k": 144, "q4_0": 144, "iq4_nl": 144, "iq4_xs": 136, "q3_k": 110, "q2_k": 84, "mxfp4": 136,
        "iq1_s": 50, "i8": 256,
    }.items():  # fmt: skip
        assert row_bytes(Type[name.upper()], 256) == n_bytes


def test_types_are_in_the_order_of_their_bits() -> None:
    bits = [bits_per_weight(kind) for kind in ENCODED_TYPES]
    assert bits == sorted(bits, reverse=True)
    assert MATRIX_TYPES[: len(ENCODED_TYPES)] == ENCODED_TYPES


def test_float_types_are_those_without_blocks() -> None:
    assert {show_type(kind) for kind in FLOAT_TYPES} == {"f32", "f16", "bf16"}


def test_a_matrix_has_the_columns_of_its_rows() -> None:
    matrix = Matrix(Type.Q4_K, np.zeros((3, 288), np.uint8))
    assert (matrix.rows, matrix.cols, matrix.row_bytes, matrix.shape) == (3, 512, 288, (3, 512))
    for dtype, kind in ((np.float32, Type.F32), (np.float16, Type.F16)):
        floats = Matrix.from_float(np.ones((2, 6), dtype).T)  # a copy, as rows must be contiguous
        assert (floats.type, floats.shape) == (kind, (6, 2))
        assert floats.data.flags.c_contiguous
