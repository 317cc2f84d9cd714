"""Checkpoints in Mistral's own form: params.json and consolidated.safetensors, in one file or in several.

Names are those of mistral-inference. Rows of queries and keys are in the order that GGUF has too.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from pymixtral.errors import CheckpointError, UnsupportedError
from pymixtral.model.config import (
    MAX_CONTEXT,
    MAX_EXPERTS,
    MAX_FFN,
    MAX_HEADS,
    MAX_HIDDEN,
    MAX_LAYERS,
    MAX_VOCAB,
    MAX_WINDOW,
    RMS_EPS,
    ROPE_BASE,
)

from .checkpoint import Checkpoint
from .config import CheckpointConfig, Values
from .safetensors import read_safetensors
from .stored import StoredTensor
from .strict_json import read_object, shown
from .targets import targets

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
_FEATURES = {"lora": (None,), "vision_encoder": (None,), "yarn": (None,), "llama_4_scaling": (None,), "causal": (None, True)}


def has_weights(directory: Path) -> bool:
    return (directory / SINGLE).exists() or any(_SHARD.fullmatch(entry.name) for entry in directory.iterdir())


def read(directory: Path) -> Checkpoint:
    """Raises as open_checkpoint does."""
    config = read_params(directory / "params.json")
    files = _files(directory)
    tensors: dict[str, StoredTensor] = {}
    for path in files:
        for name, tensor in read_safetensors(path).items():
            if name in tensors:
                raise CheckpointError(f"{path}: tensor {shown(name)} is in another file of the checkpoint too; expected it in one")
            tensors[name] = tensor
    plan = tuple(replace(target, sources=tuple(map(own_name, target.sources)), rope_heads=0) for target in targets(config))
    return Checkpoint(directory, config, files, tensors, plan).check_tensors()


def own_name(name: str) -> str:
    """Mistral's name for Hugging Face's."""
    for pattern, replacement in _NAMES:
        name = pattern.sub(replacement, name)
    return name


def read_params(path: Path) -> CheckpointConfig:
    """Reads params.json. Raises CheckpointError for a value that makes no sense, UnsupportedError for a feature that is not computed."""
    values = Values(read_object(path), str(path))
    for key, neutral in _FEATURES.items():
        if values.get(key) not in neutral:
            raise UnsupportedError(f"{path}: {key} is {shown(values.get(key))}; models with it are not supported")
    n_heads = values.count("n_heads", MAX_HEADS)
    n_kv_heads = values.count("n_kv_heads", MAX_HEADS) if values.get("n_kv_heads") is not None else n_heads
    if n_heads % n_kv_heads:
        raise CheckpointError(f"{path}: n_heads {n_heads} is no multiple of n_kv_heads {n_kv_heads}")
    moe = values.inner("moe")
    n_experts = moe.count("num_experts", MAX_EXPERTS, lowest=2) if moe else 0
    window = values.count("sliding_window", MAX_WINDOW) if values.get("sliding_window") is not None else 0
    context = next((key for key in ("max_position_embeddings", "max_seq_len") if values.get(key) is not None), None)
    return CheckpointConfig(
        hidden=values.count("dim", MAX_HIDDEN),
        ffn=values.count("hidden_dim", MAX_FFN),
        n_layers=values.count("n_layers", MAX_LAYERS),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=values.head_dim("dim", "n_heads"),
        n_experts=n_experts,
        n_experts_used=moe.count("num_experts_per_tok", n_experts) if moe else 0,
        n_vocab=values.count("vocab_size", MAX_VOCAB),
        n_ctx_train=values.count(context, MAX_CONTEXT) if context else _CONTEXT,
        rms_eps=values.number("norm_eps", *RMS_EPS),
        # mistral-inference's own default.
        rope_base=values.number("rope_theta", *ROPE_BASE) if values.get("rope_theta") is not None else 1e4 if window else 1e6,
        window=0 if moe else window,
        tied=values.flag("tied_embeddings"),
    )


def _files(directory: Path) -> tuple[Path, ...]:
    if (directory / SINGLE).exists():
        return (directory / SINGLE,)
    found = {path.name: match for path in directory.iterdir() if (match := _SHARD.fullmatch(path.name))}
    counts = {int(match[2]) for match in found.values()}
    numbers = sorted(int(match[1]) for match in found.values())
    # Some writers count from 0, some from 1.
    if len(counts) != 1 or numbers != list(range(numbers[0], numbers[0] + counts.pop())) or numbers[0] > 1:
        raise CheckpointError(f"{directory}: expected all files of one checkpoint, found {', '.join(sorted(found)[:4])}; download it again")
    return tuple(directory / name for name in sorted(found))
