"""Checkpoints in Hugging Face's form: config.json and safetensors.

These are one file or several shards, with experts one by one, fused as in transformers 5, or
stacked as in MLX; also what GPTQ and AWQ made of them, with experts one by one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pymixtral.arguments import shown
from pymixtral.errors import CheckpointError, UnsupportedError
from pymixtral.files.names import TensorName
from pymixtral.files.shards import MAX_SHARDS
from pymixtral.files.stored import SourceFile, StoredTensor, Type
from pymixtral.files.strict_json import read_object
from pymixtral.model.config import ModelConfig

from .buffers import without_buffers
from .checkpoint import Checkpoint
from .numbered import numbered_files
from .quantization import unpacked
from .rope import read_rope
from .safetensors import read_all, read_safetensors
from .targets import targets
from .values import Values

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_MAX_NAME_BYTES = 255
"""Of a file, on the file systems in use."""

_AUTOGPTQ = re.compile(r"(gptq_model-4bit-(?:-1|\d+)g\.safetensors)(?:\.index\.json)?", re.ASCII)
"""What AutoGPTQ called its single file, or index, where transformers did not choose the name."""

_SHARD = re.compile(r"model-(\d+)-of-(\d+)\.safetensors", re.ASCII)

_ROUTER = re.compile(r"(model\.layers\.\d+)\.mlp\.gate\.weight", re.ASCII)
_FUSED = re.compile(
    r"(model\.layers\.\d+)\.(?:mlp\.experts\.(gate_up|down)_proj|block_sparse_moe\.switch_mlp\.(gate|up|down)_proj\.weight)",
    re.ASCII,
)
_PARTS = {"gate_up": ("w1", "w3"), "gate": ("w1",), "up": ("w3",), "down": ("w2",)}
"""Whose rows each of an expert's fused matrices has, one after the other."""

_MISTRAL_DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e4,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
}
"""What transformers' MistralConfig takes for a key that config.json does not have."""

_MIXTRAL_DEFAULTS = _MISTRAL_DEFAULTS | {
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "sliding_window": None,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
"""The same of its MixtralConfig."""

_LLAMA_DEFAULTS = {key: value for key, value in _MISTRAL_DEFAULTS.items() if key != "sliding_window"} | {
    "intermediate_size": 11008,
    "num_key_value_heads": None,
    "max_position_embeddings": 2048,
}
"""The same of its LlamaConfig, which has no window."""

_CLASSES: dict[str, dict[str, Any]] = {
    "MixtralForCausalLM": _MIXTRAL_DEFAULTS,
    "MistralForCausalLM": _MISTRAL_DEFAULTS,
    "LlamaForCausalLM": _LLAMA_DEFAULTS,
}
"""The classes of transformers that are of this family, with the defaults of their keys."""


def has_weights(directory: Path) -> bool:
    """Whether a directory holds a checkpoint of this form."""
    # A link that leads nowhere is a broken download, which is to be named.
    return any(path.exists() or path.is_symlink() for path in _whole(directory)) or any(
        _SHARD.fullmatch(entry.name) for entry in directory.iterdir()
    )


def _whole(directory: Path) -> tuple[Path, Path]:
    """The single file with all weights, and the index of shards, whichever may be there."""
    single = directory / SINGLE
    if not any(path.exists() or path.is_symlink() for path in (single, directory / INDEX)):
        matches = (_AUTOGPTQ.fullmatch(entry.name) for entry in directory.iterdir())
        single = directory / min((match[1] for match in matches if match), default=SINGLE)
    return single, single.with_name(f"{single.name}.index.json")


def read(directory: Path) -> Checkpoint:
    """Opens a Mixtral, or a dense Mistral or Llama, of transformers, MergeKit or others.

    Args:
        directory: where config.json and the safetensors are.

    Returns:
        The checkpoint, its tensors by the names of unfused experts.

    Raises:
        CheckpointError: it is broken, incomplete or contradicts itself.
        UnsupportedError: it is another kind of model.
    """
    config, tied, notes = read_config(directory / "config.json")
    files, stored = _read_weights(directory)
    stored, left_out = without_buffers(directory, stored, config)
    stored, packing, packed = unpacked(directory, stored)
    tensors = _computed(directory, config)
    for name, tensor in _by_expert(directory, config, stored) if config.n_experts > 1 else stored.items():
        if name in tensors:
            raise CheckpointError(
                f"{directory}: tensor {name}: expected it once, found it twice: by itself, and fused with others or "
                "in config.json"
            )
        tensors[name] = tensor
    plan = tuple(targets(config, tied))
    notes = (*notes, *left_out, *packed)
    return Checkpoint(directory, config, files, tensors, plan, notes=notes, packing=packing).check_tensors()


def read_config(path: Path) -> tuple[ModelConfig, bool, tuple[str, ...]]:
    """Reads config.json.

    Args:
        path: the file; its directory gives the model its name.

    Returns:
        The model's numbers, whether its embedding is the output matrix too, and notes for a user.

    Raises:
        CheckpointError: a value makes no sense.
        UnsupportedError: it is a model of another kind.
    """
    found = Values.read(path)
    name = _class(found)
    moe, defaults = name == "MixtralForCausalLM", _CLASSES[name]
    _refuse_unknown_features(found)
    values = found.with_defaults(defaults)
    kv_heads = "num_key_value_heads" if values.has("num_key_value_heads") else "num_attention_heads"
    n_heads, n_kv_heads = values.heads("num_attention_heads", kv_heads)
    n_experts = values.integer("num_local_experts", "llama.expert_count", lowest=2) if moe else 1
    # Published Mixtral configs that carry a window are wrong: Mixtral attends to everything.
    windowed = name == "MistralForCausalLM" and values.has("sliding_window")
    n_ctx_train = values.integer("max_position_embeddings", "llama.context_length")
    head_dim = values.head_dim("hidden_size", "num_attention_heads")
    rope_base, rope_scaling = read_rope(values, head_dim, n_ctx_train)
    config = ModelConfig(
        name=path.resolve().parent.name,
        n_vocab=values.integer("vocab_size", "llama.vocab_size"),
        n_ctx_train=n_ctx_train,
        hidden=values.integer("hidden_size", "llama.embedding_length"),
        n_layers=values.integer("num_hidden_layers", "llama.block_count"),
        ffn=values.integer("intermediate_size", "llama.feed_forward_length"),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        n_experts=n_experts,
        n_experts_used=values.integer("num_experts_per_tok", "llama.expert_used_count", highest=n_experts)
        if moe
        else 1,
        rms_eps=values.number("rms_norm_eps", "llama.attention.layer_norm_rms_epsilon"),
        rope_base=rope_base,
        window=values.integer("sliding_window", "llama.attention.sliding_window") if windowed else 0,
        rope_scaling=rope_scaling,
    )
    inner = found.get("rope_parameters") or {}
    missing = [key for key in defaults if key not in found.values and not (key == "rope_theta" and key in inner)]
    taken = ", ".join(f"{key} ({defaults[key]})" for key in missing)
    note = f"config.json does not have {taken}: transformers' own defaults were taken"
    return config, values.flag("tie_word_embeddings"), (note,) if missing else ()


def _class(values: Values) -> str:
    """The name of the model's class, one of _CLASSES."""
    names = values.required("architectures")
    if not (isinstance(names, list) and len(names) == 1 and names[0] in [*_CLASSES]):
        raise UnsupportedError(
            f"{values.where}: architectures: expected one of {', '.join(_CLASSES)}, found {shown(names)}"
        )
    return str(names[0])


def _refuse_unknown_features(values: Values) -> None:
    for key, neutral in (("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False)):
        if values.get(key) not in (None, neutral):
            raise UnsupportedError(
                f"{values.where}: {key}: expected {shown(neutral)}, found {shown(values.get(key))}, which is not "
                "supported"
            )


def _computed(directory: Path, config: ModelConfig) -> dict[str, StoredTensor]:
    """The tensors of the GGUF file that config.json gives."""
    if not config.rope_scaling.factors:
        return {}
    factors = np.array(config.rope_scaling.factors, np.float32)
    file = SourceFile(directory / "config.json")
    return {str(TensorName("rope_freqs")): StoredTensor(file, Type.F32, factors.shape, 0, values=factors)}


def _by_expert(
    directory: Path, config: ModelConfig, stored: Mapping[str, StoredTensor]
) -> Iterator[tuple[str, StoredTensor]]:
    """Fused experts as what they consist of.

    gate_up_proj holds [n_experts, 2 * ffn, hidden], the rows of gate before those of up, gate_proj
    and up_proj [n_experts, ffn, hidden], and down_proj [n_experts, hidden, ffn].
    """
    for name, tensor in stored.items():
        if match := _ROUTER.fullmatch(name):
            yield f"{match[1]}.block_sparse_moe.gate.weight", tensor
            continue
        match = _FUSED.fullmatch(name)
        if not match:
            yield name, tensor
            continue
        matrix = match[2] or match[3]
        parts = _PARTS[matrix]
        rows, cols = (config.hidden, config.ffn) if matrix == "down" else (config.ffn, config.hidden)
        expected = (config.n_experts, len(parts) * rows, cols)
        if tensor.shape != expected:
            raise CheckpointError(
                f"{directory}: {name}: expected shape {list(expected)}, as config.json says, found {list(tensor.shape)}"
            )
        for e in range(config.n_experts):
            for i, part in enumerate(parts):
                expert = f"{match[1]}.block_sparse_moe.experts.{e}.{part}.weight"
                yield expert, tensor.part(e, slice(i * rows, (i + 1) * rows))


def _read_weights(directory: Path) -> tuple[tuple[Path, ...], dict[str, StoredTensor]]:
    single, index = _whole(directory)
    if single.exists() or single.is_symlink():
        return (single,), read_safetensors(single)
    if not (index.exists() or index.is_symlink()):
        files = numbered_files(directory, _SHARD)
        return files, read_all(files)
    places = _read_index(index)
    tensors: dict[str, StoredTensor] = {}
    files = tuple(directory / shard for shard in sorted(set(places.values())))
    if len(files) > MAX_SHARDS:
        raise CheckpointError(f"{index}: weight_map: expected at most {MAX_SHARDS} shards, found {len(files)}")
    for path in files:
        if not path.exists():
            raise CheckpointError(
                f"{index}: expected the shard {path.name} in {directory}, found none: download it again"
            )
    for path in files:
        for name, tensor in read_safetensors(path).items():
            if places.get(name) != path.name:
                raise CheckpointError(
                    f"{path}: tensor {shown(name)}: expected it in {shown(places.get(name))}, as {index.name} says, "
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
        plain = isinstance(shard, str) and shard.isprintable() and not any(character in shard for character in "/\\:")
        if not plain or not shard.endswith(".safetensors") or len(shard.encode()) > _MAX_NAME_BYTES:
            raise CheckpointError(
                f"{index}: tensor {shown(name)}: expected a plain .safetensors name of at most "
                f"{_MAX_NAME_BYTES} bytes, found {shown(shard)}"
            )
    return places
