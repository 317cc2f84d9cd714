"""GGUF files of true size that cost no disk: a real header, and a hole where the weights would be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFValueType, GGUFWriter

from pymixtral.files.names import expert_name
from pymixtral.inspection.inventory import Part
from pymixtral.model.config import ModelConfig


def write_hole(
    path: Path, config: ModelConfig, parts: list[Part], *, architecture: str = "llama", tokens: bool = False
) -> Path:
    """A file whose tensors are `parts`. tokens: with a token list of the size of Mixtral's, else
    without a tokenizer.
    """
    writer = GGUFWriter(path, architecture)
    writer.add_name(config.name)
    for key, value in config.to_gguf().items():
        writer.add_key_value(key, value, GGUFValueType.UINT32 if isinstance(value, int) else GGUFValueType.FLOAT32)
    if tokens:
        pieces = [
            "<unk>",
            "<s>",
            "</s>",
            *(f"<0x{i:02X}>" for i in range(256)),
            *(f"\u2581word{i}" for i in range(config.n_vocab - 259)),
        ]
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
        if part.tensor_class == "experts":
            found += [Part(expert_name(part.name, e), part.type, part.shape[1:]) for e in range(n_experts)]
        else:
            found.append(part)
    return found
