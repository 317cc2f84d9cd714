"""Writes a GGUF file in one pass: header and tensor infos first, then each tensor in chunks of rows, never a tensor whole in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np
from gguf import GGML_QUANT_VERSION, GGMLQuantizationType, GGUFWriter
from numpy.typing import NDArray

from pymixtral import ops
from pymixtral.errors import CheckpointError, NonFiniteError

from .checkpoint import Checkpoint
from .config import CheckpointConfig
from .layout import Target, rope_order
from .recipe import FILE_TYPES, row_bytes
from .vocab import Vocabulary

ALIGNMENT = 32  # GGUF's default
CHUNK_WEIGHTS = 1 << 23  # 32 MB as f32; some five such arrays exist at a time


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor of the file to be, and its type."""

    target: Target
    type: GGMLQuantizationType

    @property
    def n_weights(self) -> int:
        return prod(self.target.shape)

    @property
    def n_bytes(self) -> int:
        return self.n_weights // self.target.cols * row_bytes(self.type, self.target.cols)


@dataclass(frozen=True, eq=False)
class Chunk:
    """Rows of one source tensor, before and after encoding. weights: float32 [rows, cols]; data: uint8 [rows, row_bytes]."""

    tensor: PlannedTensor
    weights: NDArray[np.float32]
    data: NDArray[np.uint8]


def write_gguf(
    path: Path,
    checkpoint: Checkpoint,
    vocabulary: Vocabulary | None,
    plan: Sequence[PlannedTensor],
    asked: GGMLQuantizationType,
    context: ops.Context,
) -> Iterator[Chunk]:
    """Writes the file, yielding each chunk once it is written. Raises CheckpointError naming a tensor that cannot be encoded."""
    _write_header(path, checkpoint, vocabulary, plan, asked)
    with path.open("ab") as file:
        _pad(file)
        for tensor in plan:
            for source in tensor.target.sources:
                for weights in _chunks(checkpoint, tensor.target, source):
                    data = _encode(context, tensor.type, weights, source)
                    file.write(data.data)
                    yield Chunk(tensor, weights, data)
            _pad(file)


def _write_header(
    path: Path, checkpoint: Checkpoint, vocabulary: Vocabulary | None, plan: Sequence[PlannedTensor], asked: GGMLQuantizationType
) -> None:
    writer = GGUFWriter(path, "llama")
    name = checkpoint.directory.resolve().name
    writer.add_name(name.encode("utf-8", "replace").decode())  # a directory's name may be no UTF-8
    writer.add_file_type(FILE_TYPES[asked])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    _add_config(writer, checkpoint.config)
    if vocabulary is not None:
        _add_vocabulary(writer, vocabulary)
    for tensor in plan:
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
    tensor = checkpoint.tensors[source]
    if len(target.part_shape) == 1:
        yield tensor.floats(slice(None)).reshape(1, -1)
        return
    order = rope_order(target.rope_heads, checkpoint.config.head_dim) if target.rope_heads else None
    step = max(1, CHUNK_WEIGHTS // target.cols)
    for start in range(0, target.rows, step):
        rows = slice(start, min(start + step, target.rows))
        yield tensor.floats(rows if order is None else order[rows])


def _encode(context: ops.Context, kind: GGMLQuantizationType, weights: NDArray[np.float32], source: str) -> NDArray[np.uint8]:
    try:
        return ops.encode(context, kind, weights)
    except NonFiniteError:
        if not np.isfinite(weights).all():
            raise CheckpointError(f"tensor {source} holds NaN or infinity; the checkpoint is damaged, get it again") from None
        largest, name = np.abs(weights).max(), kind.name.lower()
        raise CheckpointError(f"tensor {source} holds a weight of magnitude {largest:.3g}, too large for {name}; use f32") from None


def _pad(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % ALIGNMENT))
