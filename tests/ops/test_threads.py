"""The pool of threads: any number of them, several contexts at once, fork, cancellation, and the
caller's floating-point mode.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from pymixtral import ops
from pymixtral.arrays import F32
from pymixtral.errors import CanceledError, InvalidArgumentError
from pymixtral.files.types import Matrix
from pymixtral.ops.native import ffi, lib
from pymixtral.reference import oracle
from support.calls import CALLS, Call, pointer
from support.variants import ISAS, TYPES, activations, every_context, matrix, normal, row_of

every_isa = pytest.mark.parametrize("isa", ISAS)

X, W = activations(1, 9, 96), matrix(GGMLQuantizationType.Q4_0, 400, 96, 2)
WANT = oracle.matmul(X, W)
"""Seven items of work, enough for all threads to be woken."""


# --- Numbers of threads ------------------------------------------------------------------------------------------


@every_isa
@pytest.mark.parametrize("n_threads", [4, 16, 256])
def test_more_threads_than_cores(isa: str, n_threads: int) -> None:
    with ops.Context(n_threads, isa) as ctx:
        for _ in range(20):
            np.testing.assert_array_equal(ops.matmul(ctx, X, W), WANT)


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_contexts_come_and_go() -> None:
    def n_threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    before = n_threads()
    for i in range(60):
        with ops.Context(1 + i % 5) as ctx:
            if i % 3:
                np.testing.assert_array_equal(ops.matmul(ctx, X, W), WANT)
    deadline = time.monotonic() + 5  # a thread that has been joined stays visible for a moment
    while n_threads() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert n_threads() <= before


def test_threads_that_slept_wake_up() -> None:
    with ops.Context(3) as ctx:
        for _ in range(5):
            time.sleep(0.02)
            np.testing.assert_array_equal(ops.matmul(ctx, X, W), WANT)


def test_many_regions_in_a_row() -> None:
    with ops.Context(3) as ctx:
        for _ in range(3000):
            y = ops.matmul(ctx, X, W)
        np.testing.assert_array_equal(y, WANT)


def test_contexts_used_from_threads_of_their_own() -> None:
    def work(isa: str, seed: int) -> bool:
        x = activations(seed, 9, 96)
        want = oracle.matmul(x, W)
        with ops.Context(3, isa) as ctx:
            return all(np.array_equal(ops.matmul(ctx, x, W), want) for _ in range(200))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, [ISAS[-1], ISAS[0], ISAS[-1], ISAS[0]], range(4)))


def test_a_context_may_be_used_from_one_thread_after_another() -> None:
    with ops.Context(3) as ctx:
        for _ in range(5):
            with ThreadPoolExecutor(1) as pool:
                np.testing.assert_array_equal(pool.submit(ops.matmul, ctx, X, W).result(), WANT)


def test_two_threads_in_one_context() -> None:
    """A call that meets another thread's is refused and writes nothing; those that run are right."""
    refusals: list[str] = []
    n_right = 0

    def work(ctx: ops.Context) -> None:
        nonlocal n_right
        x = X.copy()
        while len(refusals) < 20 or n_right < 20:  # as long as the threads take to meet
            try:
                np.testing.assert_array_equal(ops.matmul(ctx, x, W), WANT)
                n_right += 1
            except InvalidArgumentError as error:
                refusals.append(str(error))

    with ops.Context(2) as ctx, ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(work, ctx), pool.submit(work, ctx)]:
            done.result()
        assert set(refusals) == {
            "ctx: expected a context that no other thread is using, found one in a call: give each thread its own"
        }
        np.testing.assert_array_equal(ops.matmul(ctx, X, W), WANT)


@cache
def long_call() -> tuple[F32, ops.BoundMatrix]:
    """A product that takes the scalar kernels some ten seconds."""
    return normal(7, 500, 1024), ops.BoundMatrix(Matrix.from_float(normal(6, 16384, 1024)))


@contextmanager
def in_a_long_call(ctx: ops.Context) -> Iterator[None]:
    """Another thread is in a call, which is cancelled at the end."""
    x, w = long_call()
    y = np.zeros((len(x), w.rows), np.float32)

    with ThreadPoolExecutor(1) as pool:
        arrays = (pointer(y, "float *"), pointer(x, "float *"))
        call = pool.submit(lib.pmx_matmul, ctx.pointer, *arrays, w.struct, len(x), ffi.NULL, 0)
        while not y[0].any():
            time.sleep(0.001)
        try:
            yield
        finally:
            ctx.cancel()
            assert call.result() == lib.PMX_ECANCELED
            ctx.cancel(False)


@pytest.mark.parametrize("make", CALLS, ids=lambda make: make.__name__)
def test_every_entry_point_is_refused_in_a_busy_context(make: Callable[[ops.Context], Call]) -> None:
    with ops.Context(2, "scalar") as ctx:
        call = make(ctx)
        before = [output.array.copy() for output in call.outputs]
        with in_a_long_call(ctx):
            assert call.status() == lib.PMX_EBUSY
            assert lib.pmx_ctx_prefetch(ctx.pointer, lib.PMX_PREFETCH_FAR, lib.PMX_AHEAD) == lib.PMX_EBUSY
            assert lib.pmx_ctx_timing(ctx.pointer, 1) == lib.PMX_EBUSY
            times = ffi.new("pmx_part_time[]", lib.PMX_PARTS), ffi.new("pmx_thread_time[]", 2 * lib.PMX_PARTS)
            assert lib.pmx_ctx_times(ctx.pointer, *times) == lib.PMX_EBUSY
            assert (ctx.isa, ctx.n_threads) == ("scalar", 2)
        for output, contents in zip(call.outputs, before, strict=True):
            np.testing.assert_array_equal(output.array, contents)
        assert call.status() == lib.PMX_OK  # whatever became of the calls before, the context is free


def test_a_context_is_free_after_a_call_that_failed() -> None:
    x = normal(3, 9, 96)
    x[4, 5] = np.nan
    with ops.Context(2) as ctx, ThreadPoolExecutor(1) as pool:
        for _ in range(2):
            assert row_of(ops.quantize_activations, ctx, x) == 4
            np.testing.assert_array_equal(pool.submit(ops.matmul, ctx, X, W).result(), WANT)


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_a_context_that_is_destroyed_in_the_middle_of_a_call_ends_it() -> None:
    before = len(list(Path("/proc/self/task").iterdir()))
    out = ffi.new("pmx_ctx **")
    assert lib.pmx_ctx_create(out, 3, b"scalar") == lib.PMX_OK

    class Raw(ops.Context):
        def __init__(self) -> None:
            self._pointer = out[0]

    ctx = Raw()
    with in_a_long_call(ctx):
        lib.pmx_ctx_destroy(ctx.pointer)
        ctx.close()  # so that nobody uses the pointer again
    deadline = time.monotonic() + 60  # a thread that has been joined stays visible for a moment
    while len(list(Path("/proc/self/task").iterdir())) > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(list(Path("/proc/self/task").iterdir())) <= before


def test_each_thread_has_its_own_last_error() -> None:
    """Two threads fail on different rows, again and again, and each sees its own."""
    barrier = threading.Barrier(2)

    def rows(row: int) -> set[int]:
        x, seen = normal(3, 9, 64), set()
        x[row, 5] = np.nan
        with ops.Context(1) as ctx:
            for _ in range(200):
                barrier.wait()
                seen.add(row_of(ops.quantize_activations, ctx, x))
        return seen

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(rows, [3, 7])) == [{3}, {7}]


@every_context
def test_the_lowest_bad_row_is_reported(ctx: ops.Context) -> None:
    x = normal(4, 40, 1 << 14)
    x[20:] = np.nan  # quick to find, while row 19 is still being worked on
    x[19, -1] = np.inf
    for _ in range(20):
        assert row_of(ops.quantize_activations, ctx, x) == 19
    assert "row 19" in bytes(ffi.string(lib.pmx_message())).decode()


# --- fork --------------------------------------------------------------------------------------------------------

FORK = """
import os, sys
import numpy as np
from pymixtral import ops
from pymixtral.files.types import Matrix

random = np.random.default_rng(1)
x, w = random.standard_normal((9, 64), np.float32), Matrix.from_float(random.standard_normal((400, 64), np.float32))
ctx, idle = ops.Context(3), ops.Context(2)
want = ops.matmul(ctx, x, w)

def works(context):
    return all(np.array_equal(ops.matmul(context, x, w), want) for _ in range(50))

def status_of(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

child = os.fork()
if child == 0:
    idle.close()                                # never used on this side
    ok = works(ctx)
    grandchild = os.fork()
    if grandchild == 0:
        os._exit(0 if works(ctx) else 3)
    ok = ok and works(ctx) and status_of(grandchild) == 0
    with ops.Context(2) as new:
        ok = ok and works(new)
    ctx.close()
    os._exit(0 if ok else 2)
ok = works(ctx) and works(idle)
code = status_of(child)
ctx.close()
idle.close()
sys.exit(code if ok else 1)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_context_works_on_both_sides_of_a_fork() -> None:
    for _ in range(3):
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], timeout=60, check=False)
        assert done.returncode == 0


# --- Cancellation ------------------------------------------------------------------------------------------------


@every_context
def test_a_canceled_context_ends_every_call_until_it_is_told_otherwise(ctx: ops.Context) -> None:
    ctx.cancel()
    try:
        for _ in range(2):
            with pytest.raises(CanceledError):
                ops.matmul(ctx, X, W)
            with pytest.raises(CanceledError):
                ops.exp(ctx, X[0])
    finally:
        ctx.cancel(False)
    np.testing.assert_array_equal(ops.matmul(ctx, X, W), WANT)


@pytest.mark.parametrize("n_threads", [1, 3])
def test_a_long_call_is_canceled_from_another_thread(n_threads: int) -> None:
    w, x = Matrix.from_float(normal(6, 16384, 1024)), normal(7, 500, 1024)  # some ten seconds for the scalar kernels
    with ops.Context(n_threads, "scalar") as ctx, ThreadPoolExecutor(1) as pool:
        call = pool.submit(ops.matmul, ctx, x, w)
        time.sleep(0.05)
        asked = time.process_time()
        ctx.cancel()
        with pytest.raises(CanceledError):
            call.result()
        assert (
            time.process_time() - asked < 2
        )  # of CPU, however busy the machine is: what was begun is finished, with sanitizers slowly
        ctx.cancel(False)
        np.testing.assert_array_equal(ops.matmul(ctx, X, W), WANT)


def test_canceling_one_context_leaves_the_others_alone() -> None:
    with ops.Context(2) as one, ops.Context(2) as other:
        one.cancel()
        np.testing.assert_array_equal(ops.matmul(other, X, W), WANT)


# --- The floating-point mode -------------------------------------------------------------------------------------

MODES = {
    "x86_64": (8, 7, {"flush": 0x8040, "up": 0x4000, "chop": 0x6000}),
    "aarch64": (2, 0, {"flush": 1 << 24, "up": 1 << 22, "chop": 3 << 22}),
}
"""Words of glibc's fenv_t, the one that holds MXCSR or FPCR, and its bits."""


@contextmanager
def floating_point_mode(mode: str) -> Iterator[None]:
    """Runs the calling thread with subnormals flushed or with another rounding."""
    n_words, word, bits = MODES[platform.machine()]
    libm = ctypes.CDLL(ctypes.util.find_library("m"))
    before, changed = (ctypes.c_uint32 * n_words)(), (ctypes.c_uint32 * n_words)()
    libm.fegetenv(before)
    libm.fegetenv(changed)
    changed[word] |= bits[mode]
    libm.fesetenv(changed)
    try:
        yield
    finally:
        libm.fesetenv(before)


def probe() -> NDArray[np.uint32]:
    """Bits that tell the modes apart: a subnormal product, and a third rounded."""
    one = np.array([1, -1], np.float32)
    return np.concatenate([one * np.float32(1e-38) * np.float32(0.1), one / np.float32(3)]).view(np.uint32)


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in MODES, reason="sets the mode through glibc's fenv_t"
)
@every_isa
@pytest.mark.parametrize("mode", ["flush", "up", "chop"])
def test_the_callers_floating_point_mode_changes_nothing_and_is_kept(isa: str, mode: str) -> None:
    tiny = np.ldexp(normal(8, 130, 64), -120).astype(np.float32)
    calls: list[tuple[Any, tuple[Any, ...]]] = [
        (ops.silu_mul, (tiny[0] * np.float32(1e-3), normal(9, 64))),
        (ops.rms_norm, (tiny, normal(10, 64), 1e-6)),
        (ops.quantize_activations, (normal(11, 130, 64),)),
        (ops.exp, (np.linspace(-88, 88, 1000).astype(np.float32),)),
        (ops.route, (normal(12, 130, 8), 2)),
        (ops.rope, (tiny[:, None] * np.float32(1e-2), *oracle.rope_table(np.ones(32), np.arange(130, dtype=np.int32)))),
    ]
    for kind in TYPES:
        w: Matrix = matrix(kind, 130, 256, 13)
        calls.append((ops.matmul, (np.tile(tiny, (1, 4)) * np.float32(2.0**20), w)))
        calls.append((ops.embed, (w, np.arange(130, dtype=np.int32))))
    calls.append((ops.matmul, (np.tile(tiny, (1, 4)) * np.float32(1e-3), Matrix.from_float(normal(14, 130, 256)))))

    def run(ctx: ops.Context) -> list[F32]:
        results: list[F32] = []
        for call, args in calls:
            got = call(ctx, *args)
            results.extend(got if isinstance(got, tuple) else [got])
        return results

    with ops.Context(3, isa) as ctx:
        want = run(ctx)
    plain = probe()
    with floating_point_mode(mode):
        inside = probe()
        with ops.Context(3, isa) as ctx:  # its threads inherit the mode
            got = run(ctx)
        after = probe()
    assert not np.array_equal(inside, plain)
    np.testing.assert_array_equal(after, inside)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a.view(np.uint8), b.view(np.uint8))


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in MODES, reason="sets the mode through glibc's fenv_t"
)
def test_the_callers_floating_point_mode_lets_nothing_through() -> None:
    wrong = pytest.raises(InvalidArgumentError, match="factor")
    with (
        ops.Context(1) as ctx,
        floating_point_mode("chop"),
        wrong,
    ):  # where 1e300 as float32 is the largest number, not infinity
        ops.rope_table(ctx, np.ones(4), np.arange(4, dtype=np.int32), 1e300)
