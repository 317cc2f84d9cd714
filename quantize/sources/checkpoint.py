"""A checkpoint in any of the forms that models are published in, checked against its own configuration before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pymixtral.errors import CheckpointError, InvalidArgumentError
from pymixtral.model.config import ModelConfig

from .stored import StoredTensor
from .strict_json import shown
from .targets import Target


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """An opened checkpoint.

    path: the directory or GGUF file. files: what the weights are read from. tensors: by the checkpoint's own names, read when asked for;
    targets say what becomes of them. metadata: of a GGUF file, encoded, by key; empty for others. notes: what a user should know.
    zero_nonfinite: weights that are NaN or infinite count as 0, instead of being an error.
    """

    path: Path
    config: ModelConfig
    files: tuple[Path, ...]
    tensors: Mapping[str, StoredTensor]
    targets: tuple[Target, ...]
    metadata: Mapping[str, bytes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    zero_nonfinite: bool = False

    @property
    def tied(self) -> bool:
        """Whether the embedding is the output matrix too."""
        return all(target.name != "output.weight" for target in self.targets)

    @property
    def used(self) -> tuple[Path, ...]:
        """All files that belong to the checkpoint: those of the weights, and what stands beside them in a directory but is no GGUF file."""
        beside = self.path.iterdir() if self.path.is_dir() else ()
        return (*self.files, *(entry for entry in beside if entry.is_file() and entry.suffix != ".gguf"))

    def per_expert(self) -> Checkpoint:
        """With a target for each expert in place of the merged ones. Raises InvalidArgumentError for a dense model."""
        if self.config.n_experts == 1:
            raise InvalidArgumentError(f"{self.path}: expected a model with experts for types per expert, found a dense one")
        return replace(self, targets=tuple(part for target in self.targets for part in target.split()))

    def check_tensors(self) -> Checkpoint:
        """Returns itself. Raises CheckpointError unless the tensors are those that the configuration asks for."""
        shapes = {source: target.part_shape for target in self.targets for source in target.sources}
        faults = []
        if missing := [name for name in shapes if name not in self.tensors]:
            faults.append(f"{len(missing)} missing, such as {missing[0]}")
        # transformers ignores a stored output head when the config ties it to the embedding.
        known = shapes.keys() | ({"lm_head.weight"} if self.tied else set())
        if unexpected := [name for name in self.tensors if name not in known]:
            faults.append(f"{len(unexpected)} unexpected, such as {shown(unexpected[0])}")
        if faults:
            raise CheckpointError(f"{self.path}: the tensors are not those of its configuration: {'; '.join(faults)}")
        for name, shape in shapes.items():
            if self.tensors[name].shape != shape:
                found = list(self.tensors[name].shape)
                raise CheckpointError(f"{self.path}: {name} has shape {found}; its configuration asks for {list(shape)}")
        return self
