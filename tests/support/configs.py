"""Metadata of Mixtral and Mistral files, and GGUF files of metadata alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gguf import GGUFValueType, GGUFWriter
from numpy.typing import NDArray

from pymixtral.files.gguf import GGUFFile
from pymixtral.model.config import ModelConfig
from support.ggufs import finish

V = GGUFValueType

MIXTRAL: dict[str, Any] = {
    "general.architecture": "llama",
    "general.name": "Mixtral 8x7B",
    "llama.vocab_size": 32000,
    "llama.context_length": 32768,
    "llama.embedding_length": 4096,
    "llama.block_count": 32,
    "llama.feed_forward_length": 14336,
    "llama.attention.head_count": 32,
    "llama.attention.head_count_kv": 8,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.dimension_count": 128,
    "llama.rope.freq_base": 1e6,
    "llama.expert_count": 8,
    "llama.expert_used_count": 2,
}
DENSE = {key: value for key, value in MIXTRAL.items() if "expert" not in key}
YARN = {
    "llama.rope.scaling.type": "yarn",
    "llama.rope.scaling.factor": 16.0,
    "llama.rope.scaling.original_context_length": 8192,
}


def write(path: Path, metadata: dict[str, Any], tensors: dict[str, NDArray[Any]] | None = None) -> Path:
    """A GGUF file of these tensors, or without any; integers become uint32 or, negative, int32, floats float32; None
    leaves a key out.
    """
    writer = GGUFWriter(path, "llama")
    del writer.kv_data[0]["general.architecture"]
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_key_value(key, value, V.INT32 if value < 0 else V.UINT32)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_key_value(key, value, V.STRING)
        elif isinstance(value, list):
            writer.add_key_value(key, value, V.ARRAY)
    for name, array in (tensors or {}).items():
        writer.add_tensor(name, array)
    finish(writer)
    return path


def read(directory: Path, metadata: dict[str, Any]) -> ModelConfig:
    return ModelConfig.from_gguf(GGUFFile(write(directory / "model.gguf", metadata)))
