"""Rows of a checkpoint tensor as floats, in the file's order, to the bytes of a type and back."""

from __future__ import annotations

import numpy as np
from gguf import GGMLQuantizationType

from pymixtral import ops
from pymixtral.arrays import F32, I64, U8
from pymixtral.errors import CheckpointError, NonFiniteError
from pymixtral.files.types import FLOAT_TYPES, Matrix, show_type
from pymixtral.reference.blocks import dequantize

from .sources.checkpoint import Checkpoint
from .sources.targets import Target, rope_order


def part_rows(checkpoint: Checkpoint, target: Target, source: str, rows: slice | I64) -> tuple[F32, int]:
    """float32 [rows, cols] of one source of a target, and how many of them were not finite and are 0, if the checkpoint allows it. Raises
    CheckpointError for quantized rows whose scales are not finite, if it does not."""
    tensor = checkpoint.tensors[source]
    if len(target.part_shape) == 1:
        rows = slice(None)
    elif target.rope_heads:
        rows = rope_order(target.rope_heads, target.rows // target.rope_heads)[rows]
    try:
        weights = tensor.floats(rows).reshape(-1, target.cols)
    except NonFiniteError:
        if not checkpoint.zero_nonfinite:
            raise _damaged(source) from None
        weights = dequantize(Matrix(tensor.type, tensor.raw(rows)))
    if not checkpoint.zero_nonfinite:
        return weights, 0
    wrong = ~np.isfinite(weights)
    weights[wrong] = 0
    return weights, int(np.count_nonzero(wrong))


def quantized_rows(checkpoint: Checkpoint, target: Target, source: str, rows: slice, kind: GGMLQuantizationType) -> U8 | None:
    """uint8 [rows, row_bytes] of a source that is quantized as `kind` already: encoding it once more would only add errors. None of
    others."""
    tensor = checkpoint.tensors[source]
    if tensor.type != kind or tensor.dequantize is None or kind in FLOAT_TYPES or target.rope_heads:
        return None
    return tensor.raw(rows)


def encode(context: ops.Context, kind: GGMLQuantizationType, weights: F32, source: str, importance: F32 | None) -> U8:
    """weights: float32 [rows, cols]; importance: float32 [cols]. uint8 [rows, row_bytes]. Raises CheckpointError that names the source
    for weights that are not finite or too large for the type."""
    try:
        return ops.encode(context, kind, weights, importance)
    except NonFiniteError:
        if not np.isfinite(weights).all():
            raise _damaged(source) from None
        largest, name = np.abs(weights).max(), show_type(kind)
        raise CheckpointError(f"tensor {source} holds a weight of magnitude {largest:.3g}, too large for {name}; use f32") from None


def _damaged(source: str) -> CheckpointError:
    return CheckpointError(
        f"tensor {source} holds NaN or infinity: the checkpoint is damaged, get it again, or have such weights written as 0 with "
        "zero_nonfinite=True"
    )


def decode(context: ops.Context, kind: GGMLQuantizationType, data: U8) -> F32:
    """data: uint8 [rows, row_bytes]; returns float32 [rows, cols]."""
    return ops.embed(context, Matrix(kind, np.ascontiguousarray(data)), np.arange(len(data), dtype=np.int32))
