"""Tensors of a checkpoint that are no weights: old versions of transformers stored them too."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType

from pymixtral.errors import UnsupportedError
from pymixtral.files.stored import StoredTensor
from pymixtral.files.types import FLOAT_TYPES
from pymixtral.model.config import ModelConfig
from pymixtral.model.rope import UNSCALED

_FREQUENCIES = re.compile(r"(model\.(layers\.\d+\.self_attn\.)?)?rotary_emb\.inv_freq|rope\.freqs", re.ASCII)
_MASK = re.compile(r"model\.layers\.\d+\.(self_attn|attn|attention)\.(masked_)?bias", re.ASCII)
_POSITIONS = re.compile(r"(model\.)?(embeddings\.)?position_ids", re.ASCII)

_TOLERANCES = {
    GGMLQuantizationType.F32: (1e-5, 0.0),
    GGMLQuantizationType.BF16: (2.0**-8, 0.0),
    GGMLQuantizationType.F16: (2.0**-10, 2.0**-24),
}
"""How far stored frequencies may be from computed ones, relative and absolute: one rounding, and
that of a float32 power."""


def is_buffer(name: str) -> bool:
    """Whether a tensor has the name of one that is no weight."""
    return any(pattern.fullmatch(name) for pattern in (_FREQUENCIES, _MASK, _POSITIONS))


def without_buffers(
    path: Path, stored: Mapping[str, StoredTensor], config: ModelConfig
) -> tuple[dict[str, StoredTensor], tuple[str, ...]]:
    """Leaves out what follows from the configuration.

    Args:
        path: the checkpoint's directory.
        stored: its tensors by name.
        config: the model's numbers.

    Returns:
        The weights, and notes for a user.

    Raises:
        UnsupportedError: stored frequencies are not those of the configuration.
        CheckpointError: they cannot be read.
    """
    left_out = []
    for name, tensor in stored.items():
        if _FREQUENCIES.fullmatch(name):
            _check_frequencies(f"{path}: {name}", tensor, config)
            left_out.append(name)
        elif _POSITIONS.fullmatch(name) or (_MASK.fullmatch(name) and _is_mask(tensor.shape)):
            left_out.append(name)
    if not left_out:
        return dict(stored), ()
    note = f"{len(left_out)} tensors follow from the configuration and were left out, such as {left_out[0]}"
    return {name: tensor for name, tensor in stored.items() if name not in set(left_out)}, (note,)


def _is_mask(shape: tuple[int, ...]) -> bool:
    """Whether this is a triangle [1, 1, n, n] or the number that stands for minus infinity.

    A bias of a projection has one dimension.
    """
    return prod(shape) == 1 or (len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3])


def _check_frequencies(where: str, tensor: StoredTensor, config: ModelConfig) -> None:
    expected = config.rope_frequencies()
    same = tensor.shape == expected.shape and tensor.type in FLOAT_TYPES
    if same:
        relative, absolute = _TOLERANCES[tensor.type]
        # Where positions were scaled in their place, the stored ones are not.
        allowed = expected, UNSCALED.frequencies(config.rope_base, config.head_dim)
        same = any(np.allclose(tensor.floats(), frequencies, relative, absolute) for frequencies in allowed)
    if not same:
        raise UnsupportedError(
            f"{where}: expected the {len(expected)} frequencies of the base {config.rope_base:g}, found others, "
            "which are not supported"
        )
