"""Small checkpoints of GPTQ and AWQ, and what their files mean, number by number."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from pymixtral.arrays import F16, F32, I32, U8
from support.checkpoints import Shape, config_json, make_tensors, write_tokenizer

Tensors = dict[str, NDArray[Any]]

_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight rows each four bits of a word belong to, from the lowest."""

FLOATS = ("embed_tokens", "norm", "block_sparse_moe.gate", "lm_head")
"""Parts of the names of tensors that both leave as floats."""


@dataclass(frozen=True)
class Form:
    """How a checkpoint is packed.

    group_size: -1 for a row. version: of GPTQ's format, 0 of AWQ. symmetric: all zeros are 8.
    act_order: columns are in groups by another order than their own.
    """

    group_size: int
    version: int = 0
    symmetric: bool = False
    act_order: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """quantization_config, as its programs write it."""
        if not self.version:
            awq = {"quant_method": "awq", "zero_point": True, "version": "gemm", "modules_to_not_convert": ["gate"]}
            return {**awq, "bits": 4, "group_size": self.group_size}
        return {
            "quant_method": "gptq",
            "bits": 4,
            "group_size": self.group_size,
            "desc_act": self.act_order,
            "sym": self.symmetric,
            "checkpoint_format": "gptq" if self.version == 1 else "gptq_v2",
        }


def pack(weights: F32, form: Form, seed: int) -> Tensors:
    """The tensors that stand for a matrix [rows, cols], by the last part of their names."""
    rows, cols = weights.shape
    size = cols if form.group_size == -1 else form.group_size
    n_groups = -(-cols // size)
    index: I32 = (np.arange(cols) // size).astype(np.int32)
    if form.act_order:
        index = np.random.Generator(np.random.PCG64(seed)).permutation(index)
    scales: F16 = np.empty((n_groups, rows), np.float16)
    zeros = np.empty((n_groups, rows), np.int64)
    for g in range(n_groups):
        w = weights[:, index == g]
        low, high = np.minimum(w.min(axis=1), 0), np.maximum(w.max(axis=1), 0)
        if form.symmetric:
            scales[g], zeros[g] = np.abs(w).max(axis=1) / 7.5, 8
        else:
            scales[g] = (high - low) / 15
            zeros[g] = np.clip(np.round(-low / scales[g]), 1, 15)
    codes = np.clip(np.round(weights / scales[index].T + zeros[index].T), 0, 15).astype(np.uint32)
    if not form.version:
        order = [8 * (i // 8) + _AWQ_ORDER[i % 8] for i in range(rows)]
        qweight, qzeros = _words(codes.T[:, order]), _words(zeros[:, order].astype(np.uint32))
        return {"qweight": qweight, "qzeros": qzeros, "scales": scales}
    qweight, qzeros = _words(codes).T, _words((zeros - (form.version == 1)).astype(np.uint32))
    return {"qweight": np.ascontiguousarray(qweight), "qzeros": qzeros, "scales": scales, "g_idx": index}


def _words(numbers: NDArray[np.uint32]) -> I32:
    """Eight numbers of the last dimension in a word, the first in its lowest four bits."""
    groups = numbers.reshape(len(numbers), -1, 8)
    words: NDArray[np.uint32] = np.zeros(groups.shape[:2], np.uint32)
    for i in range(8):
        words |= groups[:, :, i] << np.uint32(4 * i)
    return words.view(np.int32)


def numbers(parts: Tensors, form: Form) -> tuple[F32, U8, U8]:
    """Scales, zeros and codes of each weight, [rows, cols], by the definition of the format."""
    word = {name: parts[name].view(np.uint32).astype(np.int64) for name in ("qweight", "qzeros")}
    rows = parts["scales"].shape[1]
    cols = parts["qweight"].shape[0] * (8 if form.version else 1)
    size = cols if form.group_size == -1 else form.group_size
    index = parts["g_idx"] if "g_idx" in parts else np.arange(cols) // size
    o, i = np.arange(rows)[:, None], np.arange(cols)[None]
    if form.version:
        codes = word["qweight"][i // 8, o] >> 4 * (i % 8) & 15
        zeros = (word["qzeros"][index[i], o // 8] >> 4 * (o % 8) & 15) + (form.version == 1)
    else:
        place = np.array([_AWQ_ORDER.index(n) for n in range(8)])[o % 8]
        codes = word["qweight"][i, o // 8] >> 4 * place & 15
        zeros = word["qzeros"][index[i], o // 8] >> 4 * place & 15
    return parts["scales"][index[i], o].astype(np.float32), zeros.astype(np.uint8), codes.astype(np.uint8)


def make_packed(directory: Path, shape: Shape, form: Form, *, seed: int = 1) -> tuple[Tensors, dict[str, Tensors]]:
    """Writes a checkpoint in model.safetensors, with a tokenizer.

    Returns:
        What the file has, and of each packed matrix, by the name of its weight, its tensors.
    """
    directory.mkdir(parents=True, exist_ok=True)
    stored: Tensors = {}
    packed: dict[str, Tensors] = {}
    for i, (name, weights) in enumerate(make_tensors(shape, seed=seed).items()):
        if any(part in name for part in FLOATS):
            stored[name] = weights.astype(np.float16)
        else:
            packed[name] = pack(weights, form, i)
            stored |= {f"{name.removesuffix('weight')}{last}": x for last, x in packed[name].items()}
    config = config_json(shape, dtype="float16") | {"quantization_config": form.settings}
    (directory / "config.json").write_text(json.dumps(config))
    write_tokenizer(directory, shape.n_vocab)
    save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})
    return stored, packed


def dequantized(stored: Tensors, packed: dict[str, Tensors], form: Form) -> dict[str, F32]:
    """The weights of the whole checkpoint: scale * (code - zero)."""
    weights = {name: x.astype(np.float32) for name, x in stored.items() if name.endswith("weight") and x.dtype == "f2"}
    for name, parts in packed.items():
        scales, zeros, codes = numbers(parts, form)
        weights[name] = scales * (codes.astype(np.float32) - zeros)
    return weights
