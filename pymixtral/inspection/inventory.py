"""The tensors of a model by class: weights and bytes of each, and how much one token uses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

from gguf import GGMLQuantizationType

from pymixtral.files.names import CLASSES, tensor_class
from pymixtral.files.types import row_bytes
from pymixtral.model.config import ModelConfig


@dataclass(frozen=True)
class Part:
    """A tensor without its data.

    Attributes:
        name: the tensor's name.
        type: GGUF's type of its weights.
        shape: slowest dimension first; shape[-1] is a multiple of the type's block.
    """

    name: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]

    @property
    def n_weights(self) -> int:
        """The number of its weights."""
        return prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """The bytes of its blocks."""
        return row_bytes(self.type, self.n_weights)

    @property
    def tensor_class(self) -> str:
        """Its class, one of pymixtral.files.names.CLASSES."""
        return tensor_class(self.name)


@dataclass(frozen=True)
class ClassTotal:
    """The tensors of one class together.

    Attributes:
        name: the class.
        n_tensors: how many there are.
        n_weights: of all of them.
        n_bytes: of all of them.
        types: the bytes of each type, most bytes first.
    """

    name: str
    n_tensors: int
    n_weights: int
    n_bytes: int
    types: dict[GGMLQuantizationType, int]

    @property
    def bits_per_weight(self) -> float:
        """Of its tensors together."""
        return 8 * self.n_bytes / self.n_weights


class Inventory:
    """The tensors of one model.

    Args:
        parts: the tensors.
        n_experts: experts of a layer; 1 in a dense model.
        experts_used: experts that a token uses, a number for each layer or one for all; 1 in a
            dense model.
    """

    def __init__(self, parts: Iterable[Part], n_experts: int = 1, experts_used: Sequence[int] = (1,)) -> None:
        self.parts = list(parts)
        self.n_experts = n_experts
        self.experts_used = experts_used
        groups: dict[str, list[Part]] = {name: [] for name in CLASSES}
        for part in self.parts:
            groups[part.tensor_class].append(part)
        self.classes = {name: _total(name, group) for name, group in groups.items() if group}

    @classmethod
    def of_model(cls, config: ModelConfig) -> Inventory:
        """The tensors of a model by its numbers: f32, experts merged, in the order of a file."""
        parts = (Part(str(name), GGMLQuantizationType.F32, shape) for name, shape in config.tensors())
        return cls(parts, config.n_experts, config.experts_used)

    @property
    def tied(self) -> bool:
        """Whether the embedding is the output matrix as well."""
        return "output" not in self.classes

    @property
    def n_weights(self) -> int:
        """Of all tensors together."""
        return sum(total.n_weights for total in self.classes.values())

    @property
    def n_bytes(self) -> int:
        """Of all tensors together."""
        return sum(total.n_bytes for total in self.classes.values())

    @property
    def bits_per_weight(self) -> float:
        """Of all tensors together; 0 without any."""
        return 8 * self.n_bytes / self.n_weights if self.parts else 0.0

    @property
    def types(self) -> dict[GGMLQuantizationType, int]:
        """Bytes of each type, most bytes first."""
        return _total("all", self.parts).types

    @property
    def active_weights(self) -> int:
        """The weights on one token's path: all but those of the experts that it does not use.

        The embedding counts whole, as it does in published figures.
        """
        return self.n_weights - self._unused(self._experts.n_weights)

    @property
    def active_bytes(self) -> int:
        """The bytes that one generated token reads.

        These are all matrices, but of the experts only those that it uses, and of an embedding that
        is not the output as well only one row. Norms, a ten-thousandth, are left out, as
        ModelWeights.active_bytes leaves them out.
        """
        embedding = [part for part in self.parts if part.tensor_class == "embedding"]
        unread = 0 if self.tied else sum(part.n_bytes - part.n_bytes // part.shape[0] for part in embedding)
        vectors = sum(self.classes[name].n_bytes for name in ("norms", "rope") if name in self.classes)
        return self.n_bytes - vectors - unread - self._unused(self._experts.n_bytes)

    @property
    def expert_bytes(self) -> int:
        """Bytes of all experts, used or not."""
        return self._experts.n_bytes

    @property
    def active_expert_bytes(self) -> int:
        """Bytes of the experts that one token uses."""
        return self.expert_bytes - self._unused(self.expert_bytes)

    @property
    def _experts(self) -> ClassTotal:
        return self.classes.get("experts") or ClassTotal("experts", 0, 0, 0, {})

    def _unused(self, n: int) -> int:
        return n - n * sum(self.experts_used) // (self.n_experts * len(self.experts_used))


def _total(name: str, parts: list[Part]) -> ClassTotal:
    types: dict[GGMLQuantizationType, int] = {}
    for part in parts:
        types[part.type] = types.get(part.type, 0) + part.n_bytes
    ordered = dict(sorted(types.items(), key=lambda item: -item[1]))
    return ClassTotal(name, len(parts), sum(part.n_weights for part in parts), sum(ordered.values()), ordered)
