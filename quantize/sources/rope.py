"""Rotary position embedding in config.json: the base, and what scales the frequencies.

transformers 4 has rope_theta, and the scaling in rope_scaling; transformers 5 has all in
rope_parameters. Its meaning of each key: transformers' modeling_rope_utils.
"""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import NoReturn

from pymixtral.arguments import shown
from pymixtral.errors import CheckpointError, UnsupportedError
from pymixtral.model.rope import UNSCALED, RopeScaling, llama3_factors

from .values import Values

_KEYS = ("rope_scaling", "rope_parameters")

_FACTOR = "llama.rope.scaling.factor"
_POSITIONS = "llama.rope.scaling.original_context_length"
_FAST, _SLOW = "llama.rope.scaling.yarn_beta_fast", "llama.rope.scaling.yarn_beta_slow"
"""Rotations over the original context, whose limits llama3's have too."""


def read_rope(values: Values, head_dim: int, n_ctx_train: int) -> tuple[float, RopeScaling]:
    """Reads the base and the scaling.

    Args:
        values: config.json, with the defaults of its class.
        head_dim: elements of a head.
        n_ctx_train: positions of the context.

    Returns:
        The base, and the scaling.

    Raises:
        CheckpointError: a value is missing or makes no sense.
        UnsupportedError: a scaling of another kind, or one with an option that is not computed.
    """
    parameters = values.inner("rope_parameters")
    holder = parameters if parameters and parameters.has("rope_theta") else values
    base = holder.number("rope_theta", "llama.rope.freq_base")
    found = [_read_scaling(inner, base, head_dim, n_ctx_train) for inner in map(values.inner, _KEYS) if inner]
    scalings = [scaling for scaling in found if scaling != UNSCALED]
    if len(scalings) == 2 and scalings[0] != scalings[1]:
        raise values.wrong("rope_parameters", "the scaling of rope_scaling")
    return base, scalings[0] if scalings else UNSCALED


def _read_scaling(found: Values, base: float, head_dim: int, n_ctx_train: int) -> RopeScaling:
    if found.get("partial_rotary_factor", 1.0) != 1.0:
        _refuse(found, "partial_rotary_factor", "none or 1.0")
    key = "rope_type" if "rope_type" in found.values else "type"
    kind = found.get(key, "default")
    if kind not in ("default", "linear", "llama3", "yarn"):
        _refuse(found, key, "default, linear, llama3 or yarn")
    if kind == "default":
        return UNSCALED
    factor = found.number("factor", _FACTOR)
    if factor < 1.0:
        raise found.wrong("factor", "a number of at least 1")
    if factor == 1.0:
        return UNSCALED
    if kind == "linear":
        return RopeScaling(kind, factor)
    if kind == "llama3":
        return _read_llama3(found, factor, base, head_dim)
    return _read_yarn(found, factor, base, n_ctx_train)


def _read_llama3(found: Values, factor: float, base: float, head_dim: int) -> RopeScaling:
    low, high = found.number("low_freq_factor", _SLOW), found.number("high_freq_factor", _FAST)
    if high <= low:
        raise found.wrong("high_freq_factor", f"more than low_freq_factor, which is {low:g}")
    before = found.integer("original_max_position_embeddings", _POSITIONS)
    return RopeScaling(factors=llama3_factors(base, head_dim, factor, low, high, before))


def _read_yarn(found: Values, factor: float, base: float, n_ctx_train: int) -> RopeScaling:
    """The attention factor is written as one number, which GGUF has: yarn's own is divided out of it."""
    if found.get("truncate", True) is not True:
        _refuse(found, "truncate", "none or true")
    if base <= 1.0:
        raise CheckpointError(f"{found.where}: expected a rope_theta of more than 1 for yarn, found {base:g}")
    given = {key: found.number(key, gguf_key) for key, gguf_key in _YARN.items() if found.has(key)}
    scaling = RopeScaling(
        "yarn",
        factor,
        n_ctx_original=found.integer("original_max_position_embeddings", _POSITIONS)
        if found.has("original_max_position_embeddings")
        else n_ctx_train,
        beta_fast=given.get("beta_fast") or RopeScaling.beta_fast,
        beta_slow=given.get("beta_slow") or RopeScaling.beta_slow,
    )
    wanted = given.get("attention_factor")
    if wanted is None and given.get("mscale") and given.get("mscale_all_dim"):
        wanted = _magnitude(factor, given["mscale"]) / _magnitude(factor, given["mscale_all_dim"])
    if wanted is None:
        return scaling
    return replace(scaling, attn_factor=wanted / scaling.table_factor())


_YARN = {
    "attention_factor": "llama.rope.scaling.attn_factor",
    "beta_fast": _FAST,
    "beta_slow": _SLOW,
    "mscale": "llama.rope.scaling.yarn_log_multiplier",
    "mscale_all_dim": "llama.rope.scaling.yarn_log_multiplier",
}
"""Numbers that yarn may have, with the GGUF keys whose limits they have."""


def _magnitude(factor: float, scale: float) -> float:
    """DeepSeek's attention factor of a part, which 1 makes yarn's own."""
    return float(1 + Decimal(scale) * Decimal(factor).ln() / 10)


def _refuse(found: Values, key: str, expected: str) -> NoReturn:
    raise UnsupportedError(
        f"{found.where}: {key}: expected {expected}, found {shown(found.get(key))}, which is not supported"
    )
