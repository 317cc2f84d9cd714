"""GGUF files in the forms that other tools write, made from the quantizer's with the gguf package
alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray

from pymixtral.arrays import F32
from pymixtral.files.gguf import GGUFFile
from pymixtral.files.types import row_bytes
from pymixtral.model.weights import ModelWeights


def _encode(values: F32, kind: GGMLQuantizationType) -> NDArray[Any]:
    """As the package gguf encodes; of a type that it only reads, weights of 0."""
    try:
        return quantize(values, kind)
    except NotImplementedError:
        return np.zeros((*values.shape[:-1], row_bytes(kind, values.shape[-1])), np.uint8)


def finish(writer: GGUFWriter) -> None:
    """Writes all that a writer was given."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def rewrite(
    source: Path,
    dest: Path,
    *,
    keys: Mapping[str, Any] | None = None,
    types: Mapping[str, GGMLQuantizationType] | None = None,
    split: bool = False,
    fused: bool = False,
    without: tuple[str, ...] = (),
    version: int = 3,
    shard_tensors: int = 0,
) -> Path:
    """Writes `source` as `dest` and returns the file to open, the first of several with
    shard_tensors.

    keys: metadata to set (int as uint32, float as float32, bool, str, lists of one kind), None to
    leave out. types: for tensors whose names hold the text. split: one tensor for each expert.
    fused: gate and up of all experts in one tensor. without: tensors left out. shard_tensors: at
    most so many in a file.
    """
    reader = GGUFReader(source)
    writer = GGUFWriter(dest, "llama", split_max_tensors=shard_tensors)
    changes = dict(keys or {})
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture" and name not in changes:
            writer.add_key_value(
                name, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None
            )
    kinds = {
        int: GGUFValueType.UINT32,
        float: GGUFValueType.FLOAT32,
        bool: GGUFValueType.BOOL,
        str: GGUFValueType.STRING,
    }
    kinds[list] = GGUFValueType.ARRAY
    for name, value in changes.items():
        if value is not None:
            writer.add_key_value(name, value, kinds[type(value)])
    for tensor in reader.tensors:
        if tensor.name in without:
            continue
        data, kind = tensor.data, tensor.tensor_type
        wanted = next((to for text, to in (types or {}).items() if text in tensor.name), kind)
        if wanted != kind:
            data, kind = _encode(np.asarray(dequantize(data, kind)), wanted), wanted
        if fused and ("ffn_gate_exps." in tensor.name or "ffn_up_exps." in tensor.name):
            if "gate" in tensor.name:
                up = next(other for other in reader.tensors if other.name == tensor.name.replace("gate", "up"))
                assert kind == up.tensor_type == tensor.tensor_type
                both = np.concatenate([tensor.data, up.data], axis=1)
                writer.add_tensor(tensor.name.replace("gate", "gate_up"), both, raw_dtype=kind)
        elif split and "_exps." in tensor.name:
            for e, expert in enumerate(data):
                writer.add_tensor(tensor.name.replace("_exps.", f".{e}."), np.ascontiguousarray(expert), raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, np.ascontiguousarray(data), raw_dtype=kind)
    finish(writer)
    paths = sorted(dest.parent.glob(f"{dest.stem}-*-of-*.gguf")) if shard_tensors else [dest]
    for path in paths:
        with path.open("r+b") as file:  # both versions have the same layout
            file.seek(4)
            file.write(version.to_bytes(4, "little"))
    return paths[0]


def damaged(source: Path, dest: Path, tensor: str, at: int, value: bytes) -> Path:
    """A copy with `value` written at byte `at` of a tensor's data."""
    data = bytearray(source.read_bytes())
    begin = next(int(t.data_offset) for t in GGUFReader(source).tensors if t.name == tensor)
    data[begin + at : begin + at + len(value)] = value
    dest.write_bytes(data)
    return dest


def contents(path: Path) -> dict[str, tuple[GGMLQuantizationType, tuple[int, ...], bytes]]:
    """Type, shape and bytes of each tensor, as pymixtral reads them."""
    with GGUFFile(path) as file:
        return {tensor.name: (tensor.type, tensor.shape, tensor.data.tobytes()) for tensor in file.tensors.values()}


def is_mapped(file: GGUFFile, weights: ModelWeights) -> bool:
    """Whether every matrix is memory of the mapped file."""
    matrices = [weights.embedding, weights.head]
    for layer in weights.layers:
        matrices += [layer.q, layer.k, layer.v, layer.output, *filter(None, [layer.router])]
        matrices += [matrix for expert in layer.experts for matrix in expert]
    maps = [np.frombuffer(mapped, np.uint8) for mapped in file.maps.values()]
    return all(any(np.may_share_memory(matrix.data, mapped) for mapped in maps) for matrix in matrices)
