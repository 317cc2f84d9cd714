"""Checkpoints in Mistral's own form: params.json and consolidated.safetensors, in one file or more.

Names are those of mistral-inference. Rows of queries and keys are in the order that GGUF has too.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from pymixtral.arguments import shown
from pymixtral.errors import CheckpointError, UnsupportedError
from pymixtral.model.config import ModelConfig

from .checkpoint import Checkpoint
from .safetensors import read_safetensors
from .stored import StoredTensor
from .targets import targets
from .values import Values

SINGLE = "consolidated.safetensors"

_SHARD = re.compile(r"consolidated[.-](\d+)-of-(\d+)\.safetensors", re.ASCII)

_CONTEXT = 32768
"""Positions that Mistral's models of this form were trained for; params.json seldom tells."""

_NAMES = (
    (re.compile(r"model\.embed_tokens\."), "tok_embeddings."),
    (re.compile(r"lm_head\."), "output."),
    (re.compile(r"model\.(norm|layers)\."), r"\1."),
    (re.compile(r"\.self_attn\.([qkvo])_proj\."), r".attention.w\1."),
    (re.compile(r"\.input_layernorm\."), ".attention_norm."),
    (re.compile(r"\.post_attention_layernorm\."), ".ffn_norm."),
    (re.compile(r"\.block_sparse_moe\."), ".feed_forward."),
    (re.compile(r"\.mlp\.gate_proj\."), ".feed_forward.w1."),
    (re.compile(r"\.mlp\.down_proj\."), ".feed_forward.w2."),
    (re.compile(r"\.mlp\.up_proj\."), ".feed_forward.w3."),
)

# Keys of relatives that change the computation, and the values that change nothing.
_FEATURES = {
    "lora": (None,),
    "vision_encoder": (None,),
    "yarn": (None,),
    "llama_4_scaling": (None,),
    "causal": (None, True),
}


def has_weights(directory: Path) -> bool:
    """Whether a directory holds a checkpoint of this form."""
    return (directory / SINGLE).exists() or any(_SHARD.fullmatch(entry.name) for entry in directory.iterdir())


def read(directory: Path) -> Checkpoint:
    """Opens a checkpoint of mistral-inference.

    Args:
        directory: where params.json and the safetensors are.

    Returns:
        The checkpoint.

    Raises:
        CheckpointError: it is broken, incomplete or contradicts itself.
        UnsupportedError: it is another kind of model.
    """
    config, tied = read_params(directory / "params.json")
    files = _files(directory)
    tensors: dict[str, StoredTensor] = {}
    for path in files:
        for name, tensor in read_safetensors(path).items():
            if name in tensors:
                raise CheckpointError(
                    f"{path}: tensor {shown(name)}: expected it in one file of the checkpoint, found it in another too"
                )
            tensors[name] = tensor
    plan = tuple(
        replace(target, sources=tuple(map(own_name, target.sources)), rope_heads=0) for target in targets(config, tied)
    )
    return Checkpoint(directory, config, files, tensors, plan).check_tensors()


def own_name(name: str) -> str:
    """Mistral's name for Hugging Face's."""
    for pattern, replacement in _NAMES:
        name = pattern.sub(replacement, name)
    return name


def read_params(path: Path) -> tuple[ModelConfig, bool]:
    """Reads params.json.

    Args:
        path: the file; its directory gives the model its name.

    Returns:
        The model's numbers, and whether its embedding is the output matrix too.

    Raises:
        CheckpointError: a value is missing or makes no sense.
        UnsupportedError: the model has a feature that is not computed.
    """
    values = Values.read(path)
    for key, neutral in _FEATURES.items():
        if values.get(key) not in neutral:
            raise UnsupportedError(
                f"{path}: {key}: expected none, found {shown(values.get(key))}, which is not supported"
            )
    n_heads, n_kv_heads = values.heads("n_heads", "n_kv_heads" if values.has("n_kv_heads") else "n_heads")
    moe = values.inner("moe")
    n_experts = moe.integer("num_experts", "llama.expert_count", lowest=2) if moe else 1
    window = values.integer("sliding_window", "llama.attention.sliding_window") if values.has("sliding_window") else 0
    default_base = 1e4 if window else 1e6  # mistral-inference's own
    rope_base = values.number("rope_theta", "llama.rope.freq_base") if values.has("rope_theta") else default_base
    context = next(filter(values.has, ("max_position_embeddings", "max_seq_len")), None)
    config = ModelConfig(
        name=path.resolve().parent.name,
        n_vocab=values.integer("vocab_size", "llama.vocab_size"),
        n_ctx_train=values.integer(context, "llama.context_length") if context else _CONTEXT,
        hidden=values.integer("dim", "llama.embedding_length"),
        n_layers=values.integer("n_layers", "llama.block_count"),
        ffn=values.integer("hidden_dim", "llama.feed_forward_length"),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=values.head_dim("dim", "n_heads"),
        n_experts=n_experts,
        n_experts_used=moe.integer("num_experts_per_tok", "llama.expert_used_count", highest=n_experts) if moe else 1,
        rms_eps=values.number("norm_eps", "llama.attention.layer_norm_rms_epsilon"),
        rope_base=rope_base,
        window=0 if moe else window,
    )
    return config, values.flag("tied_embeddings")


def _files(directory: Path) -> tuple[Path, ...]:
    if (directory / SINGLE).exists():
        return (directory / SINGLE,)
    found = {path.name: match for path in directory.iterdir() if (match := _SHARD.fullmatch(path.name))}
    counts = {int(match[2]) for match in found.values()}
    numbers = sorted(int(match[1]) for match in found.values())
    # Some writers count from 0, some from 1.
    if len(counts) != 1 or numbers != list(range(numbers[0], numbers[0] + counts.pop())) or numbers[0] > 1:
        raise CheckpointError(
            f"{directory}: expected all files of one checkpoint, found {', '.join(sorted(found)[:4])}: download it "
            "again"
        )
    return tuple(directory / name for name in sorted(found))
