"""Pointers that are NULL: each that an entry point needs is named, and none is forgotten."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from pymixtral import ops
from pymixtral.ops.native import ffi, lib
from support.calls import (
    CALLS,
    MATRICES,
    Call,
    every_call,
    layer_attention,
    layer_experts,
    run_layers,
)
from support.paths import CSRC
from support.refusals import refused
from support.variants import FIRST_CONTEXT, every_context

UNREAD = {
    "pmx_layer_attention": ["layer->experts"],
    "pmx_layer_experts": [
        *("batch->cosines", "batch->sines", "runs", "layer->attn_norm", "layer->ffn_norm"),
        *(f"layer->{name}." for name in MATRICES),
    ],
    "pmx_run_layers": ["layers->observers", "layers->kept", "layers->choices"],
    "pmx_embed": ["w->delta"],
    "pmx_sample": ["samplers[0]->allowed", "samplers[0]->mask", "samplers[0]->dry_breaker_tokens"],
}
"""Beginnings of the pointers that an entry point is given and does not read."""

CONTEXT = ffi.typeof("pmx_ctx *").item

Pointer = tuple[str, Callable[[Any], None], Any]


def pointers(call: Call) -> list[Pointer]:
    """Every pointer that a call needs, those inside of structs too: its name in C, what sets it, and its value."""
    found: list[Pointer] = []
    for name, value in call.args.items():
        if isinstance(value, ffi.CData):
            found.append((name, partial(call.args.__setitem__, name), value))
            if name == "samplers":
                found.append((f"{name}[0]", partial(value.__setitem__, 0), value[0]))
                found += members(f"{name}[0]->", value[0])
                continue
            found += members(f"{name}[0].", value[0]) if name == "runs" else members(f"{name}->", value)
    unread = ("observer", "importance", "scales", "batch->scales", *UNREAD.get(call.entry, ()))
    return [pointer for pointer in found if not pointer[0].startswith(unread) and not pointer[0].endswith("delta")]


def members(prefix: str, struct: Any) -> Iterator[Pointer]:
    """The pointers inside of a struct, or of what a pointer points to, if that is a struct."""
    kind = ffi.typeof(struct)
    kind = kind.item if kind.kind == "pointer" else kind
    for field, member in kind.fields if kind.kind == "struct" and kind is not CONTEXT else []:
        value, name = getattr(struct, field), f"{prefix}{field}".removeprefix("batch->" if field == "runs" else "")
        if member.type.kind == "struct":
            yield from members(f"{name}.", value)
        elif member.type.kind == "pointer":
            yield name, partial(setattr, struct, field), value
            if field == "delta" and value:
                yield from members(f"{name}->", value)
            for i in range({"runs": 1, "experts": 9, "pairs": 2}.get(field, 0) if value else 0):
                yield from members(f"{name}[{i}].", value[i])


@every_context
@every_call
def test_the_pointer_that_is_null_is_named(ctx: ops.Context, make: Callable[[ops.Context], Call]) -> None:
    call = make(ctx)
    before = [output.array.copy() for output in call.outputs]
    for name, change, value in pointers(call):
        change(ffi.NULL)
        assert refused(call.status()) == f"{name}: expected a pointer, found NULL"
        change(value)
    for output, contents in zip(call.outputs, before, strict=True):
        assert output.guards_intact
        np.testing.assert_array_equal(output.array, contents)
    assert call.status() == lib.PMX_OK


def test_no_pointer_is_forgotten() -> None:
    declared = (CSRC / "pmx.h").read_text()
    for make in CALLS:
        call = make(FIRST_CONTEXT)
        parameters = re.search(rf"{call.entry}\(([^)]*)\);", declared)
        assert parameters
        names = {
            re.sub(r".*\*", "", parameter, flags=re.S) for parameter in parameters[1].split(",") if "*" in parameter
        }
        found = {name for name, _, _ in pointers(call)}
        assert {name for name in found if name.isidentifier()} >= names - {"observer", "importance", "scales"}
    inside = {name for name, _, _ in pointers(layer_attention(FIRST_CONTEXT)) if not name.isidentifier()}
    batch = {f"batch->{name}" for name in ("x", "normed", "ids", "weights")}
    low_rank = [f"delta->pairs{rest}" for rest in ("", *(f"[{i}].{name}" for i in range(2) for name in "ab"))]
    matrices = {f"layer->{name}.{member}" for name in MATRICES for member in ("data", *low_rank)}
    rest = {
        "batch->cosines",
        "batch->sines",
        "layer->attn_norm",
        "layer->ffn_norm",
        "runs[0].pages",
        "cache->k",
        "cache->v",
    }
    assert inside == batch | matrices | rest
    inside = {name for name, _, _ in pointers(run_layers(FIRST_CONTEXT)) if not name.isidentifier()}
    assert inside == batch | {"layers->layers", "layers->caches", "batch->cosines", "batch->sines", "runs[0].pages"}
    inside = {name for name, _, _ in pointers(layer_experts(FIRST_CONTEXT)) if not name.isidentifier()}
    experts = {f"layer->experts[{i}].{member}" for i in range(9) for member in ("data", *low_rank)}
    assert inside == batch | {"layer->experts"} | experts
