"""The time of a context's calls: its sums belong together, count what was read, and change no bit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from pymixtral import ops
from pymixtral.arrays import F32
from pymixtral.demo import demo_path
from pymixtral.errors import CanceledError, InvalidArgumentError
from pymixtral.files.gguf import GGUFFile
from pymixtral.model.config import ModelConfig
from pymixtral.model.forward import Model
from pymixtral.model.weights import load_weights
from pymixtral.ops.native import ffi, lib
from support.variants import activations, matrix

TOKENS = np.array([1, 262, 671, 5, 9], np.int32)


@pytest.fixture(params=[1, 2, 3])
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    with GGUFFile(demo_path()) as file:
        config = ModelConfig.from_gguf(file)
        made = Model(load_weights(file, config), config, n_threads=request.param)
    yield made
    made.close()


def text(model: Model, tokens: np.ndarray = TOKENS) -> F32:
    """The logits of a text, token by token."""
    kv = model.new_cache(len(tokens))
    sequence = kv.new_sequence()
    return np.concatenate([model.logits(model.forward(id[None], [(sequence, 1)], kv)) for id in tokens])


def raw(ctx: ops.Context) -> list[tuple[int, int, int, list[tuple[int, int, int]]]]:
    """(ns, region_ns, n_regions, (late, busy, waiting) of each thread) of each part."""
    n = ctx.n_threads
    parts, threads = ffi.new("pmx_part_time[]", lib.PMX_PARTS), ffi.new("pmx_thread_time[]", lib.PMX_PARTS * n)
    assert lib.pmx_ctx_times(ctx.pointer, parts, threads) == lib.PMX_OK
    return [
        (p.ns, p.region_ns, p.n_regions, [(t.late_ns, t.busy_ns, t.waiting_ns) for t in threads[i * n : (i + 1) * n]])
        for i, p in enumerate(parts)
    ]


def test_parts_are_those_of_the_header() -> None:
    numbers = ffi.typeof("pmx_part").relements
    assert numbers == {f"PMX_PART_{name.upper()}": i for i, name in enumerate(ops.PARTS)} | {
        "PMX_PARTS": len(ops.PARTS)
    }


def test_the_times_of_each_thread_add_up(model: Model) -> None:
    ops.start_timing(model.context)
    text(model)
    for ns, region_ns, n_regions, threads in raw(model.context):
        assert 0 <= region_ns <= ns
        assert (region_ns == 0) == (n_regions == 0)
        for thread in threads:
            assert min(thread) >= 0
            assert sum(thread) == region_ns
        if n_regions:
            assert threads[0][1] > 0  # the caller always finds an item


def test_every_part_of_a_pass_is_seen_and_only_those(model: Model) -> None:
    ops.start_timing(model.context)
    text(model)
    times = {time.name: time for time in ops.stop_timing(model.context)}
    assert times.keys() == set(ops.PARTS)
    assert {name for name, time in times.items() if time.seconds == 0} == {"sampling"}
    layers = len(model.layers) * len(TOKENS)
    for name in ("gate_up", "down"):
        assert times[name].n_regions >= layers
    alone = model.context.n_threads == 1  # whose rounding of activations counts as well
    assert times["head"].n_regions == len(TOKENS) * (2 if alone else 1)


def test_bytes_are_those_that_a_token_reads(model: Model) -> None:
    ops.start_timing(model.context)
    text(model)
    times = {time.name: time for time in ops.stop_timing(model.context)}
    weights, c = model.weights, model.config
    assert sum(time.n_bytes for time in times.values()) == len(TOKENS) * weights.active_bytes(c.n_experts_used)
    assert times["head"].n_bytes == len(TOKENS) * weights.head.data.nbytes
    assert times["down"].n_bytes == len(TOKENS) * c.n_experts_used * sum(
        layer.experts[0][2].data.nbytes for layer in weights.layers
    )
    assert times["attention"].n_bytes == times["norm"].n_bytes == 0


def test_weights_are_counted_once_for_many_tokens(model: Model) -> None:
    kv = model.new_cache(len(TOKENS))
    ops.start_timing(model.context)
    model.forward(TOKENS, [(kv.new_sequence(), len(TOKENS))], kv)
    times = {time.name: time for time in ops.stop_timing(model.context)}
    assert times["output"].n_bytes == sum(layer.output.data.nbytes for layer in model.weights.layers)


def test_no_bit_depends_on_it(model: Model) -> None:
    want = text(model)
    ops.start_timing(model.context)
    found = text(model)
    ops.stop_timing(model.context)
    np.testing.assert_array_equal(found, want)
    np.testing.assert_array_equal(text(model), want)


def test_it_begins_at_zero_and_ends() -> None:
    x, w = activations(1, 9, 96), matrix(GGMLQuantizationType.Q4_0, 400, 96, 2)  # of 54 bytes a row
    with ops.Context(2) as ctx:
        ops.matmul(ctx, x, w)
        ops.start_timing(ctx)
        assert all(time == (0, 0, 0, [(0, 0, 0)] * 2) for time in raw(ctx)[1:])  # being asked is "other"
        ops.matmul(ctx, x, w)
        once = ops.stop_timing(ctx)[ops.PARTS.index("head")]
        assert (once.n_bytes, once.n_regions) == (400 * 54, 1)
        with pytest.raises(InvalidArgumentError, match="expected one that is timed"):
            ops.stop_timing(ctx)
        ops.matmul(ctx, x, w)
        ops.start_timing(ctx)
        ops.matmul(ctx, x, w)
        ops.start_timing(ctx)
        ops.matmul(ctx, x, w)
        assert ops.stop_timing(ctx)[ops.PARTS.index("head")].n_bytes == once.n_bytes


def test_a_call_that_fails_is_timed_to_its_end() -> None:
    x, w = activations(1, 9, 96), matrix(GGMLQuantizationType.Q4_0, 400, 96, 2)
    with ops.Context(2) as ctx:
        ops.start_timing(ctx)
        ctx.cancel()
        with pytest.raises(CanceledError):
            ops.matmul(ctx, x, w)
        ctx.cancel(False)
        ops.matmul(ctx, x, w)
        for _, region_ns, _, threads in raw(ctx):
            assert all(sum(thread) == region_ns for thread in threads)


# --- read --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("n_lines", [0, 1, 2, 3, 4095, 4096, 4097, 40_001])
def test_every_line_is_read_once_whatever_the_pattern(n_threads: int, n_lines: int) -> None:
    memory = np.random.default_rng(n_lines).integers(0, 256, n_lines * ops.LINE + 5, np.uint8)
    data = memory[5:]  # of no alignment
    want = int(data.copy().view("<u4")[:: ops.LINE // 4].sum(dtype=np.uint32))
    with ops.Context(n_threads) as ctx:
        for n_streams in (1, 2, 4):
            for hint in (None, "near", "far"):
                assert ops.read(ctx, data, n_streams, hint) == want


def test_what_read_refuses() -> None:
    data = np.zeros(128, np.uint8)
    with ops.Context(1) as ctx:
        with pytest.raises(InvalidArgumentError, match="multiple of 64 bytes, found 127"):
            ops.read(ctx, data[:127])
        with pytest.raises(InvalidArgumentError, match="n_streams: expected 1, 2 or 4, found 3"):
            ops.read(ctx, data, 3)
        with pytest.raises(InvalidArgumentError, match="'near', 'far' or None, found 'T0'"):
            ops.read(ctx, data, 1, "T0")
        for n_streams, hint in ((2**40, None), ("1", None), (2.0, None), (1, ["near"])):
            with pytest.raises(InvalidArgumentError, match=r"expected (n_streams|hint) to be"):
                ops.read(ctx, data, n_streams, hint)  # type: ignore[arg-type]
