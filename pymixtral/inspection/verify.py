"""A model file read through.

Every tensor must be there, have its shape, and hold no number that would spoil the results.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from pymixtral import ops
from pymixtral.arrays import U8
from pymixtral.errors import ModelFileError
from pymixtral.files.gguf import GGUFFile
from pymixtral.files.header import Tensor, quoted
from pymixtral.files.types import WEIGHT_TYPES, block_bytes, block_weights
from pymixtral.model.config import ModelConfig
from pymixtral.model.overrides import ExpertsUsed, Override, override, with_experts
from pymixtral.model.weights import load_weights
from pymixtral.progress import progress_bar
from pymixtral.text.tokenizer import open_tokenizer
from pymixtral.threads import starting_threads

_CHUNK_BYTES = 1 << 23

# Integers of the size of a number, and the bits of its exponent, which NaN and infinity have all.
_F32, _F16, _BF16 = ("<u4", 0x7F800000), ("<u2", 0x7C00), ("<u2", 0x7F80)

_Type = GGMLQuantizationType


def verify(
    path: str | os.PathLike[str],
    *,
    experts_used: ExpertsUsed | None = None,
    overrides: Mapping[str, Override] | None = None,
    n_threads: int | None = None,
    progress: bool = True,
) -> int:
    """Reads a whole model, or all shards of one.

    Args:
        path: the file, or any shard.
        experts_used: as of pymixtral.Mixtral.
        overrides: as of pymixtral.Mixtral.
        n_threads: None for what affinity, quota and cores allow.
        progress: a bar on stderr, when that is a terminal.

    Returns:
        The number of tensors.

    Raises:
        ModelFileError: a file is broken, or a scale, minimum or weight is NaN or infinite. The
            message has tensor, row and block, the first in the order of the file; blocks are
            counted along their row.
        ModelConfigError: a tensor is missing, or has another shape than the metadata says.
        UnsupportedError: pymixtral does not run the model.
        InvalidArgumentError: experts_used or overrides cannot be given.
    """
    with GGUFFile(path) as file:
        override(file, experts_used, overrides)
        config = with_experts(ModelConfig.from_gguf(file), experts_used)
        load_weights(file, config)
        open_tokenizer(file.metadata, file.path, config.n_vocab)
        n_bytes = sum(tensor.data.nbytes for tensor in file.tensors.values())
        pool = ThreadPoolExecutor(n_threads or ops.thread_limits().default)
        try:
            with starting_threads(), progress_bar(total=n_bytes, unit="B", unit_scale=True, shown=progress) as bar:
                chunks = _chunks(file)
                for damage, n_bytes in pool.map(lambda chunk: (_damage(*chunk), chunk[2].nbytes), chunks):
                    if damage:
                        raise ModelFileError(
                            f"{file.path}: {damage}: the file is damaged, download or quantize it again"
                        )
                    bar.update(n_bytes)
        finally:
            pool.shutdown(cancel_futures=True)
        file.check_length()
        return len(file.tensors)


def _chunks(file: GGUFFile) -> Iterator[tuple[Tensor, int, U8]]:
    """Tensor, index of the first block, and blocks uint8 [n, block bytes]."""
    for tensor in file.tensors.values():
        blocks = tensor.data.reshape(-1, block_bytes(tensor.type))
        step = max(1, _CHUNK_BYTES // blocks.shape[1])
        for begin in range(0, len(blocks), step):
            yield tensor, begin, blocks[begin : begin + step]


def _damage(tensor: Tensor, begin: int, blocks: U8) -> str:
    """What is wrong with the first damaged block, or ""."""
    bad = _nonfinite(tensor.type, blocks)
    if not bad.any():
        return ""
    size = block_weights(tensor.type)
    shape = (*tensor.shape[:-1], tensor.shape[-1] // size)
    *row, i = (int(i) for i in np.unravel_index(begin + int(bad.argmax()), shape))
    return (
        f"tensor {quoted(tensor.name)} ({tensor.type.name}): expected finite numbers, "
        f"found NaN or infinity in {'weight' if size == 1 else 'block'} {i} of row {row}"
    )


def _nonfinite(kind: GGMLQuantizationType, blocks: U8) -> Any:
    """Which of the blocks [n, block bytes] hold a number that is NaN or infinite: bool [n]."""
    if kind == _Type.F32:
        return _exponent_full(blocks, 0, *_F32)
    if kind == _Type.BF16:
        return _exponent_full(blocks, 0, *_BF16)
    if kind == _Type.MXFP4:
        return np.greater(blocks[:, 0], 252)  # 2^(253 - 128) times 12 is beyond f32
    if kind == _Type.IQ1_M:  # the scale's top nibbles are those of the last two of four 16-bit numbers
        return np.logical_and(blocks[:, 55] & 0x70 == 0x70, blocks[:, 53] & 0xC0 == 0xC0)
    bad = np.zeros(len(blocks), np.bool_)
    for at in WEIGHT_TYPES[kind].f16_at:
        bad |= _exponent_full(blocks, at, *_F16)
    return bad


def _exponent_full(blocks: U8, at: int, dtype: str, mask: int) -> Any:
    numbers: NDArray[Any] = np.ndarray(len(blocks), dtype, blocks, at, (blocks.strides[0],))  # unaligned, not copied
    return np.equal(numbers & mask, mask)
