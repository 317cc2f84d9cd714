"""Checkpoints in Hugging Face's form: config.json and safetensors.

These are one file or several shards, with experts one by one or fused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from pymixtral.arguments import shown
from pymixtral.errors import CheckpointError, UnsupportedError
from pymixtral.model.config import ModelConfig

from .checkpoint import Checkpoint
from .safetensors import read_safetensors
from .stored import StoredTensor
from .strict_json import read_object
from .targets import targets
from .values import Values

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_FUSED = re.compile(r"(model\.layers\.\d+)\.mlp\.(gate\.weight|experts\.gate_up_proj|experts\.down_proj)", re.ASCII)


def has_weights(directory: Path) -> bool:
    """Whether a directory holds a checkpoint of this form."""
    return (directory / SINGLE).exists() or (directory / INDEX).exists()


def read(directory: Path) -> Checkpoint:
    """Opens a MixtralForCausalLM or MistralForCausalLM, of transformers, MergeKit or others.

    Args:
        directory: where config.json and the safetensors are.

    Returns:
        The checkpoint, its tensors by the names of unfused experts.

    Raises:
        CheckpointError: it is broken, incomplete or contradicts itself.
        UnsupportedError: it is another kind of model.
    """
    config, tied = read_config(directory / "config.json")
    files, stored = _read_weights(directory)
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in _by_expert(directory, config, stored) if config.n_experts > 1 else stored.items():
        if name in tensors:
            raise CheckpointError(
                f"{directory}: tensor {name}: expected it once, found it fused with others and by itself"
            )
        tensors[name] = tensor
    return Checkpoint(directory, config, files, tensors, tuple(targets(config, tied))).check_tensors()


def read_config(path: Path) -> tuple[ModelConfig, bool]:
    """Reads config.json.

    Args:
        path: the file; its directory gives the model its name.

    Returns:
        The model's numbers, and whether its embedding is the output matrix too.

    Raises:
        CheckpointError: a value is missing or makes no sense.
        UnsupportedError: it is a model of another kind.
    """
    values = Values.read(path)
    moe = _is_mixtral(values)
    _refuse_unknown_features(values)
    n_heads, n_kv_heads = values.heads("num_attention_heads", "num_key_value_heads")
    n_experts = values.integer("num_local_experts", "llama.expert_count", lowest=2) if moe else 1
    # Published Mixtral configs that carry a window are wrong: Mixtral attends to everything.
    windowed = not moe and values.required("sliding_window") is not None
    config = ModelConfig(
        name=path.resolve().parent.name,
        n_vocab=values.integer("vocab_size", "llama.vocab_size"),
        n_ctx_train=values.integer("max_position_embeddings", "llama.context_length"),
        hidden=values.integer("hidden_size", "llama.embedding_length"),
        n_layers=values.integer("num_hidden_layers", "llama.block_count"),
        ffn=values.integer("intermediate_size", "llama.feed_forward_length"),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=values.head_dim("hidden_size", "num_attention_heads"),
        n_experts=n_experts,
        n_experts_used=values.integer("num_experts_per_tok", "llama.expert_used_count", highest=n_experts)
        if moe
        else 1,
        rms_eps=values.number("rms_norm_eps", "llama.attention.layer_norm_rms_epsilon"),
        rope_base=_rope(values).number("rope_theta", "llama.rope.freq_base"),
        window=values.integer("sliding_window", "llama.attention.sliding_window") if windowed else 0,
    )
    return config, values.flag("tie_word_embeddings")


def _is_mixtral(values: Values) -> bool:
    names = values.required("architectures")
    if names not in (["MixtralForCausalLM"], ["MistralForCausalLM"]):
        raise UnsupportedError(
            f"{values.where}: architectures: expected MixtralForCausalLM or MistralForCausalLM, found {shown(names)}"
        )
    return bool(names == ["MixtralForCausalLM"])


def _refuse_unknown_features(values: Values) -> None:
    rope = _rope(values)
    for where, key, found, neutral in (
        (values, "rope_scaling", values.get("rope_scaling"), None),
        (rope, "rope_type", rope.get("rope_type", "default"), "default"),
        (values, "hidden_act", values.get("hidden_act", "silu"), "silu"),
    ):
        if found != neutral:
            raise UnsupportedError(
                f"{where.where}: {key}: expected {'null' if neutral is None else repr(neutral)}, found {shown(found)}, "
                "which is not supported"
            )


def _rope(values: Values) -> Values:
    """Where rope_theta lives: the top level, or rope_parameters in files of transformers 5."""
    return values.inner("rope_parameters") or values


def _by_expert(
    directory: Path, config: ModelConfig, stored: Mapping[str, StoredTensor]
) -> Iterator[tuple[str, StoredTensor]]:
    """Fused experts as what they consist of.

    gate_up_proj holds [n_experts, 2 * ffn, hidden], the rows of gate before those of up, and
    down_proj [n_experts, hidden, ffn].
    """
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
        expected = (config.n_experts, rows, cols)
        if tensor.shape != expected:
            raise CheckpointError(
                f"{directory}: {name}: expected shape {list(expected)}, as config.json says, found {list(tensor.shape)}"
            )
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
            raise CheckpointError(
                f"{index}: expected the shard {path.name} in {directory}, found none: download it again"
            )
    for path in files:
        for name, tensor in read_safetensors(path).items():
            if places.get(name) != path.name:
                raise CheckpointError(
                    f"{path}: tensor {shown(name)}: expected it in {shown(places.get(name))}, as {INDEX} says, "
                    "found it here"
                )
            tensors[name] = tensor
    if absent := [name for name in places if name not in tensors]:
        raise CheckpointError(
            f"{index}: tensor {shown(absent[0])}: expected it in {places[absent[0]]}, found none there"
        )
    return files, tensors


def _read_index(index: Path) -> dict[str, str]:
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(
            f"{index}: weight_map: expected an object of tensor names and shards, found {shown(places)}"
        )
    for name, shard in places.items():
        # A shard is a plain file beside the index: nothing else may be reached through a downloaded
        # file.
        plain = isinstance(shard, str) and not any(character in shard for character in "/\\:\0")
        if not plain or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"{index}: tensor {shown(name)}: expected a plain .safetensors name, found {shown(shard)}"
            )
    return places
