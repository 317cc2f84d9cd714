"""GGUF files as sources: their tensors are written in other types, their metadata is kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType

from pymixtral import ops
from pymixtral.arrays import F32, U8
from pymixtral.files.gguf import GGUFFile
from pymixtral.files.header import read_shard
from pymixtral.files.names import FUSED_PARTS, FUSED_STEM, TensorName, expert_name, merged_name
from pymixtral.files.stored import SourceFile, StoredTensor
from pymixtral.files.types import FLOAT_TYPES, Matrix, show_type
from pymixtral.model.config import ModelConfig
from pymixtral.model.weights import load_weights

from .checkpoint import Checkpoint
from .targets import Target

# Metadata of a quantization, of files, and of an alignment that is not kept.
_DROPPED = ("split.", "quantize.", "general.alignment")


def read(path: Path) -> Checkpoint:
    """Opens a GGUF file.

    Args:
        path: the file, or any shard of a model in several.

    Returns:
        The checkpoint, with the file's metadata.

    Raises:
        ModelFileError: it is broken or not GGUF.
        ModelConfigError: it describes no model that makes sense.
        UnsupportedError: pymixtral does not run the model.
    """
    with GGUFFile(path) as file:
        config = ModelConfig.from_gguf(file)
        load_weights(file, config)  # checks that all tensors are there, and their shapes
        metadata = {key: bytes(view) for key, view in file.encoded.items() if not key.startswith(_DROPPED)}
        paths = tuple(map(Path, file.paths))
    stored = dict(_stored(paths))
    tensors: dict[str, StoredTensor] = {}
    plan = tuple(_targets(stored, tensors))
    types = Counter(show_type(tensor.type) for tensor in stored.values() if tensor.type not in FLOAT_TYPES)
    notes = []
    if types:
        found = ", ".join(f"{n} {name}" for name, n in types.most_common())
        notes.append(
            f"the source is quantized already ({found}), and its errors stay: "
            "quantize from the original weights if you can"
        )
    return Checkpoint(path, config, paths, tensors, plan, metadata, tuple(notes))


def _stored(paths: Sequence[Path]) -> Iterator[tuple[str, StoredTensor]]:
    dequantize = _dequantizer()
    for path in paths:
        file = SourceFile(path)  # before its header is read, so that a change after that is seen
        for name, place in read_shard(str(path), mapped=False).places.items():
            yield name, StoredTensor(file, place.type, place.shape, place.offset, dequantize)


def _dequantizer() -> Callable[[GGMLQuantizationType, U8], F32]:
    context = ops.Context(1)  # rows are read in a thread of their own, beside those that encode

    def dequantize(kind: GGMLQuantizationType, raw: U8) -> F32:
        return ops.embed(context, Matrix(kind, raw), np.arange(len(raw), dtype=np.int32))

    return dequantize


def _targets(stored: dict[str, StoredTensor], tensors: dict[str, StoredTensor]) -> Iterator[Target]:
    """The file's tensors in its order. Fills `tensors`.

    Those of single experts become one, in the place of the first.
    """
    experts = Counter(merged for name in stored if (merged := merged_name(name)) != name)
    for name, tensor in stored.items():
        merged = merged_name(name)
        if merged != name:
            if merged in experts:
                sources = tuple(expert_name(merged, e) for e in range(experts.pop(merged)))
                tensors |= {source: stored[source] for source in sources}
                yield Target(merged, sources, tensor.shape, merged=True)
        elif len(tensor.shape) == 3:
            n_experts, rows, cols = tensor.shape
            parsed = TensorName.parse(name)
            fused = parsed is not None and parsed.stem == FUSED_STEM
            whole = [str(replace(parsed, stem=stem)) for stem in FUSED_PARTS] if parsed and fused else [name]
            rows //= len(whole)
            for i, target in enumerate(whole):
                parts = {f"{target}[{e}]": tensor.part(e, slice(i * rows, (i + 1) * rows)) for e in range(n_experts)}
                tensors |= parts
                yield Target(target, tuple(parts), (rows, cols), merged=True)
        else:
            tensors[name] = tensor
            yield Target(name, (name,), tensor.shape)
