"""The safetensors files of a checkpoint: which types its tensors may have, and what to do about others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pymixtral.arguments import shown
from pymixtral.errors import CheckpointError
from pymixtral.files import safetensors
from pymixtral.files.safetensors import DTYPES
from pymixtral.files.stored import StoredTensor, Type

from .buffers import is_buffer

_BUFFER_TYPES = {
    **DTYPES,
    **dict.fromkeys(("BOOL", "U8", "I8"), Type.I8),
    **dict.fromkeys(("U16", "I16"), Type.I16),
    **dict.fromkeys(("U32", "I32"), Type.I32),
    **dict.fromkeys(("U64", "I64"), Type.I64),
    "F64": Type.F64,
}
"""Types of tensors that are no weights: of these only the sizes count."""

_PACKED_TYPES = {"I32": Type.I32}
"""Of the tensors of _PACKED, which hold words of 32 bits."""

_PACKED = ("qweight", "qzeros", "g_idx")
"""The last parts of the names of what GPTQ and AWQ store in place of a weight."""


def read_all(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """Opens the files of a checkpoint.

    Args:
        files: their paths.

    Returns:
        All tensors by name.

    Raises:
        CheckpointError: as of read_safetensors, or a tensor is in two files.
    """
    tensors: dict[str, StoredTensor] = {}
    for path in files:
        for name, tensor in read_safetensors(path).items():
            if name in tensors:
                raise CheckpointError(
                    f"{path}: tensor {shown(name)}: expected it in one file of the checkpoint, found it in another too"
                )
            tensors[name] = tensor
    return tensors


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Opens one file of a checkpoint.

    Args:
        path: the file.

    Returns:
        All tensors by name; their data is read when it is asked for.

    Raises:
        CheckpointError: the file cannot be read or breaks the format; the message has the file, the
            tensor and the rule.
    """
    return safetensors.read_safetensors(path, _types_of, _advice)


def _types_of(name: str) -> Mapping[str, Type]:
    if is_buffer(name):
        return _BUFFER_TYPES
    return _PACKED_TYPES if name.rpartition(".")[2] in _PACKED else DTYPES


def _advice(name: str, header: Mapping[str, Any]) -> str:
    return f"{_quantized_by(name, header)}: quantize from the unquantized checkpoint"


def _quantized_by(name: str, header: Mapping[str, Any]) -> str:
    """The program that quantized a tensor, as its name and those beside it tell."""
    stem, _, last = name.rpartition(".")
    if last in _PACKED:
        return ", as GPTQ and AWQ store quantized weights"
    if f"{stem}.scales" in header and f"{stem}.biases" in header:
        return " with scales and biases, as MLX stores quantized weights"
    if any(other.startswith((f"{name}.absmax", f"{name}.quant_state")) for other in header):
        return " with absmax, as bitsandbytes stores quantized weights"
    return ""
