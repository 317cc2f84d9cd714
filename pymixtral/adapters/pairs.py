"""From the tensors of an adapter's file to its pairs: what the formats share.

Everything is compared with the model before a number is read, so that a file can ask for no more
memory than its own size, widened to float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pymixtral.arguments import shown
from pymixtral.arrays import F32, F64
from pymixtral.errors import AdapterError, CheckpointError
from pymixtral.files.identity import check_unchanged, identity
from pymixtral.files.names import TensorName
from pymixtral.files.stored import StoredTensor
from pymixtral.model.adapter import MAX_RANK, Adapter, LowRank, adapted_shape
from pymixtral.model.config import ModelConfig

LAYER = r"(0|[1-9]\d{0,5})"
"""A layer's or an expert's number in a pattern of names: each number has one form."""

A, B = ".lora_A.weight", ".lora_B.weight"
"""The ends of the names of a pair, of PEFT and of Mistral."""


def adapter_of(pairs: Mapping[TensorName, LowRank], source: str) -> Adapter:
    """Make an adapter of a file's pairs, but for experts whose pair adds nothing.

    Files have zeros for experts that were not adapted, where all experts of a layer are one tensor.

    Args:
        pairs: all of the file.
        source: the file.

    Returns:
        The adapter.

    Raises:
        AdapterError: numbers are not finite.
    """
    return Adapter({name: pair for name, pair in pairs.items() if name.expert is None or pair.b.any()}, source)


@contextmanager
def reading(*paths: Path) -> Iterator[None]:
    """Read files that belong together, and raise what an adapter's reader raises.

    Args:
        paths: the files; one that is not there is none.

    Raises:
        AdapterError: where the block raises CheckpointError, and where a file is another one after it, so
            that settings may be those of other numbers.
    """
    before = {path: identity(path.stat()) for path in paths if path.exists()}
    try:
        yield
    except CheckpointError as error:
        raise AdapterError(str(error)) from None
    for path, one in before.items():
        check_unchanged(path, one, AdapterError)


class Module(NamedTuple):
    """A matrix of the model that a file has a pair for.

    Attributes:
        name: the matrix.
        rope_heads: the number of heads that its rows belong to, where the file has them in Hugging
            Face's rope order; else 0.
    """

    name: TensorName
    rope_heads: int = 0


@dataclass(frozen=True)
class Shapes:
    """Whether pairs fit a model.

    Attributes:
        source: the file, for messages.
        config: the model's numbers.
    """

    source: str
    config: ModelConfig

    def of(self, name: TensorName, tensor: str) -> tuple[int, int]:
        """Rows and columns of a matrix.

        Args:
            name: the matrix.
            tensor: what the file calls it.

        Raises:
            AdapterError: the model does not have it.
        """
        shape = adapted_shape(name, self.config)
        if shape is None:
            c = self.config
            raise AdapterError(
                f"{self.source}: tensor {shown(tensor)}: expected matrices of a model of {c.n_layers} layers and "
                f"{c.n_experts} experts, found one of {name}, which it does not have: use the adapter's own base model"
            )
        return shape

    def check_rank(self, rank: int, tensor: str) -> None:
        """Raises AdapterError for a rank that is out of range."""
        if not 1 <= rank <= MAX_RANK:
            raise AdapterError(
                f"{self.source}: tensor {shown(tensor)}: expected a rank from 1 to {MAX_RANK}, found {rank}"
            )

    def check(self, tensor: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
        """Raises AdapterError for a tensor of another shape than that of the pair for the model's matrix."""
        if found != expected:
            raise AdapterError(
                f"{self.source}: tensor {shown(tensor)}: expected shape {list(expected)}, as the model has it, found "
                f"{list(found)}: use the adapter's own base model"
            )


def paired(source: str, tensors: Mapping[str, StoredTensor]) -> Iterator[tuple[str, StoredTensor, StoredTensor]]:
    """Put the two tensors of each pair together.

    Args:
        source: the file, for messages.
        tensors: all of a file by name; each name ends as one of a pair.

    Yields:
        The name without its end, and the two tensors.

    Raises:
        AdapterError: one of a pair is missing.
    """
    for name in sorted({name.removesuffix(A).removesuffix(B) for name in tensors}):
        for end in (A, B):
            if name + end not in tensors:
                raise AdapterError(f"{source}: expected both tensors of a pair, found no {shown(name + end)}")
        yield name, tensors[name + A], tensors[name + B]


def simple_pair(
    shapes: Shapes, module: Module, tensor: str, a: StoredTensor, b: StoredTensor, scale: Callable[[int], float]
) -> LowRank:
    """Read a pair that is of one matrix.

    Args:
        shapes: the model's.
        module: the matrix.
        tensor: what the file calls it.
        a: [rank, cols].
        b: [rows, rank].
        scale: of a rank, what the product is multiplied by.

    Returns:
        The pair, its rows in GGUF's order.

    Raises:
        AdapterError: a shape is not the model's, or the rank is out of range.
        CheckpointError: the file cannot be read.
    """
    rows, cols = shapes.of(module.name, tensor)
    rank = a.shape[0] if a.shape else 0
    shapes.check_rank(rank, tensor + A)
    shapes.check(tensor + A, a.shape, (rank, cols))
    shapes.check(tensor + B, b.shape, (rows, rank))
    factor, columns = scale(rank), b.floats()
    if module.rope_heads:
        columns = columns[rope_rows(module.rope_heads, rows)]
    return LowRank(a.floats(), scaled(columns.T, factor))


def rope_rows(n_heads: int, n_rows: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Hugging Face's row for each of GGUF's rows of queries or keys: element i + half of a head comes after element i.

    Args:
        n_heads: heads of queries, or of keys.
        n_rows: rows of all heads.

    Returns:
        int64 [n_rows].
    """
    rows = np.arange(n_rows, dtype=np.int64).reshape(n_heads, 2, n_rows // n_heads // 2)
    return rows.swapaxes(1, 2).reshape(n_rows)


def scaled(x: F32, factor: float) -> F32:
    """Multiply with one rounding.

    Args:
        x: float32, of any strides.
        factor: what it is multiplied by.

    Returns:
        float32 of the same shape, C-contiguous, new.
    """
    if factor == 1.0:
        return np.array(x, np.float32, order="C")
    product: F64 = np.multiply(x, factor, dtype=np.float64)
    with np.errstate(over="ignore"):  # Adapter refuses infinity by name
        return np.ascontiguousarray(product, np.float32)
