"""The header of the file that is written, from a checkpoint and its vocabulary."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from gguf import GGML_QUANT_VERSION, GGUFValueType, LlamaFileType

from pymixtral.files.writing import TensorInfo, encode_header, encode_string

from .planning import ALIGNMENT, PlannedTensor
from .sources.checkpoint import Checkpoint
from .vocabulary.vocabulary import Vocabulary

_Scalar = bool | int | float | str
_Value = _Scalar | Sequence[str] | Sequence[int] | Sequence[float]

_KINDS = {bool: GGUFValueType.BOOL, int: GGUFValueType.UINT32, float: GGUFValueType.FLOAT32}
_FORMATS = {bool: "<?", int: "<I", float: "<f"}


def make_header(
    checkpoint: Checkpoint,
    vocabulary: Vocabulary | None,
    tensors: Sequence[PlannedTensor],
    file_type: LlamaFileType,
) -> bytes:
    """The file without its data, padded.

    Args:
        checkpoint: its configuration becomes metadata; of a GGUF source the metadata is kept, byte
            for byte.
        vocabulary: the tokens, or None.
        tensors: in the order of their data.
        file_type: GGUF's general.file_type.

    Returns:
        Bytes, whose number does not depend on the types of the tensors.
    """
    written = {"general.file_type": int(file_type), "general.quantization_version": GGML_QUANT_VERSION}
    if checkpoint.metadata:
        keys = dict(checkpoint.metadata) | {key: _entry(key, value) for key, value in written.items()}
    else:
        config = checkpoint.config
        values: dict[str, _Value] = {
            "general.architecture": "llama",
            "general.name": config.name.encode("utf-8", "replace").decode(),  # a directory's name may be no UTF-8
            **written,
            **config.to_gguf(),
            **(vocabulary.to_gguf() if vocabulary else {}),
        }
        keys = {key: _entry(key, value) for key, value in values.items()}
    infos = (TensorInfo(tensor.target.name, tensor.target.shape, tensor.type, tensor.n_bytes) for tensor in tensors)
    return encode_header(list(keys.values()), infos, ALIGNMENT)


def _entry(key: str, value: _Value) -> bytes:
    """Key, type and value. Whole numbers are uint32, in arrays int32."""
    if isinstance(value, str):
        return encode_string(key) + struct.pack("<I", GGUFValueType.STRING) + encode_string(value)
    if isinstance(value, bool | int | float):
        return encode_string(key) + struct.pack("<I", _KINDS[type(value)]) + struct.pack(_FORMATS[type(value)], value)
    kind = {str: GGUFValueType.STRING, int: GGUFValueType.INT32, float: GGUFValueType.FLOAT32}[type(value[0])]
    head = encode_string(key) + struct.pack("<IIQ", GGUFValueType.ARRAY, kind, len(value))
    if kind == GGUFValueType.STRING:
        return head + b"".join(encode_string(item) for item in value)  # type: ignore[arg-type]
    return head + np.asarray(value, "<i4" if kind == GGUFValueType.INT32 else "<f4").tobytes()
