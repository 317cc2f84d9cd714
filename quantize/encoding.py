"""Rows of a checkpoint as floats in the file's order, to the bytes of a type, and back."""

from __future__ import annotations

import numpy as np
from gguf import GGMLQuantizationType

from pymixtral import ops
from pymixtral.arrays import F32, I64, U8
from pymixtral.errors import CheckpointError, NonFiniteError
from pymixtral.files.types import Matrix, show_type
from pymixtral.reference.blocks import dequantize

from .sources.checkpoint import Checkpoint
from .sources.targets import Target, rope_order


def part_rows(checkpoint: Checkpoint, target: Target, source: str, rows: slice | I64) -> tuple[F32, int]:
    """Reads rows as floats.

    Args:
        checkpoint: the open checkpoint.
        target: the tensor of the file that the rows go to.
        source: the one of its sources that they come from.
        rows: which, in the file's order.

    Returns:
        float32 [rows, cols], and how many of them were not finite and are 0, if the checkpoint
        allows it.

    Raises:
        CheckpointError: the rows cannot be read, or are of a quantized type and have scales that
            are not finite, which the checkpoint does not allow.
    """
    tensor = checkpoint.tensors[source]
    stored = _stored_rows(target, rows)
    try:
        weights: F32 = tensor.floats(stored).reshape(-1, target.cols)
    except NonFiniteError:
        if not checkpoint.zero_nonfinite:
            raise _damaged(source) from None
        weights = dequantize(Matrix(tensor.type, tensor.raw(stored)))
    weights = checkpoint.merged.add(weights, target, source, rows)
    if not checkpoint.zero_nonfinite:
        return weights, 0
    wrong = ~np.isfinite(weights)
    weights[wrong] = 0
    return weights, int(np.count_nonzero(wrong))


def _stored_rows(target: Target, rows: slice | I64) -> slice | I64:
    """Rows in the file's order as those of the checkpoint."""
    if len(target.part_shape) == 1:
        return slice(None)
    if target.rope_heads:
        return rope_order(target.rope_heads, target.rows // target.rope_heads)[rows]
    return rows


def quantized_rows(
    checkpoint: Checkpoint, target: Target, source: str, rows: slice, kind: GGMLQuantizationType, zeroing: bool
) -> U8 | None:
    """Reads rows that are in the wanted type already: encoding them again would only add errors.

    Args:
        checkpoint: the open checkpoint.
        target: the tensor of the file that the rows go to.
        source: the one of its sources that they come from.
        rows: which.
        kind: the wanted type.
        zeroing: some of their weights are not finite, and are to be 0.

    Returns:
        uint8 [rows, row_bytes], or None of a source that is not quantized as `kind`, or that adapters change.

    Raises:
        CheckpointError: the rows cannot be read, or have scales that are not finite.
    """
    if checkpoint.merged.changes(target, source):
        return None
    try:
        return checkpoint.tensors[source].encoded(kind, _stored_rows(target, rows), zeroing)
    except NonFiniteError:
        raise _damaged(source) from None


def encode(context: ops.Context, kind: GGMLQuantizationType, weights: F32, source: str, importance: F32 | None) -> U8:
    """Encodes rows.

    Args:
        context: the threads.
        kind: the type.
        weights: float32 [rows, cols].
        source: the name of their tensor, for messages.
        importance: float32 [cols], or None.

    Returns:
        uint8 [rows, row_bytes].

    Raises:
        CheckpointError: a weight is not finite, or too large for the type.
    """
    try:
        return ops.encode(context, kind, weights, importance)
    except NonFiniteError:
        if not np.isfinite(weights).all():
            raise _damaged(source) from None
        largest, name = np.abs(weights).max(), show_type(kind)
        raise CheckpointError(
            f"tensor {source}: expected weights that {name} can hold, found one of magnitude {largest:.3g}: use f32"
        ) from None


def _damaged(source: str) -> CheckpointError:
    return CheckpointError(
        f"tensor {source}: expected finite weights, found NaN or infinity: the checkpoint is damaged, get it again, "
        "or have such weights written as 0 with zero_nonfinite=True"
    )


def decode(context: ops.Context, kind: GGMLQuantizationType, data: U8) -> F32:
    """Decodes rows.

    Args:
        context: the threads.
        kind: the type.
        data: uint8 [rows, row_bytes].

    Returns:
        float32 [rows, cols].
    """
    return ops.embed(context, Matrix(kind, np.ascontiguousarray(data)), np.arange(len(data), dtype=np.int32))
