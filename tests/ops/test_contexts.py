"""Misuse of contexts: threads, instruction sets, hints, planes and times that are none."""

from __future__ import annotations

import pytest

from pymixtral import ops
from pymixtral.errors import InvalidArgumentError
from pymixtral.ops.native import ffi, lib
from support.refusals import refused


@pytest.mark.parametrize(("n_threads", "isa", "status"), [
    (0, b"scalar", lib.PMX_EINVAL),
    (-1, b"scalar", lib.PMX_EINVAL),
    (257, b"scalar", lib.PMX_EINVAL),
    (1, b"", lib.PMX_EUNSUPPORTED),
    (1, b"Scalar", lib.PMX_EUNSUPPORTED),
    (1, b"x" * 10_000, lib.PMX_EUNSUPPORTED),
])  # fmt: skip
def test_contexts_that_make_no_sense(n_threads: int, isa: bytes, status: int) -> None:
    out = ffi.new("pmx_ctx **")
    refused(lib.pmx_ctx_create(out, n_threads, isa), status)
    assert out[0] == ffi.NULL


def test_contexts_that_are_null() -> None:
    refused(lib.pmx_ctx_create(ffi.NULL, 1, b"scalar"))
    lib.pmx_ctx_destroy(ffi.NULL)
    lib.pmx_ctx_cancel(ffi.NULL, 1)
    refused(lib.pmx_ctx_prefetch(ffi.NULL, lib.PMX_PREFETCH_FAR, lib.PMX_AHEAD))
    refused(lib.pmx_ctx_timing(ffi.NULL, 1))
    assert lib.pmx_ctx_isa(ffi.NULL) == ffi.NULL
    assert lib.pmx_ctx_threads(ffi.NULL) == 0


def test_prefetch_hints_that_are_none() -> None:
    with ops.Context(1) as ctx:
        for hint in (-1, 2, (1 << 31) - 1, -(1 << 31)):
            refused(lib.pmx_ctx_prefetch(ctx.pointer, hint, lib.PMX_AHEAD))
        for ahead in (-1, lib.PMX_MAX_AHEAD + 1, (1 << 31) - 1, -(1 << 31)):
            refused(lib.pmx_ctx_prefetch(ctx.pointer, lib.PMX_PREFETCH_FAR, ahead))


def test_planes_that_are_none() -> None:
    refused(lib.pmx_ctx_planes(ffi.NULL, 1))
    with ops.Context(1) as ctx:
        for n in (-1, 0, 3, (1 << 31) - 1, -(1 << 31)):
            refused(lib.pmx_ctx_planes(ctx.pointer, n))
        with pytest.raises(InvalidArgumentError, match="planes"):
            ctx.planes = 3


def test_times_without_a_place_or_without_timing() -> None:
    parts, threads = ffi.new("pmx_part_time[]", lib.PMX_PARTS), ffi.new("pmx_thread_time[]", 2 * lib.PMX_PARTS)
    with ops.Context(2) as ctx:
        refused(lib.pmx_ctx_times(ctx.pointer, parts, threads))
        assert lib.pmx_ctx_timing(ctx.pointer, 1) == lib.PMX_OK
        for i, name in enumerate(("ctx", "parts", "threads")):
            arguments = [ctx.pointer, parts, threads]
            arguments[i] = ffi.NULL
            assert refused(lib.pmx_ctx_times(*arguments)) == f"{name}: expected a pointer, found NULL"
        assert lib.pmx_ctx_times(ctx.pointer, parts, threads) == lib.PMX_OK
        assert lib.pmx_ctx_timing(ctx.pointer, 0) == lib.PMX_OK
        refused(lib.pmx_ctx_times(ctx.pointer, parts, threads))


def test_instruction_sets_past_the_ends() -> None:
    for i in (-1, 100, (1 << 31) - 1, -(1 << 31)):
        assert lib.pmx_isa_name(i) == ffi.NULL
        assert lib.pmx_isa_available(i) == 0
