"""A Hugging Face checkpoint directory: config.json and safetensors, checked against each other before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pymixtral.errors import CheckpointError

from .config import CheckpointConfig
from .layout import Target, targets
from .safetensors import StoredTensor, read_safetensors
from .strict_json import read_object, shown

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """An opened checkpoint. `tensors` are lazy views by Hugging Face name; `targets` say what becomes of them."""

    directory: Path
    config: CheckpointConfig
    files: tuple[Path, ...]
    tensors: Mapping[str, StoredTensor]
    targets: tuple[Target, ...]

    @classmethod
    def open(cls, directory: Path) -> Checkpoint:
        """Opens a directory of MixtralForCausalLM or MistralForCausalLM.

        Raises CheckpointError (broken, incomplete or contradicting itself) or UnsupportedError (another kind of model).
        """
        if not directory.is_dir():
            raise CheckpointError(f"{directory}: no such directory; expected a Hugging Face checkpoint (config.json and safetensors)")
        config = CheckpointConfig.read(directory / "config.json")
        files, tensors = _read_weights(directory)
        plan = tuple(targets(config))
        _check_tensors(directory, config, plan, tensors)
        return cls(directory, config, files, tensors, plan)


def _read_weights(directory: Path) -> tuple[tuple[Path, ...], dict[str, StoredTensor]]:
    if (directory / _SINGLE).exists():
        path = directory / _SINGLE
        return (path,), read_safetensors(path)
    index = directory / _INDEX
    if not index.exists():
        raise CheckpointError(f"{directory}: neither {_SINGLE} nor {_INDEX} is there; convert the weights to safetensors first")
    places = _read_index(index)
    tensors: dict[str, StoredTensor] = {}
    files = tuple(directory / shard for shard in sorted(set(places.values())))
    for path in files:
        if not path.is_file():
            raise CheckpointError(f"{index}: names the shard {path.name}, which is not in {directory}; download it again")
    for path in files:
        for name, tensor in read_safetensors(path).items():
            if places.get(name) != path.name:
                raise CheckpointError(f"{path}: holds tensor {shown(name)}, which {_INDEX} places in {shown(places.get(name))}")
            tensors[name] = tensor
    if absent := [name for name in places if name not in tensors]:
        raise CheckpointError(f"{index}: places tensor {shown(absent[0])} in {places[absent[0]]}, which does not hold it")
    return files, tensors


def _read_index(index: Path) -> dict[str, str]:
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{index}: weight_map is {shown(places)}; expected an object of tensor names and shards")
    for name, shard in places.items():
        # A shard is a plain file beside the index: nothing else may be reached through a downloaded file.
        if not isinstance(shard, str) or not shard.endswith(".safetensors") or any(character in shard for character in "/\\:\0"):
            raise CheckpointError(f"{index}: tensor {shown(name)} is placed in {shown(shard)}; expected a plain .safetensors name")
    return places


def _check_tensors(directory: Path, config: CheckpointConfig, plan: tuple[Target, ...], tensors: Mapping[str, StoredTensor]) -> None:
    shapes = {source: target.part_shape for target in plan for source in target.sources}
    faults = []
    if missing := [name for name in shapes if name not in tensors]:
        faults.append(f"{len(missing)} missing, such as {missing[0]}")
    # transformers ignores a stored output head when the config ties it to the embedding.
    known = shapes.keys() | ({"lm_head.weight"} if config.tied else set())
    if unexpected := [name for name in tensors if name not in known]:
        faults.append(f"{len(unexpected)} unexpected, such as {shown(unexpected[0])}")
    if faults:
        raise CheckpointError(f"{directory}: the tensors are not those of config.json: {'; '.join(faults)}")
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise CheckpointError(f"{directory}: {name} has shape {list(tensors[name].shape)}; config.json asks for {list(shape)}")
