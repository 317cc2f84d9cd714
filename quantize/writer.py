"""Writes a GGUF file in one pass: header and tensor infos first, then each tensor in chunks of rows, never a tensor whole in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from gguf import GGML_QUANT_VERSION, GGUFWriter, LlamaFileType
from numpy.typing import NDArray

from pymixtral import ops

from .checkpoint import Checkpoint
from .config import CheckpointConfig
from .encoding import encode, part_rows
from .layout import Target
from .planning import ALIGNMENT, Plan, PlannedTensor
from .vocab import Vocabulary

CHUNK_WEIGHTS = 1 << 23  # 32 MB as f32; some five such arrays exist at a time


@dataclass(frozen=True, eq=False)
class Chunk:
    """Rows of one source tensor, before and after encoding. source: which of the target's; weights: float32 [rows, cols]; data: uint8
    [rows, row_bytes]."""

    tensor: PlannedTensor
    source: int
    weights: NDArray[np.float32]
    data: NDArray[np.uint8]


def write_gguf(path: Path, checkpoint: Checkpoint, vocabulary: Vocabulary | None, plan: Plan, context: ops.Context) -> Iterator[Chunk]:
    """Writes the file, yielding each chunk once it is written. Raises CheckpointError naming a tensor that cannot be encoded."""
    write_header(path, checkpoint, vocabulary, plan.tensors, plan.file_type)
    with path.open("ab") as file:
        _pad(file)
        for tensor in plan.tensors:
            for i, source in enumerate(tensor.target.sources):
                importance = tensor.importance.weights[i] if tensor.importance else None
                for weights in _chunks(checkpoint, tensor.target, source):
                    data = encode(context, tensor.type, weights, source, importance)
                    file.write(data.data)
                    yield Chunk(tensor, i, weights, data)
            _pad(file)


def write_header(
    path: Path, checkpoint: Checkpoint, vocabulary: Vocabulary | None, tensors: Sequence[PlannedTensor], file_type: LlamaFileType
) -> None:
    """The file without its data; its size does not depend on the types."""
    writer = GGUFWriter(path, "llama")
    name = checkpoint.directory.resolve().name
    writer.add_name(name.encode("utf-8", "replace").decode())  # a directory's name may be no UTF-8
    writer.add_file_type(file_type)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    _add_config(writer, checkpoint.config)
    if vocabulary is not None:
        _add_vocabulary(writer, vocabulary)
    for tensor in tensors:
        writer.add_tensor_info(tensor.target.name, tensor.target.shape, np.dtype(np.float32), tensor.n_bytes, raw_dtype=tensor.type)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()


def _add_config(writer: GGUFWriter, config: CheckpointConfig) -> None:
    writer.add_vocab_size(config.n_vocab)
    writer.add_context_length(config.n_ctx_train)
    writer.add_embedding_length(config.hidden)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.ffn)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_base)
    if config.n_experts:
        writer.add_expert_count(config.n_experts)
        writer.add_expert_used_count(config.n_experts_used)
    if config.window:
        writer.add_sliding_window(config.window)


def _add_vocabulary(writer: GGUFWriter, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("llama")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_scores(vocabulary.scores)
    writer.add_token_types(vocabulary.types)
    if vocabulary.bos_id is not None:
        writer.add_bos_token_id(vocabulary.bos_id)
    if vocabulary.eos_id is not None:
        writer.add_eos_token_id(vocabulary.eos_id)
    writer.add_unk_token_id(vocabulary.unknown_id)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(vocabulary.add_space_prefix)
    if vocabulary.chat_template is not None:
        writer.add_chat_template(vocabulary.chat_template)


def _chunks(checkpoint: Checkpoint, target: Target, source: str) -> Iterator[NDArray[np.float32]]:
    """float32 [rows, cols] of one source in the file's row order."""
    step = max(1, CHUNK_WEIGHTS // target.cols)
    for start in range(0, target.rows, step):
        yield part_rows(checkpoint, target, source, slice(start, min(start + step, target.rows)))


def _pad(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % ALIGNMENT))
