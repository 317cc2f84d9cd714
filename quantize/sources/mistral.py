"""Checkpoints in Mistral's own form: params.json and consolidated.safetensors, in one file or more.

Names are those of mistral-inference. Rows of queries and keys are in the order that GGUF has too.
Mixtral's first release, of December 2023, has all experts of a layer in three tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from pymixtral.arguments import shown
from pymixtral.errors import CheckpointError, UnsupportedError
from pymixtral.files.stored import StoredTensor
from pymixtral.model.config import ModelConfig

from .buffers import without_buffers
from .checkpoint import Checkpoint
from .numbered import numbered_files
from .safetensors import read_all
from .targets import targets
from .values import Values

SINGLE = "consolidated.safetensors"

_SHARD = re.compile(r"consolidated[.-](\d+)-of-(\d+)\.safetensors", re.ASCII)

_STACKED = re.compile(r"(layers\.\d+)\.block_sparse_moe\.(?:(gate)\.weight|(w[123]))", re.ASCII)

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
    single = directory / SINGLE
    files = (single,) if single.exists() else numbered_files(directory, _SHARD)
    stored, notes = without_buffers(directory, read_all(files), config)
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in _by_expert(directory, config, stored) if config.n_experts > 1 else stored.items():
        if name in tensors:
            raise CheckpointError(
                f"{directory}: tensor {name}: expected it once, found it stacked with others and by itself"
            )
        tensors[name] = tensor
    plan = tuple(
        replace(target, sources=tuple(map(own_name, target.sources)), rope_heads=0) for target in targets(config, tied)
    )
    return Checkpoint(directory, config, files, tensors, plan, notes=notes).check_tensors()


def _by_expert(
    directory: Path, config: ModelConfig, stored: Mapping[str, StoredTensor]
) -> Iterator[tuple[str, StoredTensor]]:
    """The experts of the first release as those of later ones.

    w1, w2 and w3 hold [n_experts * ffn, hidden]: of w2 each expert is transposed.
    """
    ffn, hidden = config.ffn, config.hidden
    for name, tensor in stored.items():
        match = _STACKED.fullmatch(name)
        if not match:
            yield name, tensor
            continue
        layer, router, weight = match.groups()
        if router:
            yield f"{layer}.feed_forward.gate.weight", tensor
            continue
        expected = (config.n_experts * ffn, hidden)
        if tensor.shape != expected:
            raise CheckpointError(
                f"{directory}: {name}: expected shape {list(expected)}, as params.json says, found {list(tensor.shape)}"
            )
        stacked = replace(tensor, shape=(config.n_experts, ffn, hidden))
        for e in range(config.n_experts):
            part = stacked.part(e)
            if weight == "w2":
                part = replace(part, shape=(hidden, ffn), transposed=True)
            yield f"{layer}.feed_forward.experts.{e}.{weight}.weight", part


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
