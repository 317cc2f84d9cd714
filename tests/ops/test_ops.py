"""Norms, exp, SiLU, rotary positions and the router: every kernel equals the oracle."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from pymixtral import ops
from pymixtral.arrays import F32
from pymixtral.errors import ClosedError, InvalidArgumentError, PymixtralError, UnsupportedError
from pymixtral.files.types import Matrix
from pymixtral.reference import oracle
from support.variants import FIRST_CONTEXT, every_context, generator, normal, row_of, wide

NONFINITE = pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])


# --- Contexts ----------------------------------------------------------------------------------------------------


def test_every_machine_runs_the_scalar_kernels() -> None:
    assert ops.available_isas()[0] == "scalar"


def test_a_context_is_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYMIXTRAL_ISA", raising=False)
    for isa in ops.available_isas():
        with ops.Context(2, isa) as ctx:
            assert (ctx.isa, ctx.n_threads) == (isa, 2)
    with ops.Context() as ctx:
        assert ctx.isa == ops.available_isas()[-1]
        assert 1 <= ctx.n_threads <= 256


def test_the_environment_names_the_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYMIXTRAL_ISA", "scalar")
    with ops.Context(1) as ctx:
        assert ctx.isa == "scalar"
    monkeypatch.setenv("PYMIXTRAL_ISA", "avx1024")
    with pytest.raises(UnsupportedError, match="'avx1024'"):
        ops.Context(1)


@pytest.mark.parametrize("n_threads", [0, -1, 257])
def test_a_context_has_1_to_256_threads(n_threads: int) -> None:
    with pytest.raises(InvalidArgumentError, match="threads"):
        ops.Context(n_threads)


def test_an_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="found 'sse9'"):
        ops.Context(1, "sse9")


def test_a_closed_context_says_so() -> None:
    ctx = ops.Context(2)
    ctx.close()
    ctx.close()
    with pytest.raises(ClosedError):
        ops.exp(ctx, np.zeros(1, np.float32))


# --- rms_norm ----------------------------------------------------------------------------------------------------


@every_context
@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 16, 31, 64, 100])
def test_rms_norm(ctx: ops.Context, n: int) -> None:
    x, w = normal(n, 40, n), wide(n + 1, n)
    x[1], x[2], x[3], x[4], x[5] = 0, 1e-45, 1e-38, 1e18, -1e18  # the squares of the last two nearly overflow
    x[6:9] = wide(n + 2, 3, n)
    for n_tokens in (1, 2, 9, 40):
        for eps in (1e-5, 1e-6):
            np.testing.assert_array_equal(
                ops.rms_norm(ctx, x[:n_tokens], w, eps), oracle.rms_norm(x[:n_tokens], w, eps)
            )


@every_context
def test_rms_norm_on_all_threads(ctx: ops.Context) -> None:
    x, w = wide(1, 131, 1003), normal(2, 1003)
    np.testing.assert_array_equal(ops.rms_norm(ctx, x, w, 1e-5), oracle.rms_norm(x, w, 1e-5))


@every_context
@NONFINITE
def test_rms_norm_names_the_row(ctx: ops.Context, value: float) -> None:
    x, w = normal(3, 20, 33), normal(4, 33)
    x[13, 32] = x[17, 0] = value
    assert row_of(ops.rms_norm, ctx, x, w, 1e-5) == row_of(oracle.rms_norm, x, w, 1e-5) == 13
    w[5] = value
    assert row_of(ops.rms_norm, ctx, x[:10], w, 1e-5) == 0


@every_context
def test_a_sum_of_squares_that_overflows_is_found(ctx: ops.Context) -> None:
    x, w = normal(3, 20, 33), normal(4, 33)
    x[7] = 1e19  # each square is finite
    x[9, 4] = 3e38
    assert row_of(ops.rms_norm, ctx, x, w, 1e-5) == row_of(oracle.rms_norm, x, w, 1e-5) == 7


# --- exp and silu_mul --------------------------------------------------------------------------------------------


def around(*limits: float) -> F32:
    """The limits and their neighbours, of both signs."""
    x = np.array(limits, np.float32)
    inf = np.float32(np.inf)
    x = np.concatenate([x, np.nextafter(x, inf), np.nextafter(x, -inf)])
    return np.concatenate([x, -x])


HARD = np.concatenate(
    [around(0, 88, 87.3, 103.97, 88.73, 1e-40, 1.1754944e-38, 0.34657, 1, 1e-8, 150, 3.4e38), wide(5, 500)]
)


@every_context
def test_exp(ctx: ops.Context) -> None:
    special = np.array([np.nan, np.inf, -np.inf], np.float32)
    x = np.concatenate([HARD, special, np.linspace(-105, 90, 20_000).astype(np.float32), normal(6, 15_000)])
    want = oracle.exp(x)
    np.testing.assert_array_equal(ops.exp(ctx, x), want)
    for n in range(1, 26):
        np.testing.assert_array_equal(ops.exp(ctx, x[-n:]), want[-n:])
    for n in (16_383, 16_384, 16_385):
        np.testing.assert_array_equal(ops.exp(ctx, x[:n]), want[:n])
    assert ops.exp(ctx, x[:0]).shape == (0,)


@every_context
def test_silu_mul(ctx: ops.Context) -> None:
    finite = HARD[np.abs(HARD) < 1e30]
    gate = np.concatenate(
        [finite, np.linspace(-200, 200, 20_000).astype(np.float32), normal(7, 15_000) * np.float32(4)]
    )
    up = normal(8, len(gate))
    up[:: len(gate) // 50] = 0
    want = oracle.silu_mul(gate, up)
    np.testing.assert_array_equal(ops.silu_mul(ctx, gate, up), want)
    for n in range(1, 26):
        np.testing.assert_array_equal(ops.silu_mul(ctx, gate[-n:], up[-n:]), want[-n:])


@every_context
def test_silu_mul_far_out(ctx: ops.Context) -> None:
    gate = np.array([-3e38, -1e30, -200, -88.5, 88.5, 200, 1e30, 3e38] * 3, np.float32)
    got = ops.silu_mul(ctx, gate, np.ones_like(gate))
    np.testing.assert_array_equal(got, oracle.silu_mul(gate, np.ones_like(gate)))
    np.testing.assert_array_equal(got[:4], 0)
    np.testing.assert_array_equal(got[4:8], gate[4:8])


@every_context
@NONFINITE
def test_silu_mul_names_the_element(ctx: ops.Context, value: float) -> None:
    for broken in (0, 1):
        pair = [normal(9, 21), normal(10, 21)]
        pair[broken][18] = pair[broken][20] = value
        assert row_of(ops.silu_mul, ctx, *pair) == row_of(oracle.silu_mul, *pair) == 18
    assert row_of(ops.silu_mul, ctx, np.full(3, 1e20, np.float32), np.full(3, 1e20, np.float32)) == 0


# --- rope --------------------------------------------------------------------------------------------------------


@every_context
@pytest.mark.parametrize("n_pairs", [1, 3, 4, 64])
@pytest.mark.parametrize("factor", [1.0, 1.3, -0.1, 0.0])
def test_rope_table(ctx: ops.Context, n_pairs: int, factor: float) -> None:
    frequencies = 1e6 ** -(np.arange(n_pairs) / n_pairs)
    positions = np.concatenate(
        [np.arange(70), [1000, 1 << 15, (1 << 20) - 1, 1 << 20], generator(11).integers(0, 1 << 20, 40)]
    )
    for n in (1, 2, len(positions)):
        part = positions[-n:].astype(np.int32)
        got, want = ops.rope_table(ctx, frequencies, part, factor), oracle.rope_table(frequencies, part, factor)
        np.testing.assert_array_equal(got, want)


@every_context
def test_rope_table_at_the_ends_of_a_quadrant(ctx: ops.Context) -> None:
    n = np.arange(1, 5000, dtype=np.int32)
    for quarter in (np.pi / 2, np.pi / 4):
        frequencies = np.array([quarter, np.nextafter(quarter, 0), np.nextafter(quarter, 9)])
        np.testing.assert_array_equal(ops.rope_table(ctx, frequencies, n), oracle.rope_table(frequencies, n))


@pytest.mark.parametrize(
    ("frequency", "position"),
    [
        (1.0, -1),
        (1.0, (1 << 20) + 1),
        (0.5, (1 << 31) - 1),
        (np.nan, 0),
        (-1.0, 0),
        (np.inf, 1),
        (np.inf, 0),
        (1e300, 1),
    ],
)
def test_rope_table_refuses_angles_out_of_range(frequency: float, position: int) -> None:
    with pytest.raises(InvalidArgumentError):
        ops.rope_table(FIRST_CONTEXT, np.array([0.0, frequency]), np.array([0, position], np.int32))


@pytest.mark.parametrize("factor", [np.nan, np.inf, -1e39])
def test_rope_table_refuses_a_factor_that_is_not_finite(factor: float) -> None:
    with pytest.raises(InvalidArgumentError, match="factor"):
        ops.rope_table(FIRST_CONTEXT, np.ones(1), np.zeros(1, np.int32), factor)


@every_context
@pytest.mark.parametrize("head_dim", [2, 4, 6, 8, 10, 64, 136])
def test_rope(ctx: ops.Context, head_dim: int) -> None:
    positions = np.arange(100, 180, dtype=np.int32)
    tables = oracle.rope_table(1e4 ** -(np.arange(head_dim // 2) / head_dim), positions)
    for n_heads in (1, 3, 8):
        x = wide(head_dim + n_heads, len(positions), n_heads, head_dim)
        before = x.copy()
        for n in (1, 7, len(positions)):
            part = [table[:n] for table in tables]
            np.testing.assert_array_equal(ops.rope(ctx, x[:n], *part), oracle.rope(x[:n], *part))
        np.testing.assert_array_equal(x, before)


@every_context
@NONFINITE
def test_rope_names_the_row(ctx: ops.Context, value: float) -> None:
    tables = oracle.rope_table(np.array([1.0, 0.1, 0.01, 1e-3]), np.arange(30, dtype=np.int32))
    x = normal(12, 30, 2, 8)
    x[21, 1, 7] = x[25, 0, 0] = value
    assert row_of(ops.rope, ctx, x, *tables) == row_of(oracle.rope, x, *tables) == 21


# --- route -------------------------------------------------------------------------------------------------------


@every_context
@pytest.mark.parametrize("n_experts", [1, 2, 3, 8, 16, 63, 64])
def test_route(ctx: ops.Context, n_experts: int) -> None:
    logits = normal(n_experts, 500, n_experts) * np.float32(4)
    logits[100:200] = generator(13).integers(-1, 2, (100, n_experts))  # ties
    logits[200:220] *= np.float32(1e30)  # weights of 0 and 1
    logits[220:240] *= np.float32(0)  # zeros of both signs are equal
    logits[240:260] *= np.float32(30)
    for n_used in sorted({1, 2, 3, 4, n_experts // 2, n_experts - 1, n_experts} & set(range(1, n_experts + 1))):
        for n in (1, 500):
            got, want = ops.route(ctx, logits[-n:], n_used), oracle.route(logits[-n:], n_used)
            assert got[0].dtype == np.int32
            for a, b in zip(got, want, strict=True):
                np.testing.assert_array_equal(a, b)
        for n_dropped, min_p in ((0, 0.25), (n_used - 1, 0.0), (n_used // 2, 0.7), (0, 1.0)):
            got, want = (route(logits, n_used, n_dropped, min_p) for route in (partial(ops.route, ctx), oracle.route))
            for a, b in zip(got, want, strict=True):
                np.testing.assert_array_equal(a, b)
            np.testing.assert_array_equal(got[0], ops.route(ctx, logits, n_used)[0])


@every_context
@NONFINITE
def test_route_names_the_row(ctx: ops.Context, value: float) -> None:
    for expert in range(8):
        logits = normal(14, 400, 8)
        logits[301, expert] = logits[350, 0] = value
        assert row_of(ops.route, ctx, logits, 2) == row_of(oracle.route, logits, 2) == 301


@pytest.mark.parametrize(("n_experts", "n_used"), [(8, 0), (8, -1), (8, 9), (65, 2), (0, 1)])
def test_route_refuses_numbers_that_make_no_sense(n_experts: int, n_used: int) -> None:
    with pytest.raises(InvalidArgumentError, match="experts"):
        ops.route(FIRST_CONTEXT, np.zeros((2, n_experts), np.float32), n_used)


# --- Shapes ------------------------------------------------------------------------------------------------------


def test_arrays_that_do_not_fit_are_refused() -> None:
    x, table, w = normal(15, 3, 8), normal(16, 3, 4), Matrix.from_float(normal(17, 5, 8))
    calls: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
        (ops.rms_norm, (x, normal(1, 7), 1e-5)),
        (ops.rms_norm, (x[0], normal(1, 8), 1e-5)),
        (ops.matmul, (x[:, :7], w)),
        (ops.matmul, (x, Matrix(w.type, w.data[:, ::2]))),
        (ops.matmul, (x, Matrix(w.type, w.data.view(np.float32)))),
        (ops.silu_mul, (x[0], x[1, :7])),
        (ops.rope, (x[:, None], table[:, :3], table[:, :3])),
        (ops.rope, (x[:, None], table, table[:2])),
        (ops.rope, (x[:, None, :7], table[:, :3], table[:, :3])),
    ]
    for call, args in calls:
        with pytest.raises(InvalidArgumentError):
            call(FIRST_CONTEXT, *args)
    k, v = np.zeros((2, 1, 8, 64), np.float32), np.zeros((2, 1, 64, 8), np.float32)
    for bad_k, bad_v in (
        (k[..., :63], v),
        (k, v[:1]),
        (k, v.astype(np.float16)),
        (k.astype(float), v.astype(float)),
        (k[:, :, ::2], v),
    ):
        with pytest.raises(PymixtralError):
            ops.CacheLayer(bad_k, bad_v)
