"""pmx_sample: what a sampler's struct may not hold, and what a failed call leaves behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pymixtral import ops
from pymixtral.ops.native import ffi, lib
from support.calls import ALL_BANNED, N, sample
from support.variants import FIRST_CONTEXT, every_context

LARGEST = (1 << 63) - 1
WRONG: dict[str, list[Any]] = {
    "temperature": [-1, np.nan, np.inf],
    "repetition_penalty": [0, -1, np.nan, np.inf],
    "presence_penalty": [np.nan, 1e10, -np.inf],
    "frequency_penalty": [np.nan, -1e10, np.inf],
    "typical_p": [-0.1, 1.1, np.nan],
    "top_p": [-0.1, 1.1, np.nan],
    "min_p": [-0.1, 1.1, np.nan],
    "dry_multiplier": [-1, 2e9, np.nan],
    "dry_base": [0.9, np.inf, np.nan],
    "dry_allowed_length": [0, -1],
    "dry_window": [-1],
    "top_n_sigma": [-1, np.inf, np.nan],
    "xtc_probability": [-0.1, 1.1, np.nan],
    "mirostat_tau": [-1, np.inf, np.nan],
    "top_k": [-1, -LARGEST - 1],
    "penalty_window": [-1, -LARGEST - 1],
    "n_bias": [-1, -LARGEST - 1],
    "n_end": [-1],
    "n_text": [-1, 1 << 31],
    "min_text": [-1],
}


@pytest.mark.parametrize("name", WRONG)
def test_numbers_out_of_range_are_named(name: str) -> None:
    for value in WRONG[name]:
        call = sample(FIRST_CONTEXT)
        setattr(call.args["samplers"][0], name, value)
        assert call.status() == lib.PMX_EINVAL
        assert ffi.string(lib.pmx_message()).decode().startswith(f"samplers[0]->{name}: expected ")


@pytest.mark.parametrize(
    ("switch", "name", "values"),
    [
        ("xtc_probability", "xtc_threshold", [-0.1, 1.1, np.nan]),
        ("mirostat_tau", "mirostat_eta", [-0.1, 1.1, np.nan]),
        ("mirostat_tau", "state.surprise", [np.nan, np.inf, -np.inf]),
    ],
)
def test_numbers_of_a_step_are_read_only_where_it_is_on(switch: str, name: str, values: list[float]) -> None:
    for value in values:
        call = sample(FIRST_CONTEXT)
        struct = call.args["samplers"][0]
        setattr(struct.state if "." in name else struct, name.rpartition(".")[2], value)
        assert call.status() == lib.PMX_OK
        setattr(struct, switch, 0.5)
        assert call.status() == lib.PMX_EINVAL
        assert ffi.string(lib.pmx_message()).decode().startswith(f"samplers[0]->{name}: expected ")


@pytest.mark.parametrize("name", ["bad_words", "dry_breakers"])
def test_sequences_that_make_no_sense_are_named(name: str) -> None:
    for member, at, value, place in (
        ("n", None, -1, "n"),
        ("ends", 0, 0, "ends[0]"),
        ("ends", 0, -5, "ends[0]"),
    ):
        call = sample(FIRST_CONTEXT)
        struct = getattr(call.args["samplers"][0], name)
        if at is None:
            setattr(struct, member, value)
        else:
            getattr(struct, member)[at] = value
        assert call.status() == lib.PMX_EINVAL
        assert ffi.string(lib.pmx_message()).decode().startswith(f"samplers[0]->{name}.{place}: expected ")
    call = sample(FIRST_CONTEXT)
    getattr(call.args["samplers"][0], name).ids[1] = 70
    assert call.status() == lib.PMX_EINVAL
    assert ffi.string(lib.pmx_message()).decode() == f"samplers[0]->{name}.ids[1]: expected 0 to 69, found 70"


@pytest.mark.parametrize("name", ["bias_ids", "end_ids", "text"])
@pytest.mark.parametrize("bad", [-1, 70, (1 << 31) - 1, -(1 << 31)])
def test_ids_outside_the_vocabulary_are_named(name: str, bad: int) -> None:
    call = sample(FIRST_CONTEXT)
    getattr(call.args["samplers"][0], name)[1] = bad
    assert call.status() == lib.PMX_EINVAL
    assert ffi.string(lib.pmx_message()).decode() == f"samplers[0]->{name}[1]: expected 0 to 69, found {bad}"


def test_ids_before_the_window_are_not_looked_at() -> None:
    call = sample(FIRST_CONTEXT)
    sampler = call.args["samplers"][0]
    sampler.text[0] = -1
    assert call.status() == lib.PMX_EINVAL
    sampler.dry_window = 4
    assert call.status() == lib.PMX_OK


def states(samplers: Any) -> list[bytes]:
    return [bytes(ffi.buffer(samplers[i])) for i in range(N)]


@every_context
def test_a_failed_row_and_a_failed_call_leave_samplers_as_they_were(ctx: ops.Context) -> None:
    call = sample(ctx)
    samplers = call.args["samplers"]
    before = states(samplers)
    ctx.cancel()
    try:
        assert call.status() == lib.PMX_ECANCELED
    finally:
        ctx.cancel(False)
    assert states(samplers) == before
    assert call.status() == lib.PMX_OK
    assert [i for i, (a, b) in enumerate(zip(before, states(samplers), strict=True)) if a == b] == [ALL_BANNED]


@every_context
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.nan])
def test_a_row_that_is_not_finite_fails_alone(ctx: ops.Context, bad: float) -> None:
    call = sample(ctx)
    call.inputs["logits"][1, [9, 60]] = bad
    assert call.status() == lib.PMX_OK
    ids, statuses = (output.array for output in call.outputs)
    assert (statuses[1], ids[1]) == (lib.PMX_ENONFINITE, 9)
    others = [0, 2, 4]
    assert ids[others].tolist() == call.want[0][others].tolist()
