"""Misuse of the C entry points: a status and a message that says what is wrong, nothing written, no crash."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from pymixtral import ops
from pymixtral.ops.native import ffi, lib
from support.calls import (
    HEADS,
    KINDS,
    MATRICES,
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
    quantize_activations,
    read,
    rms_norm,
    rope,
    rope_table,
    route,
    run_layers,
    sample,
    set_members,
    silu_mul,
    weight,
)
from support.low_rank import low_rank
from support.refusals import refused
from support.variants import FIRST_CONTEXT, TYPES, every_context, matrix

LARGEST = (1 << 63) - 1

SIZES: list[tuple[Callable[[ops.Context], Call], str, list[int]]] = [
    (rms_norm, "n_tokens", [-1, -LARGEST - 1, LARGEST, 1 << 58]),
    (rms_norm, "n", [0, -1, LARGEST, 1 << 58]),
    (quantize_activations, "n_tokens", [-1, LARGEST]),
    (quantize_activations, "n", [0, -32, 95, 97, 1 << 60]),
    (quantize_activations, "block", [0, -32, 16, 64, 256, 1 << 30]),
    (matmul, "n_tokens", [-1, 1 << 31, LARGEST]),
    (matmul, "n_adapters", [0, -1, 1, (1 << 16) + 1, (1 << 31) - 1]),
    (embed, "n_ids", [-1, LARGEST]),
    (exp, "n", [-1, LARGEST]),
    (silu_mul, "n", [-1, LARGEST]),
    (rope_table, "n_tokens", [-1, LARGEST]),
    (rope_table, "n_pairs", [0, -1, LARGEST]),
    (rope_table, "factor", [np.nan, np.inf, 1e300]),  # type: ignore[list-item]
    (rope, "n_tokens", [-1, LARGEST]),
    (rope, "n_heads", [0, -1]),
    (rope, "head_dim", [0, -2, 1, 13]),
    (cache_write, "n_runs", [-1, -LARGEST]),
    (attention, "n_runs", [-1]),
    (attention, "n_heads", [0, -2, 3, 1026]),
    (attention, "window", [-1, -(1 << 31)]),
    (route, "n_tokens", [-1, 1 << 31]),
    (route, "n_experts", [0, -1, 65, 1 << 30]),
    (route, "n_experts_used", [0, -1, 8, 1 << 30]),
    (route, "n_experts_dropped", [-1, 3, 1 << 30]),
    (route, "expert_min_p", [-0.5, 1.5, np.nan, np.inf]),
    (encode, "rows", [-1, LARGEST, 1 << 58]),
    (encode, "cols", [0, -32, 63, LARGEST]),
    (read, "n", [-1, -LARGEST - 1, LARGEST, (LARGEST >> 6) + 1]),
    (read, "n_streams", [0, -1, 3, 8, 1 << 30]),
    (read, "hint", [-2, 2, 1 << 30]),
    (sample, "n_rows", [-1, -LARGEST - 1, LARGEST, 1 << 58]),
    (sample, "n_vocab", [0, -1, 69, (1 << 24) + 1, LARGEST]),
    (layer_attention, "n_runs", [-1, 0]),
    (layer_attention, "n_tokens", [-1, 0, N - 1, N + 1, LARGEST]),
    (layer_experts, "n_tokens", [-1, (1 << 25) + 1, LARGEST]),
    (layer_attention, "n_adapters", [0, -1, 1, (1 << 16) + 1, (1 << 31) - 1]),
    (layer_experts, "n_adapters", [0, -1, 1, (1 << 16) + 1, (1 << 31) - 1]),
]


@pytest.mark.parametrize(("make", "name", "values"), SIZES, ids=[f"{make.__name__}-{name}" for make, name, _ in SIZES])
def test_sizes_out_of_range(make: Callable[[ops.Context], Call], name: str, values: list[int]) -> None:
    call = make(FIRST_CONTEXT)
    before = [output.array.copy() for output in call.outputs]
    for value in values:
        refused(call.status(**{name: value}))
    for output, contents in zip(call.outputs, before, strict=True):
        np.testing.assert_array_equal(output.array, contents)


@every_context
@every_call
def test_nothing_to_do(ctx: ops.Context, make: Callable[[ops.Context], Call]) -> None:
    call = make(ctx)
    counts = [name for name in ("n_tokens", "n_ids", "n_runs", "rows", "n_rows") if name in call] or ["n"]
    before = [output.array.copy() for output in call.outputs]
    assert call.status(**dict.fromkeys(counts, 0)) == lib.PMX_OK
    for output, contents in zip(call.outputs, before, strict=True):
        np.testing.assert_array_equal(output.array, contents)


def test_passes_that_make_no_sense() -> None:
    rows = np.array([0, N - 1, N, -1, 3, 3], np.int64)
    kept = ffi.from_buffer("int64_t[]", rows)
    wrong = [
        *(({"n_layers": n}, "n_layers") for n in (0, -1, -LARGEST)),
        *(({"kept": kept, "n_kept": n}, "n_kept") for n in (-1, N + 1, LARGEST)),
        ({"kept": kept, "n_kept": 3}, "kept[2]"),
        ({"kept": kept + 3, "n_kept": 1}, "kept[0]"),
        ({"kept": kept + 4, "n_kept": 2}, "kept[1]"),
        ({"layers": ffi.new("pmx_layer *[1]")}, "layers[0]"),
        ({"caches": ffi.new("pmx_cache *[1]")}, "caches[0]"),
    ]
    call = run_layers(FIRST_CONTEXT)
    before = [output.array.copy() for output in call.outputs]
    for changed, name in wrong:
        call = run_layers(FIRST_CONTEXT)
        set_members(call.args["layers"], changed)
        assert refused(call.status()).startswith(f"layers->{name}: expected ")
        for output, contents in zip(call.outputs, before, strict=True):
            assert output.guards_intact
            np.testing.assert_array_equal(output.array, contents)


# --- Weights -----------------------------------------------------------------------------------------------------

WEIGHTS: list[tuple[dict[str, Any], int]] = [
    ({"data": ffi.NULL}, lib.PMX_EINVAL),
    ({"rows": 0}, lib.PMX_EINVAL),
    ({"rows": -1}, lib.PMX_EINVAL),
    ({"rows": 1 << 31}, lib.PMX_EINVAL),
    ({"rows": LARGEST}, lib.PMX_EINVAL),
    ({"cols": 0}, lib.PMX_EINVAL),
    ({"cols": -32}, lib.PMX_EINVAL),
    ({"cols": 95}, lib.PMX_EINVAL),
    ({"cols": 128}, lib.PMX_EINVAL),  # more than a row's bytes hold
    ({"cols": 1 << 31}, lib.PMX_EINVAL),
    ({"cols": LARGEST}, lib.PMX_EINVAL),
    ({"row_bytes": 0}, lib.PMX_EINVAL),
    ({"row_bytes": -102}, lib.PMX_EINVAL),
    ({"row_bytes": 67}, lib.PMX_EINVAL),
    ({"row_bytes": LARGEST}, lib.PMX_EINVAL),  # the second row would lie beyond any memory
    ({"type": -1}, lib.PMX_EUNSUPPORTED),
    ({"type": 4}, lib.PMX_EUNSUPPORTED),
    ({"type": 1 << 30}, lib.PMX_EUNSUPPORTED),
    ({"type": -(1 << 31)}, lib.PMX_EUNSUPPORTED),
]


@pytest.mark.parametrize(
    ("changed", "status"), WEIGHTS, ids=[f"{name}-{value}" for w, _ in WEIGHTS for name, value in w.items()]
)
def test_weights_that_make_no_sense(changed: dict[str, Any], status: int) -> None:
    view, _data = weight(matrix(KINDS.Q8_0, 21, 96, 1), **changed)
    refused(matmul(FIRST_CONTEXT).status(w=view), status)
    refused(embed(FIRST_CONTEXT).status(w=view), status)
    for name in MATRICES:
        call = layer_attention(FIRST_CONTEXT)
        if name != "router" or "data" not in changed:
            set_members(getattr(call.args["layer"], name), changed)
            refused(call.status(), status)
    for i in (0, 4, 8):
        call = layer_experts(FIRST_CONTEXT)
        set_members(call.args["layer"].experts[i], changed)
        refused(call.status(), status)


DELTAS: list[dict[str, Any]] = [
    *({"n_pairs": n} for n in (-1, (1 << 16) + 1, LARGEST, -LARGEST)),
    *({"rank": n} for n in (0, -1, 1025, (1 << 31) - 1)),
    *({"adapter": n} for n in (0, -1, 2, 1 << 16, (1 << 31) - 1, -(1 << 31))),
]


@pytest.mark.parametrize("changed", DELTAS, ids=str)
def test_adapters_that_make_no_sense(changed: dict[str, Any]) -> None:
    def change(view: Any) -> None:
        set_members(view.delta if "n_pairs" in changed else view.delta.pairs[1], changed)

    call = matmul(FIRST_CONTEXT)
    change(call.args["w"])
    assert refused(call.status()).startswith("w->delta->")
    for i in (0, 4, 8):
        call = layer_experts(FIRST_CONTEXT)
        change(call.args["layer"].experts[i])
        assert refused(call.status()).startswith(f"layer->experts[{i}].delta->")
    for name in MATRICES:
        call = layer_attention(FIRST_CONTEXT)
        change(getattr(call.args["layer"], name))
        assert refused(call.status(scales=ffi.NULL) if changed != {"adapter": 2} else call.status())
        for output in call.outputs:
            assert output.guards_intact


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scales_that_are_not_finite(value: float) -> None:
    for make, name in ((matmul, ""), (layer_attention, "batch->"), (layer_experts, "batch->"), (run_layers, "batch->")):
        call = make(FIRST_CONTEXT)
        before = [output.array.copy() for output in call.outputs]
        scales = call.inputs.get("scales")
        scales = ffi.buffer(call["scales"], 8 * N) if scales is None else scales
        np.frombuffer(scales, np.float32)[2 * 3 + 1] = value
        assert refused(call.status()).startswith(f"row 3 of {name}scales: expected finite numbers, found")
        for output, contents in zip(call.outputs, before, strict=True):
            np.testing.assert_array_equal(output.array, contents)


def test_rows_that_are_looked_up_have_no_adapters() -> None:
    view, _keep = weight(matrix(KINDS.Q8_0, 21, 96, 1), low_rank(1, 2, 21, 96))
    assert refused(embed(FIRST_CONTEXT).status(w=view), lib.PMX_EUNSUPPORTED).startswith("w->delta: expected NULL")


def test_the_types_of_the_header_are_those_that_run() -> None:
    assert ffi.typeof("pmx_type").relements == {f"PMX_{kind.name}": kind.value for kind in TYPES}


def test_row_bytes() -> None:
    assert [lib.pmx_row_bytes(kind, 64) for kind in (KINDS.F32, KINDS.F16, KINDS.Q8_0, KINDS.Q4_0)] == [
        256,
        128,
        68,
        36,
    ]
    for kind in set(GGMLQuantizationType) - set(TYPES):
        assert lib.pmx_row_bytes(kind, 256) == -1
    for number, n in ((-1, 32), (99, 32), (1 << 30, 32), (8, 31), (8, -32), (0, -1), (0, LARGEST), (8, LARGEST - 31)):
        assert lib.pmx_row_bytes(number, n) == -1


@pytest.mark.parametrize("kind", [*sorted(set(GGMLQuantizationType) - set(TYPES)), -1, 40, 99, 1 << 30])
def test_types_that_nothing_runs(kind: int) -> None:
    refused(encode(FIRST_CONTEXT).status(type=kind), lib.PMX_EUNSUPPORTED)


def test_ids_out_of_range() -> None:
    for bad in (-1, 9, (1 << 31) - 1, -(1 << 31)):
        call = embed(FIRST_CONTEXT)
        call.inputs["ids"][1] = bad
        assert refused(call.status()) == f"ids[1]: expected 0 to 8, found {bad}"


# --- Caches, runs and layers -------------------------------------------------------------------------------------

RUNS: list[dict[str, Any]] = [
    {"n_tokens": -1},
    {"n_tokens": 67},
    {"n_tokens": (1 << 31) - 1},
    {"first_position": -1},
    {"first_position": 124},
    {"first_position": (1 << 31) - 1},
    {"n_pages": 1},
    {"n_pages": 0},
    {"n_pages": -1},
    {"pages": ffi.NULL},
]


@pytest.mark.parametrize("changed", RUNS, ids=str)
def test_runs_that_make_no_sense(changed: dict[str, Any]) -> None:
    for make in (cache_write, attention, layer_attention):
        call = make(FIRST_CONTEXT)
        if make is layer_attention and changed.get("n_tokens", -1) > 0:
            continue  # its other arrays have N rows, so that no more tokens may be announced
        if changed.get("n_pages") == 1:
            call["runs"][0].first_position = 62
        set_members(call["runs"][0], changed)
        refused(call.status())


def test_positions_beyond_32_bits() -> None:
    pages = np.zeros(1 << 25, np.int32)
    for make in (cache_write, attention):
        call = make(FIRST_CONTEXT)
        set_members(
            call["runs"][0],
            {"first_position": (1 << 31) - 2, "n_pages": len(pages), "pages": pointer(pages, "int32_t *")},
        )
        assert "position" in refused(call.status())


CACHES: list[tuple[dict[str, Any], int]] = [
    ({"k": ffi.NULL}, lib.PMX_EINVAL),
    ({"v": ffi.NULL}, lib.PMX_EINVAL),
    ({"type": 2}, lib.PMX_EUNSUPPORTED),
    ({"type": 8}, lib.PMX_EINVAL),  # q8_0, in heads of 24
    ({"type": -1}, lib.PMX_EUNSUPPORTED),
    ({"n_kv_heads": 0}, lib.PMX_EINVAL),
    ({"n_kv_heads": -2}, lib.PMX_EINVAL),
    ({"head_dim": 0}, lib.PMX_EINVAL),
    ({"head_dim": -8}, lib.PMX_EINVAL),
    ({"head_dim": 12}, lib.PMX_EINVAL),
    ({"head_dim": 1032}, lib.PMX_EINVAL),
    ({"n_pages": 0}, lib.PMX_EINVAL),
    ({"n_pages": -1}, lib.PMX_EINVAL),
]


@pytest.mark.parametrize(
    ("changed", "status"), CACHES, ids=[f"{name}-{value}" for c, _ in CACHES for name, value in c.items()]
)
def test_caches_that_make_no_sense(changed: dict[str, Any], status: int) -> None:
    for make in (cache_write, attention, layer_attention):
        call = make(FIRST_CONTEXT)
        set_members(call.args["cache"], changed)
        refused(call.status(), status)


LAYERS: list[dict[str, Any]] = [
    {"attn_norm": ffi.NULL},
    {"ffn_norm": ffi.NULL},
    *[{name: value} for name in ("hidden", "n_heads", "n_kv_heads", "head_dim") for value in (0, -1, 1, (1 << 31) - 1)],
    {"n_heads": HEADS + 1},
    {"window": -1},
    {"n_experts": 0},
    {"n_experts": 4},
    {"n_experts": -1},
    {"n_experts_used": 0},
    {"n_experts_used": 4},
    {"n_experts_used": -1},
    *[{"n_experts_dropped": n} for n in (-1, 2)],
    *[{"expert_min_p": p} for p in (-0.5, 1.5, np.nan)],
]


@pytest.mark.parametrize("changed", LAYERS, ids=str)
def test_layers_that_make_no_sense(changed: dict[str, Any]) -> None:
    call = layer_attention(FIRST_CONTEXT)
    set_members(call.args["layer"], changed)
    refused(call.status())


@pytest.mark.parametrize(
    ("part", "changed"),
    [
        ("cache", {"n_kv_heads": 1}),
        ("cache", {"n_pages": 0}),
        ("runs", {"first_position": -1}),
        ("layer", {"window": -1}),
        ("layer", {"n_experts_used": 4}),
    ],
    ids=str,
)
def test_a_layer_is_refused_before_anything_is_written(part: str, changed: dict[str, Any]) -> None:
    call = layer_attention(FIRST_CONTEXT)
    before = [output.array.copy() for output in call.outputs]
    set_members(call[part][0], changed)
    refused(call.status())
    for output, contents in zip(call.outputs, before, strict=True):
        np.testing.assert_array_equal(output.array, contents)


def test_layers_without_a_router() -> None:
    call = layer_attention(FIRST_CONTEXT)
    call.args["layer"].router.data = ffi.NULL
    assert "router" in refused(call.status())


@pytest.mark.parametrize(
    "changed",
    [
        {"hidden": 0},
        {"hidden": 65},
        {"experts": ffi.NULL},
        *[{"n_experts": n} for n in (0, 1, -1, 65)],
        *[{"n_experts_used": n} for n in (0, 4)],
        {"n_experts_dropped": 2},
        {"expert_min_p": np.inf},
    ],
    ids=str,
)
def test_experts_that_make_no_sense(changed: dict[str, Any]) -> None:
    call = layer_experts(FIRST_CONTEXT)
    set_members(call.args["layer"], changed)
    refused(call.status())


def test_experts_that_no_router_chooses() -> None:
    for bad in ([1, 0], [1, 1], [-1, 0], [0, 3], [0, (1 << 31) - 1], [-(1 << 31), 0]):
        call = layer_experts(FIRST_CONTEXT)
        call.inputs["ids"][N - 1] = bad
        assert f"row {N - 1}" in refused(call.status())
        assert call.outputs[0].guards_intact
