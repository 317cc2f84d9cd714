"""What a model file holds, read from its header alone.

No weight is touched, and no kernel for the types of its tensors is needed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from pymixtral.errors import PymixtralError
from pymixtral.files.gguf import GGUFFile
from pymixtral.files.header import Value
from pymixtral.files.types import show_type
from pymixtral.inspection.inventory import Inventory, Part
from pymixtral.model.config import ModelConfig, context_length
from pymixtral.model.footprint import Footprint, footprint, kv_bytes_per_token
from pymixtral.model.kv_cache import KV_TYPES
from pymixtral.model.overrides import ExpertsUsed, Override, override, with_experts
from pymixtral.model.weights import load_weights
from pymixtral.text.tokenizer import has_tokenizer, open_tokenizer

_SHOWN = 8  # elements of a longer array that are kept


@dataclass(frozen=True, eq=False)
class Inspection:
    """A file's contents.

    Attributes:
        path: the file.
        file_bytes: its size, or that of all shards.
        version: of GGUF.
        alignment: of the tensors' data, in bytes.
        metadata: all keys and values.
        inventory: its tensors.
        config: the model's numbers; None where the metadata describes no model that pymixtral
            knows.
        problem: why pymixtral cannot run the file, a sentence, or None.
        has_tokenizer: whether text can be used.
    """

    path: str
    file_bytes: int
    version: int
    alignment: int
    metadata: dict[str, Value]
    inventory: Inventory
    config: ModelConfig | None
    problem: str | None
    has_tokenizer: bool

    def footprint(self, n_ctx: int | None = None) -> Footprint | None:
        """The memory that the model takes while it runs.

        Args:
            n_ctx: tokens of context; None: context_length()'s.

        Returns:
            The memory, None without a config.

        Raises:
            InvalidArgumentError: n_ctx is none that the model can have.
        """
        if self.config is None:
            return None
        return footprint(self.config, self.inventory.n_bytes, context_length(self.config, n_ctx))

    def to_json(self, n_ctx: int | None = None) -> dict[str, Any]:
        """Everything as plain values for a program.

        Args:
            n_ctx: tokens of context to count memory for, as in footprint().

        Returns:
            Sizes in bytes, arrays of more than 8 elements as their length and their first elements,
            floats that are not finite as strings.

        Raises:
            InvalidArgumentError: n_ctx is none that the model can have.
        """
        inventory, config = self.inventory, self.config
        memory = self.footprint(n_ctx)
        return {
            "path": self.path,
            "file_bytes": self.file_bytes,
            "gguf_version": self.version,
            "alignment": self.alignment,
            "runs": self.problem is None,
            "problem": self.problem,
            "tokenizer": self.has_tokenizer,
            "model": None if config is None else asdict(config),
            "parameters": inventory.n_weights,
            "active_parameters": None if config is None else inventory.active_weights,
            "bits_per_weight": round(inventory.bits_per_weight, 4),
            "tensor_bytes": inventory.n_bytes,
            "active_bytes_per_token": None if config is None else inventory.active_bytes,
            "tensors": {
                name: {
                    "count": total.n_tensors,
                    "parameters": total.n_weights,
                    "bytes": total.n_bytes,
                    "bits_per_weight": round(total.bits_per_weight, 4),
                    "types": {show_type(kind): n_bytes for kind, n_bytes in total.types.items()},
                }
                for name, total in inventory.classes.items()
            },
            "kv_bytes_per_token": None
            if config is None
            else {t: kv_bytes_per_token(config, t) for t in KV_TYPES if t != "q8_0" or config.head_dim % 32 == 0},
            "memory": None
            if config is None or memory is None
            else {"context": context_length(config, n_ctx), **asdict(memory), "total": memory.total},
            "metadata": {key: _plain(value) for key, value in self.metadata.items()},
        }


def inspect(
    path: str | os.PathLike[str],
    *,
    experts_used: ExpertsUsed | None = None,
    overrides: Mapping[str, Override] | None = None,
) -> Inspection:
    """Reads the header of a GGUF file.

    A readable file that pymixtral cannot run is described too, with the reason in `problem`.

    Args:
        path: the file, or any shard of a model in several.
        experts_used: as of pymixtral.Mixtral.
        overrides: as of pymixtral.Mixtral; the metadata that is described has them.

    Returns:
        What the file holds.

    Raises:
        ModelFileError: a file breaks the format, or shards do not belong together.
        UnsupportedError: a tensor has a retired type.
        InvalidArgumentError: experts_used or overrides cannot be given.
    """
    with GGUFFile(path) as file:
        override(file, experts_used, overrides)
        config, problem, tokenizes = None, None, False
        try:
            config = with_experts(ModelConfig.from_gguf(file), experts_used)
            load_weights(file, config)
        except PymixtralError as error:
            problem = str(error).removeprefix(f"{file.path}: ")
        try:
            tokenizes = has_tokenizer(file.metadata, file.path)
            if tokenizes and config and problem is None:
                open_tokenizer(file.metadata, file.path, config.n_vocab)
        except PymixtralError as error:
            problem = problem or str(error).removeprefix(f"{file.path}: ")
        parts = [Part(tensor.name, tensor.type, tensor.shape) for tensor in file.tensors.values()]
        experts = (config.n_experts, config.experts_used) if config else (1, [1])
        return Inspection(
            path=file.path,
            file_bytes=file.n_bytes,
            version=file.version,
            alignment=file.alignment,
            metadata=file.metadata,
            inventory=Inventory(parts, *experts),
            config=config,
            problem=problem,
            has_tokenizer=tokenizes,
        )


def _plain(value: Value) -> Any:
    if isinstance(value, float) and not isfinite(value):
        return str(value)  # JSON has no numbers for these
    if isinstance(value, (int, float, bool, str)):
        return value
    first = [item if isinstance(item, str) else _plain(item.item()) for item in value[:_SHOWN]]
    return first if len(value) <= _SHOWN else {"length": len(value), "first": first}
