"""Checkpoints in Hugging Face's form: config.json and safetensors, in one file or in shards, experts one by one or fused."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from pymixtral.errors import CheckpointError

from .checkpoint import Checkpoint
from .config import CheckpointConfig
from .safetensors import read_safetensors
from .stored import StoredTensor
from .strict_json import read_object, shown
from .targets import targets

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_FUSED = re.compile(r"(model\.layers\.\d+)\.mlp\.(gate\.weight|experts\.gate_up_proj|experts\.down_proj)", re.ASCII)


def has_weights(directory: Path) -> bool:
    return (directory / SINGLE).exists() or (directory / INDEX).exists()


def read(directory: Path) -> Checkpoint:
    """Opens a MixtralForCausalLM or MistralForCausalLM, of transformers, MergeKit or others. Raises as open_checkpoint does."""
    config = CheckpointConfig.read(directory / "config.json")
    files, stored = _read_weights(directory)
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in _by_expert(directory, config, stored) if config.n_experts else stored.items():
        if name in tensors:
            raise CheckpointError(f"{directory}: tensor {name} is there twice, fused with others and by itself; expected one of them")
        tensors[name] = tensor
    return Checkpoint(directory, config, files, tensors, tuple(targets(config))).check_tensors()


def _by_expert(directory: Path, config: CheckpointConfig, stored: Mapping[str, StoredTensor]) -> Iterator[tuple[str, StoredTensor]]:
    """Fused experts as what they consist of: gate_up_proj holds [n_experts, 2 * ffn, hidden], the rows of gate before those of up, and
    down_proj [n_experts, hidden, ffn]."""
    for name, tensor in stored.items():
        match = _FUSED.fullmatch(name)
        if not match:
            yield name, tensor
            continue
        block, part = f"{match[1]}.block_sparse_moe", match[2]
        if part == "gate.weight":
            yield f"{block}.gate.weight", tensor
            continue
        rows, cols = (2 * config.ffn, config.hidden) if part.endswith("gate_up_proj") else (config.hidden, config.ffn)
        if tensor.shape != (config.n_experts, rows, cols):
            expected = [config.n_experts, rows, cols]
            raise CheckpointError(f"{directory}: {name} has shape {list(tensor.shape)}; config.json asks for {expected}")
        for e in range(config.n_experts):
            if part.endswith("down_proj"):
                yield f"{block}.experts.{e}.w2.weight", tensor.part(e)
            else:
                yield f"{block}.experts.{e}.w1.weight", tensor.part(e, slice(0, config.ffn))
                yield f"{block}.experts.{e}.w3.weight", tensor.part(e, slice(config.ffn, 2 * config.ffn))


def _read_weights(directory: Path) -> tuple[tuple[Path, ...], dict[str, StoredTensor]]:
    if (directory / SINGLE).exists():
        path = directory / SINGLE
        return (path,), read_safetensors(path)
    index = directory / INDEX
    places = _read_index(index)
    tensors: dict[str, StoredTensor] = {}
    files = tuple(directory / shard for shard in sorted(set(places.values())))
    for path in files:
        if not path.is_file():
            raise CheckpointError(f"{index}: names the shard {path.name}, which is not in {directory}; download it again")
    for path in files:
        for name, tensor in read_safetensors(path).items():
            if places.get(name) != path.name:
                raise CheckpointError(f"{path}: holds tensor {shown(name)}, which {INDEX} places in {shown(places.get(name))}")
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
