"""A model file read through: every tensor there, of its shape, and none with a number that would spoil the results."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from tqdm import tqdm

from pymixtral import ops
from pymixtral.arrays import U8
from pymixtral.errors import ModelFileError
from pymixtral.files.gguf import GGUFFile
from pymixtral.files.header import Tensor, quoted
from pymixtral.model.config import ModelConfig
from pymixtral.model.overrides import Override, override
from pymixtral.model.weights import load_weights
from pymixtral.text.tokenizer import Tokenizer, has_tokenizer

_CHUNK_BYTES = 1 << 23
_F32, _F16, _BF16 = ("<u4", 0x7F800000), ("<u2", 0x7C00), ("<u2", 0x7F80)  # NaN and infinity have all bits of the exponent

_Type = GGMLQuantizationType
# The bytes at which a block has an f16 number: its scale, and in some types a minimum.
_SCALES: dict[GGMLQuantizationType, tuple[int, ...]] = {
    **dict.fromkeys((_Type.Q4_0, _Type.Q5_0, _Type.Q8_0, _Type.IQ4_NL, _Type.IQ4_XS), (0,)),
    **dict.fromkeys((_Type.IQ1_S, _Type.IQ2_XXS, _Type.IQ2_XS, _Type.IQ2_S, _Type.IQ3_XXS, _Type.IQ3_S), (0,)),
    **dict.fromkeys((_Type.Q4_1, _Type.Q5_1, _Type.Q4_K, _Type.Q5_K), (0, 2)),
    _Type.Q2_K: (80, 82),
    _Type.Q3_K: (108,),
    _Type.Q6_K: (208,),
    _Type.TQ1_0: (52,),
    _Type.TQ2_0: (64,),
}


def verify(
    path: str | os.PathLike[str],
    *,
    experts_used: int | None = None,
    overrides: Mapping[str, Override] | None = None,
    n_threads: int | None = None,
    progress: bool = True,
) -> int:
    """Reads a whole model, or all shards of one, and returns its number of tensors.

    experts_used, overrides: as of pymixtral.Mixtral. n_threads: None for what affinity, quota and cores allow. progress: a bar on stderr
    when that is a terminal.

    Raises ModelFileError for a broken file, and for a scale, minimum or weight that is NaN or infinite, with tensor, row and block, the
    first in the order of the file (blocks are counted along their row); ModelConfigError for a tensor that is missing or has another
    shape than the metadata says; UnsupportedError for a model that pymixtral does not run.
    """
    with GGUFFile(path) as file:
        override(file, experts_used, overrides)
        load_weights(file, ModelConfig.from_gguf(file))
        if has_tokenizer(file.metadata, file.path):
            Tokenizer.from_metadata(file.metadata, file.path)
        n_bytes = sum(tensor.data.nbytes for tensor in file.tensors.values())
        pool = ThreadPoolExecutor(n_threads or ops.thread_limits().default)
        try:
            with tqdm(total=n_bytes, unit="B", unit_scale=True, disable=None if progress else True) as bar:
                for damage, size in pool.map(lambda chunk: _check(*chunk), _chunks(file)):
                    if damage:
                        raise ModelFileError(f"{file.path}: {damage}: the file is damaged, download or quantize it again")
                    bar.update(size)
        finally:
            pool.shutdown(cancel_futures=True)
        file.check_length()
        return len(file.tensors)


def _chunks(file: GGUFFile) -> Iterator[tuple[Tensor, int, U8]]:
    """Tensor, index of the first block, and blocks uint8 [n, block bytes]."""
    for tensor in file.tensors.values():
        blocks = tensor.data.reshape(-1, GGML_QUANT_SIZES[tensor.type][1])
        step = max(1, _CHUNK_BYTES // blocks.shape[1])
        for begin in range(0, len(blocks), step):
            yield tensor, begin, blocks[begin : begin + step]


def _check(tensor: Tensor, begin: int, blocks: U8) -> tuple[str, int]:
    """What is wrong with the first damaged block, or ""; and the bytes looked at."""
    bad = _nonfinite(tensor.type, blocks)
    if not bad.any():
        return "", blocks.nbytes
    at = int(bad.argmax())
    block, size = GGML_QUANT_SIZES[tensor.type]
    *row, i = (int(i) for i in np.unravel_index(begin + at, (*tensor.shape[:-1], tensor.shape[-1] // block)))
    where = f"{'weight' if block == 1 else 'block'} {i} of row {row}"
    return f"tensor {quoted(tensor.name)} ({tensor.type.name}): expected finite numbers, found NaN or infinity in {where}", size


def _nonfinite(kind: GGMLQuantizationType, blocks: U8) -> Any:
    """Which of the blocks [n, block bytes] hold a number that is NaN or infinite: bool [n]."""
    if kind == _Type.F32:
        return _exponent_full(blocks, 0, *_F32)
    if kind in (_Type.F16, _Type.BF16):
        return _exponent_full(blocks, 0, *(_F16 if kind == _Type.F16 else _BF16))
    if kind == _Type.MXFP4:
        return np.greater(blocks[:, 0], 252)  # 2^(253 - 128) times 12 is beyond f32
    if kind == _Type.IQ1_M:  # the scale's top nibbles are those of the last two of four 16-bit numbers
        return np.logical_and(blocks[:, 55] & 0x70 == 0x70, blocks[:, 53] & 0xC0 == 0xC0)
    bad = np.zeros(len(blocks), np.bool_)
    for at in _SCALES[kind]:
        bad |= _exponent_full(blocks, at, *_F16)
    return bad


def _exponent_full(blocks: U8, at: int, dtype: str, mask: int) -> Any:
    numbers = np.ndarray(len(blocks), dtype, blocks, at, (blocks.strides[0],))  # unaligned, not copied
    return np.equal(numbers & mask, mask)
