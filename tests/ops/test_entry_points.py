"""The C entry points called directly: nothing is read or written outside the caller's arrays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from pymixtral import ops
from pymixtral.files.types import block_weights
from pymixtral.ops.native import ffi, lib
from pymixtral.reference import oracle
from support.calls import (
    CALLS,
    Call,
    N,
    attention,
    cache_write,
    embed,
    encode,
    every_call,
    exp,
    layer_attention,
    layer_experts,
    matmul,
    pointer,
    rms_norm,
    silu_mul,
    weight,
)
from support.fences import Guarded, fenced
from support.variants import ENCODED, activations, every_context, every_type, matrix


def check(call: Call) -> None:
    assert call.status() == lib.PMX_OK, ffi.string(lib.pmx_message())
    for output, want in zip(call.outputs, call.want, strict=True):
        assert output.guards_intact
        np.testing.assert_array_equal(output.array, want)


def test_every_entry_point_is_here() -> None:
    contexts = {
        "ctx_create",
        "ctx_destroy",
        "ctx_cancel",
        "ctx_prefetch",
        "ctx_isa",
        "ctx_planes",
        "ctx_threads",
        "ctx_timing",
        "ctx_times",
    }
    other = {f"pmx_{name}" for name in (*contexts, "isa_name", "isa_available", "message", "bad_row", "row_bytes")}
    functions = {name for name in dir(lib) if name.startswith("pmx_")}
    assert {f"pmx_{make.__name__}" for make in CALLS} == functions - other


@every_context
@every_call
def test_a_valid_call_stays_inside_its_arrays(ctx: ops.Context, make: Callable[[ops.Context], Call]) -> None:
    check(make(ctx))


@every_context
@every_type
def test_matrices_of_every_type_stay_inside_their_arrays(ctx: ops.Context, kind: GGMLQuantizationType) -> None:
    for n in (1, 2, 5, 9):
        for rows in (1, 7, 17):
            check(matmul(ctx, kind, n, rows, 27 if block_weights(kind) == 1 else block_weights(kind)))
    check(embed(ctx, kind, 27 if block_weights(kind) == 1 else block_weights(kind)))
    if block_weights(kind) <= 32:
        check(layer_attention(ctx, kind))
        check(layer_experts(ctx, kind))


@every_context
def test_all_caches_and_encoders_stay_inside_their_arrays(ctx: ops.Context) -> None:
    for dtype in (np.float32, np.float16, oracle.Q8_0):
        check(cache_write(ctx, dtype))
        for n in (1, N, 33):
            check(attention(ctx, dtype, n))
    for kind in ENCODED:
        for weighted in (False, True):
            check(encode(ctx, kind, 13 * block_weights(kind), weighted))


@every_context
@every_type
def test_rows_may_have_room_between_them(ctx: ops.Context, kind: GGMLQuantizationType) -> None:
    w, x = matrix(kind, 21, 512, 60), activations(61, 9, 512)
    stride = w.row_bytes + 36
    padded = np.full((21, stride), 0xFF, np.uint8)
    padded[:, : w.row_bytes] = w.data
    padded = fenced(padded.ravel()[: 20 * stride + w.row_bytes])
    view, _ = weight(w, data=pointer(padded, "void *"), row_bytes=stride)
    for n in (1, 9):
        y = Guarded((n, 21), np.float32)
        arrays = pointer(y.array, "float *"), pointer(x, "float *")
        assert lib.pmx_matmul(ctx.pointer, *arrays, view, n, ffi.NULL, 0) == lib.PMX_OK
        assert y.guards_intact
        np.testing.assert_array_equal(y.array, oracle.matmul(x[:n], w))


@every_context
@pytest.mark.parametrize(("make", "input_name"), [(rms_norm, "x"), (exp, "x"), (silu_mul, "gate")])
def test_the_output_may_be_the_input(ctx: ops.Context, make: Callable[[ops.Context], Call], input_name: str) -> None:
    call = make(ctx)
    assert call.status(y=call.args[input_name]) == lib.PMX_OK
    np.testing.assert_array_equal(call.inputs[input_name], call.want[0])
