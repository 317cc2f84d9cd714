"""Parts of a model: consecutive layers, and the bytes of a file that belong to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pymixtral.arrays import U8
from pymixtral.errors import InvalidArgumentError
from pymixtral.files.gguf import GGUFFile
from pymixtral.files.names import TensorName
from pymixtral.model.config import ModelConfig
from pymixtral.model.weights import ModelWeights


def layer_ranges(sizes: Sequence[int], beside: int, n: int) -> list[range]:
    """Cut a model into parts, so that the largest is as small as can be.

    Args:
        sizes: the bytes of each layer.
        beside: bytes that the first part has beside its layers.
        n: the number of parts.

    Returns:
        The layers of each part, at least one.

    Raises:
        InvalidArgumentError: for more parts than layers.
    """
    if not 1 <= n <= len(sizes):
        raise InvalidArgumentError(
            f"expected 1 to {len(sizes)} hosts for a model of {len(sizes)} layers, found {n}: each takes a layer"
        )

    def extended(some: _Parts, end: int) -> _Parts:
        begin = some.parts[-1].stop
        size = sum(sizes[begin:end])
        return _Parts(max(some.largest, size), some.squares + size * size, (*some.parts, range(begin, end)))

    first = [sum(sizes[:end]) + beside for end in range(1, len(sizes) + 1)]
    best = {end: _Parts(size, size * size, (range(end),)) for end, size in enumerate(first, 1)}
    for _ in range(n - 1):
        best = {
            end: min((extended(some, end) for begin, some in best.items() if begin < end), key=_unevenness)
            for end in range(min(best) + 1, len(sizes) + 1)
        }
    return list(best[len(sizes)].parts)


@dataclass(frozen=True)
class _Parts:
    """Some layers of a model, cut. Of those with one largest part, the squares tell which are the more even."""

    largest: int
    squares: int
    parts: tuple[range, ...]


def _unevenness(some: _Parts) -> tuple[int, int]:
    return some.largest, some.squares


def part_bytes(parts: Sequence[range], sizes: Sequence[int], beside: int) -> list[int]:
    """Count the bytes of parts.

    Args:
        parts: the layers of each.
        sizes: as for layer_ranges().
        beside: as for layer_ranges().

    Returns:
        The bytes of each.
    """
    return [sum(sizes[i] for i in part) + (0 if part.start else beside) for part in parts]


def part_of(weights: ModelWeights, config: ModelConfig, layers: range) -> tuple[ModelWeights, ModelConfig]:
    """Make a model of some layers of another one.

    Args:
        weights: of the whole model.
        config: its numbers.
        layers: consecutive layers, at least one.

    Returns:
        Weights and numbers of a model that has these layers alone.
    """
    some = slice(layers.start, layers.stop)
    return (
        replace(weights, layers=weights.layers[some]),
        replace(config, n_layers=len(layers), fewer_experts=config.fewer_experts[some]),
    )


def mapped_bytes(file: GGUFFile, layers: range) -> list[U8]:
    """Find what a part reads of the mapped file.

    Args:
        file: the model.
        layers: the part's; the one with the first layer has embedding, last norm and head, too.

    Returns:
        The bytes of each of its tensors, views.
    """
    found: list[U8] = []
    for name, tensor in file.tensors.items():
        parsed = TensorName.parse(name)
        layer = None if parsed is None else parsed.layer
        if (layers.start == 0) if layer is None else (layer in layers):
            found.append(tensor.data.reshape(-1))
    return found


def layer_bytes(file: GGUFFile, n_layers: int) -> tuple[list[int], int]:
    """Count the bytes of a file's layers.

    Args:
        file: the model.
        n_layers: its layers.

    Returns:
        The bytes of each layer, and those of everything else.
    """
    sizes = [sum(map(len, mapped_bytes(file, range(i, i + 1)))) for i in range(1, n_layers)]
    total = sum(tensor.data.nbytes for tensor in file.tensors.values())
    first = sum(
        tensor.data.nbytes
        for name, tensor in file.tensors.items()
        if (parsed := TensorName.parse(name)) is not None and parsed.layer == 0
    )
    return [first, *sizes], total - first - sum(sizes)
