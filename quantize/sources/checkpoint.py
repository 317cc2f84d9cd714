"""A checkpoint in any of the forms that models are published in.

It is checked against its own configuration before anything is computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pymixtral.arguments import shown
from pymixtral.errors import CheckpointError, InvalidArgumentError
from pymixtral.files.stored import StoredTensor
from pymixtral.model.config import ModelConfig

from .merged import Merged
from .packed import PackedTensor, Packing
from .targets import Target


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """An opened checkpoint.

    Attributes:
        path: the directory or GGUF file.
        config: the model's numbers.
        files: what the weights are read from.
        tensors: by the checkpoint's own names, read when asked for.
        targets: what becomes of the tensors.
        metadata: of a GGUF file, encoded, by key; empty for others.
        notes: what a user should know, a sentence each.
        zero_nonfinite: weights that are NaN or infinite count as 0, instead of being an error.
        merged: adapters whose changes are added to the weights.
        packing: how its matrices of four bits are packed; None of a checkpoint that has none.
    """

    path: Path
    config: ModelConfig
    files: tuple[Path, ...]
    tensors: Mapping[str, StoredTensor]
    targets: tuple[Target, ...]
    metadata: Mapping[str, bytes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    zero_nonfinite: bool = False
    merged: Merged = field(default_factory=Merged)
    packing: Packing | None = None

    @property
    def tied(self) -> bool:
        """Whether the embedding is the output matrix too."""
        return all(target.name != "output.weight" for target in self.targets)

    @property
    def used(self) -> tuple[Path, ...]:
        """All files that belong to the checkpoint.

        These are the files of the weights, and those beside them in a directory that are no GGUF
        files.
        """
        beside = self.path.iterdir() if self.path.is_dir() else ()
        return (*self.files, *(entry for entry in beside if entry.is_file() and entry.suffix != ".gguf"))

    def packed(self, target: Target) -> tuple[PackedTensor, ...]:
        """The packed matrices that a target consists of; none, if any of its sources is not packed, or is changed."""
        if self.merged.changes(target):
            return ()
        tensors = [self.tensors[source] for source in target.sources]
        packed = tuple(tensor for tensor in tensors if isinstance(tensor, PackedTensor))
        return packed if len(packed) == len(tensors) else ()

    def per_expert(self) -> Checkpoint:
        """The checkpoint with a target for each expert in place of the merged ones.

        Raises:
            InvalidArgumentError: it is a dense model.
        """
        if self.config.n_experts == 1:
            raise InvalidArgumentError(
                f"{self.path}: expected a model with experts for types per expert, found a dense one"
            )
        return replace(self, targets=tuple(part for target in self.targets for part in target.split()))

    def check_unchanged(self) -> None:
        """Raises CheckpointError if a file of the weights was changed since it was opened."""
        for file in {file for tensor in self.tensors.values() for file in tensor.files}:
            file.check_unchanged()

    def check_tensors(self) -> Checkpoint:
        """Compares the tensors with those of the configuration.

        Returns:
            The checkpoint itself.

        Raises:
            CheckpointError: a tensor is missing, unexpected or of another shape.
        """
        shapes = {source: target.part_shape for target in self.targets for source in target.sources}
        faults = []
        if missing := [name for name in shapes if name not in self.tensors]:
            faults.append(f"{len(missing)} missing, such as {missing[0]}")
        # transformers ignores a stored output head when the config ties it to the embedding.
        known = shapes.keys() | ({"lm_head.weight"} if self.tied else set())
        if unexpected := [name for name in self.tensors if name not in known]:
            faults.append(f"{len(unexpected)} unexpected, such as {shown(unexpected[0])}")
        if faults:
            raise CheckpointError(f"{self.path}: expected the tensors of its configuration, found {'; '.join(faults)}")
        for name, shape in shapes.items():
            if self.tensors[name].shape != shape:
                raise CheckpointError(
                    f"{self.path}: {name}: expected shape {list(shape)}, as its configuration says, "
                    f"found {list(self.tensors[name].shape)}"
                )
        return self
