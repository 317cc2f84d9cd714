"""The quantization of a checkpoint in Hugging Face's form: what its files say of it, and its packed matrices."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from pathlib import Path

import numpy as np

from pymixtral.arguments import shown
from pymixtral.errors import CheckpointError, UnsupportedError
from pymixtral.files.stored import StoredTensor, Type
from pymixtral.files.types import FLOAT_TYPES

from .packed import BLOCK, IN_ORDER, INTERLEAVED, PackedTensor, Packing
from .values import Values

_FILES = ("quantize_config.json", "quant_config.json")
"""Where AutoGPTQ and AutoAWQ wrote of it before transformers knew them."""

_SYNONYMS = {
    "bits": ("bits", "w_bit"),
    "group_size": ("group_size", "q_group_size"),
    "method": ("quant_method", "method"),
    "gptq": ("checkpoint_format", "format"),
    "awq": ("version", "checkpoint_format", "format"),
}
"""The names that a value had or has, in AutoGPTQ, AutoAWQ, transformers and GPTQModel."""

_NEUTRAL: dict[str, dict[str, object]] = {
    "gptq": {"is_marlin_format": False},
    "awq": {"zero_point": True, "backend": "autoawq"},
}
"""Of each method, keys that say that numbers are packed in another way, and the values that do not."""

_FORMATS = {"gptq": ("gptq", "gptq_v2"), "awq": ("gemm",)}
"""Of each method, the ways to pack that are read; the first is the one where none is named."""


def unpacked(
    directory: Path, stored: Mapping[str, StoredTensor]
) -> tuple[dict[str, StoredTensor], Packing | None, tuple[str, ...]]:
    """The packed matrices of a checkpoint as tensors with the names of their weights.

    Args:
        directory: the checkpoint.
        stored: its tensors by name.

    Returns:
        All tensors, how the packed ones are packed, or None where there are none, and notes for a
        user.

    Raises:
        CheckpointError: the files contradict themselves or each other.
        UnsupportedError: another method, or a way to pack that is not read.
    """
    stems = [name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")]
    if not stems:
        return dict(stored), None, ()
    found = _settings(directory)
    packing = _packing(found)
    tensors, n_biases = dict(stored), 0
    for stem in stems:
        tensor = _packed(directory, stem, tensors, packing, bool(found.get("desc_act")))
        if tensor.name in tensors:
            raise CheckpointError(f"{directory}: tensor {tensor.name}: expected it once, found it packed and by itself")
        tensors[tensor.name] = tensor
        n_biases += _drop_zero_bias(f"{stem}.bias", tensor.shape[0], tensors)
    notes = [
        f"the source is quantized already ({len(stems)} matrices by {packing.method}, in {packing.groups}), and its "
        "errors stay"
    ]
    if n_biases:
        notes.append(f"{n_biases} biases of packed matrices are 0 and were left out")
    return tensors, packing, tuple(notes)


def _settings(directory: Path) -> Values:
    """What says how the matrices are packed."""
    if found := Values.read(directory / "config.json").inner("quantization_config"):
        return found
    for name in _FILES:
        if (directory / name).exists():
            return Values.read(directory / name)
    raise CheckpointError(
        f"{directory}: expected quantization_config in config.json, or {' or '.join(_FILES)}, for packed matrices, "
        "found none of them: download the checkpoint again"
    )


def _packing(found: Values) -> Packing:
    method = _word(found, "method", "awq" if found.has("version") else "gptq")
    if method not in _FORMATS:
        raise _unsupported(found, "method", " or ".join(_FORMATS))
    form = _word(found, method, _FORMATS[method][0])
    if form not in _FORMATS[method]:
        raise _unsupported(found, method, " or ".join(_FORMATS[method]))
    bits, size = found.get(_key(found, "bits")), found.get(_key(found, "group_size"))
    if type(bits) is not int or bits != 4:
        raise _unsupported(found, "bits", "4")
    if type(size) is not int or not (size == -1 or (0 < size < 2**31 and size % BLOCK == 0)):
        raise _unsupported(found, "group_size", f"a multiple of {BLOCK}, or -1")
    size = max(0, size)
    for key, neutral in _NEUTRAL[method].items():
        if found.get(key) not in (None, neutral):
            raise _unsupported(found, key, shown(neutral))
    if method == "awq":
        return Packing("AWQ", size, INTERLEAVED)
    dynamic = found.inner("dynamic")
    if dynamic and any(not key.startswith("-") for key in dynamic.values):  # a minus: matrices that are not packed
        raise _unsupported(found, "dynamic", "one quantization for all matrices")
    meta = found.inner("meta")
    wraps = meta is not None and "gptqmodel" in str(meta.get("quantizer"))
    return Packing("GPTQ", size, IN_ORDER, form == "gptq", wraps, found.get("sym") is True)


def _key(found: Values, name: str) -> str:
    """The key that a value has here."""
    names = _SYNONYMS.get(name, (name,))
    return next(filter(found.has, names), names[0])


def _word(found: Values, name: str, default: str) -> str:
    """A name, in lower case; "" for what is none."""
    value = found.get(_key(found, name))
    return default if value is None else value.lower() if isinstance(value, str) else ""


def _unsupported(found: Values, name: str, expected: str) -> UnsupportedError:
    key = _key(found, name)
    return UnsupportedError(
        f"{found.where}: {key}: expected {expected}, found {shown(found.get(key))}, which is not supported: quantize "
        "from the unquantized checkpoint"
    )


def _packed(
    directory: Path, stem: str, tensors: dict[str, StoredTensor], packing: Packing, act_order: bool
) -> PackedTensor:
    """The matrix that some tensors make, which are taken out of `tensors`."""
    where = f"{directory}: {stem}"
    parts = {last: tensors.pop(f"{stem}.{last}", None) for last in ("qweight", "qzeros", "scales", "g_idx")}
    qweight, qzeros, scales, g_idx = parts.values()
    if qweight is None or qzeros is None or scales is None or (act_order and g_idx is None):
        lacking = next(last for last, part in parts.items() if part is None)
        raise CheckpointError(f"{where}.{lacking}: expected it beside {stem}.qweight, found none")
    shape = qweight.shape if len(qweight.shape) == 2 else (0, 0)
    n_cols, n_rows = (shape[0], 8 * shape[1]) if packing.order == INTERLEAVED else (8 * shape[0], shape[1])
    if not n_cols or not n_rows or n_cols % BLOCK or n_rows % 8:
        raise UnsupportedError(
            f"{where}.qweight: expected a matrix of a multiple of {BLOCK} columns and of 8 rows, found shape "
            f"{list(qweight.shape)}, which is not supported"
        )
    n_groups = ceil(n_cols / packing.group_size) if packing.group_size else 1
    shapes = {"qzeros": (n_groups, n_rows // 8), "scales": (n_groups, n_rows), "g_idx": (n_cols,)}
    for last, expected in shapes.items():
        part = parts[last]
        if part and part.shape != expected:
            raise CheckpointError(
                f"{where}.{last}: expected shape {list(expected)}, as its qweight {list(qweight.shape)} in "
                f"{packing.groups} says, found {list(part.shape)}"
            )
    if scales.type not in FLOAT_TYPES:
        raise CheckpointError(f"{where}.scales: expected F32, F16 or BF16, found {scales.type.name}")
    return PackedTensor(
        file=qweight.file,
        type=Type.Q4_1,
        shape=(n_rows, n_cols),
        offset=qweight.offset,
        name=f"{stem}.weight",
        packing=packing,
        qweight=qweight,
        qzeros=qzeros,
        scales=scales,
        g_idx=g_idx if g_idx and not _in_order(f"{where}.g_idx", g_idx, packing.group_size or n_cols) else None,
    )


def _in_order(where: str, g_idx: StoredTensor, group_size: int) -> bool:
    """Whether the groups of columns follow one another."""
    index = g_idx.raw().view("<i4")[0]
    n_groups = ceil(len(index) / group_size)
    if index.min() < 0 or index.max() >= n_groups:
        raise CheckpointError(
            f"{where}: expected groups from 0 to {n_groups - 1}, found {index.min()} to {index.max()}"
        )
    return bool(np.array_equal(index, np.arange(len(index)) // group_size))


def _drop_zero_bias(name: str, n_rows: int, tensors: dict[str, StoredTensor]) -> bool:
    """Takes out a bias that adds nothing, which some versions store of every packed matrix."""
    bias = tensors.get(name)
    if bias is None or bias.shape != (n_rows,) or bias.type not in FLOAT_TYPES or bias.floats().any():
        return False
    del tensors[name]
    return True
