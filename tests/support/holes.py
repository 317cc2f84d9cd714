"""GGUF files of true size that cost no disk: a real header, and a hole where the weights would be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFWriter

from pymixtral.inspection.inventory import Part
from pymixtral.model.config import ModelConfig


def write_hole(path: Path, config: ModelConfig, parts: list[Part], *, architecture: str = "llama", tokens: bool = False) -> Path:
    """A file whose tensors are `parts`. tokens: with a token list of the size of Mixtral's, else without a tokenizer."""
    c, writer = config, GGUFWriter(path, architecture)
    writer.add_name(c.name)
    writer.add_vocab_size(c.n_vocab)
    writer.add_context_length(c.n_ctx_train)
    writer.add_embedding_length(c.hidden)
    writer.add_block_count(c.n_layers)
    writer.add_feed_forward_length(c.ffn)
    writer.add_head_count(c.n_heads)
    writer.add_head_count_kv(c.n_kv_heads)
    writer.add_layer_norm_rms_eps(c.rms_eps)
    writer.add_rope_freq_base(c.rope_base)
    if c.n_experts > 1:
        writer.add_expert_count(c.n_experts)
        writer.add_expert_used_count(c.n_experts_used)
    if tokens:
        pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *(f"\u2581word{i}" for i in range(c.n_vocab - 259))]
        writer.add_tokenizer_model("llama")
        writer.add_token_list(pieces)
        writer.add_token_scores([-float(i) for i in range(len(pieces))])
        writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * (len(pieces) - 259)])
    for part in parts:
        writer.add_tensor_info(part.name, part.shape, np.dtype(np.float32), part.n_bytes, raw_dtype=part.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + sum(part.n_bytes + 32 for part in parts) + 32)
    return path


def split(parts: list[Part], n_experts: int) -> list[Part]:
    """Merged experts as one tensor each, the form of December 2023."""
    found = []
    for part in parts:
        if part.kind == "experts":
            name = part.name.removesuffix("_exps.weight")
            found += [Part(f"{name}.{e}.weight", part.type, part.shape[1:]) for e in range(n_experts)]
        else:
            found.append(part)
    return found
