"""Writes a GGUF file in one pass: the header, then each tensor in chunks of rows.

No tensor is ever whole in memory. One thread reads rows and widens them, one encodes (with all
cores, in C) and one writes, so that none waits for another.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from pymixtral import ops
from pymixtral.arrays import F32, U8
from pymixtral.files.writing import padding

from .encoding import encode, part_rows, quantized_rows
from .pipeline import WriteBehind, read_ahead
from .planning import ALIGNMENT, Plan, PlannedTensor
from .sources.checkpoint import Checkpoint

CHUNK_WEIGHTS = 1 << 22
"""Weights that are encoded at a time: 16 MB as f32, and some ten such arrays exist at a time."""


@dataclass(frozen=True, eq=False)
class Chunk:
    """Rows of one source tensor, before and after encoding.

    Attributes:
        tensor: the tensor of the file that they belong to.
        source: which of its sources.
        weights: float32 [rows, cols].
        n_zeroed: those of them that were not finite and are 0.
        data: uint8 [rows, row_bytes].
    """

    tensor: PlannedTensor
    source: int
    weights: F32
    n_zeroed: int
    data: U8


def write_gguf(
    path: Path, header: bytes, checkpoint: Checkpoint, plan: Plan, context: ops.Context, checksums: dict[str, int]
) -> Generator[Chunk, None, None]:
    """Writes the file.

    Args:
        path: the file.
        header: what comes before the data.
        checkpoint: where the weights come from.
        plan: the tensors and their types.
        context: the threads that encode.
        checksums: receives, once all is written, the CRC-32 of each tensor's data and padding, by
            its name.

    Yields:
        Each chunk.

    Raises:
        CheckpointError: a tensor cannot be read or encoded.
        OSError: the file cannot be written.
    """
    with read_ahead(_pieces(checkpoint, plan)) as pieces, WriteBehind(path) as file:
        file.write(header)
        file.mark()
        for tensor, i, weights, n_zeroed, raw, is_last in pieces:
            importance = tensor.importance.weights[i] if tensor.importance else None
            data = (
                raw if raw is not None else encode(context, tensor.type, weights, tensor.target.sources[i], importance)
            )
            file.write(data)
            if is_last:
                if n_padding := padding(tensor.n_bytes, ALIGNMENT):
                    file.write(bytes(n_padding))
                file.mark()
            yield Chunk(tensor, i, weights, n_zeroed, data)
    checksums |= {
        tensor.target.name: checksum for tensor, checksum in zip(plan.tensors, file.checksums[1:], strict=True)
    }


def _pieces(checkpoint: Checkpoint, plan: Plan) -> Iterator[tuple[PlannedTensor, int, F32, int, U8 | None, bool]]:
    """Rows before they are encoded.

    Yields:
        The tensor, which of its sources, float32 [rows, cols] in the file's order, how many of them
        were zeroed, their bytes where they are in the tensor's type already, and whether the tensor
        ends here.
    """
    for tensor in plan.tensors:
        target = tensor.target
        step = max(1, CHUNK_WEIGHTS // target.cols)
        for i, source in enumerate(target.sources):
            for start in range(0, target.rows, step):
                rows = slice(start, min(start + step, target.rows))
                is_last = rows.stop == target.rows and i == len(target.sources) - 1
                weights, n_zeroed = part_rows(checkpoint, target, source, rows)
                raw = quantized_rows(checkpoint, target, source, rows, tensor.type, n_zeroed > 0)
                yield tensor, i, weights, n_zeroed, raw, is_last
