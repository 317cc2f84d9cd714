"""Writes a Mixtral of full width with random weights: a file to measure speed with, in a few
seconds and without a download.

    python benchmarks/synthetic.py --layers 4 --type q4_0 /var/tmp/mixtral-q4_0.gguf
    python benchmarks/synthetic.py --layers 4 --type q4_k_m /var/tmp/mixtral-q4_k_m.gguf

Every layer has Mixtral 8x7B's shape, so that a layer costs what it costs there. The weights have
standard deviation 1/sqrt(cols), which keeps activations near one and spreads tokens over all
experts; the text that such a model writes means nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import log2, prod, sqrt
from pathlib import Path
from typing import Any, BinaryIO

import click
import numpy as np
from gguf import GGML_QUANT_VERSION, GGMLQuantizationType, GGUFValueType, GGUFWriter, TokenType
from gguf.quants import dequantize
from numpy.typing import NDArray

from pymixtral.files.types import block_bytes, block_weights, row_bytes
from pymixtral.inspection import mixes
from pymixtral.inspection.inventory import Inventory
from pymixtral.inspection.published import MODELS
from pymixtral.model.config import ModelConfig

ALIGNMENT = 32  # GGUF's default

# Larger tensors are cut from one random pool at random offsets: drawing every weight of a large
# file would take minutes, and the pool is larger than any cache, so that kernels see no difference.
POOL_BYTES = 1 << 26

Rng = np.random.Generator
Blocks = NDArray[Any]  # [n_blocks], whatever its dtype: the bytes are what counts


# --- Random blocks of each type: n of them, as a quantizer could have written them ------------------------
# std: of the weights.


def _f32(rng: Rng, n: int, std: float) -> Blocks:
    return np.multiply(rng.standard_normal(n, np.float32), std, dtype=np.float32)


def _f16(rng: Rng, n: int, std: float) -> Blocks:
    return _f32(rng, n, std).astype(np.float16)


def _q8_0(rng: Rng, n: int, std: float) -> Blocks:
    blocks = np.empty(n, [("d", np.float16), ("q", np.int8, 32)])
    blocks["d"] = _scales(rng, n, std / sqrt(127 * 128 / 3))
    blocks["q"] = rng.integers(-127, 128, (n, 32), np.int8)  # no quantizer writes -128
    return blocks


def _q4_0(rng: Rng, n: int, std: float) -> Blocks:
    blocks = np.empty(n, [("d", np.float16), ("q", np.uint8, 16)])
    blocks["d"] = _scales(rng, n, std / sqrt((16**2 - 1) / 12 + 0.5**2))  # the nibbles' mean is -1/2
    blocks["q"] = rng.integers(0, 256, (n, 16), np.uint8)
    return blocks


def _mxfp4(rng: Rng, n: int, std: float) -> Blocks:
    blocks = np.empty(n, [("e", np.uint8), ("q", np.uint8, 16)])
    middle = 128 + round(log2(std / sqrt(274 / 8)))  # the mean square of 0, 1, 2, 3, 4, 6, 8, 12
    blocks["e"] = rng.integers(middle - 1, middle + 2, n)
    blocks["q"] = rng.integers(0, 256, (n, 16), np.uint8)
    return blocks


def _scales(rng: Rng, n: int, scale: float) -> Blocks:
    """Around `scale`, of either sign, as q4_0 has them: sums then have mean zero whatever the
    integers' mean.
    """
    return np.copysign(rng.uniform(0.5 * scale, 1.5 * scale, n), rng.random(n) - 0.5)


def _kquant(
    kind: GGMLQuantizationType, d_at: int, dmin_at: int | None, middle: float
) -> Callable[[Rng, int, float], Blocks]:
    """Blocks of 256 with random scales and integers. d_at, dmin_at: where their f16 scales stand;
    middle: the mean of the integers, which the minimums take off.
    """

    def draw(rng: Rng, n: int, std: float) -> Blocks:
        blocks = rng.integers(0, 256, (n, block_bytes(kind)), np.uint8)

        def put(d: NDArray[np.float16], rows: Blocks) -> None:
            rows[:, d_at : d_at + 2] = d.view(np.uint8).reshape(-1, 2)
            if dmin_at is not None:
                rows[:, dmin_at : dmin_at + 2] = (middle * d).astype(np.float16).view(np.uint8).reshape(-1, 2)

        sample = blocks[:256].copy()
        put(np.ones(len(sample), np.float16), sample)
        put(_scales(rng, n, std / float(dequantize(sample, kind).std())).astype(np.float16), blocks)
        return blocks

    return draw


_T = GGMLQuantizationType


def _iq1_m(rng: Rng, n: int, std: float) -> Blocks:
    blocks = rng.integers(0, 256, (n, block_bytes(_T.IQ1_M)), np.uint8)

    def put(d: NDArray[np.float16], rows: Blocks) -> None:  # a nibble in the top of each of four words
        for i in range(4):
            rows[:, 49 + 2 * i] = rows[:, 49 + 2 * i] & 15 | (d.view(np.uint16) >> 4 * i & 15).astype(np.uint8) << 4

    sample = blocks[:256].copy()
    put(np.ones(len(sample), np.float16), sample)
    put(_scales(rng, n, std / float(dequantize(sample, _T.IQ1_M).std())).astype(np.float16), blocks)
    return blocks


BLOCKS: dict[GGMLQuantizationType, Callable[[Rng, int, float], Blocks]] = {
    _T.F32: _f32,
    _T.F16: _f16,
    _T.Q8_0: _q8_0,
    _T.Q4_0: _q4_0,
    _T.Q2_K: _kquant(_T.Q2_K, 80, 82, 1.5),
    _T.Q3_K: _kquant(_T.Q3_K, 108, None, 0),
    _T.Q4_K: _kquant(_T.Q4_K, 0, 2, 7.5),
    _T.Q5_K: _kquant(_T.Q5_K, 0, 2, 15.5),
    _T.Q6_K: _kquant(_T.Q6_K, 208, None, 0),
    _T.IQ1_S: _kquant(_T.IQ1_S, 0, None, 0),
    _T.IQ1_M: _iq1_m,
    _T.IQ2_XXS: _kquant(_T.IQ2_XXS, 0, None, 0),
    _T.IQ2_XS: _kquant(_T.IQ2_XS, 0, None, 0),
    _T.IQ2_S: _kquant(_T.IQ2_S, 0, None, 0),
    _T.IQ3_XXS: _kquant(_T.IQ3_XXS, 0, None, 0),
    _T.IQ3_S: _kquant(_T.IQ3_S, 0, None, 0),
    _T.TQ1_0: _kquant(_T.TQ1_0, 52, None, 0),
    _T.TQ2_0: _kquant(_T.TQ2_0, 64, None, 0),
    _T.MXFP4: _mxfp4,
}

# What the command offers: one type for every matrix, or a mix of types as quantizers choose them.
TYPES = [
    *("q4_0", "q8_0", "f16", "f32", "q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k"),
    *("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s"),
    *("mxfp4", "tq1_0", "tq2_0"),
]


# --- The file ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tensor:
    """shape: slowest dimension first. A vector is a norm, around one; anything else a matrix, or
    several, around zero.
    """

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType

    @property
    def n_blocks(self) -> int:
        return prod(self.shape) // block_weights(self.type)

    @property
    def n_bytes(self) -> int:
        return row_bytes(self.type, prod(self.shape))


def tensors(model: ModelConfig, name: str) -> list[Tensor]:
    """All tensors of the model, in the file's order; norms and router are f32."""
    inventory = Inventory.of_model(model)
    if name.endswith(("_k", "_k_m")):
        kinds = mixes.types(inventory, name)
    else:
        plain = GGMLQuantizationType[name.upper()]
        kinds = [_T.F32 if part.tensor_class in ("norms", "router") else plain for part in inventory.parts]
    return [Tensor(part.name, part.shape, kind) for part, kind in zip(inventory.parts, kinds, strict=True)]


def write(dest: Path, model: ModelConfig, name: str, seed: int) -> None:
    """Writes the model; the same arguments give the same bytes. `dest` appears, or is replaced,
    when the file is complete.
    """
    plan = tensors(model, name)
    partial = dest.with_name(f"{dest.name}.partial")
    try:
        _write_header(partial, model, plan)
        with partial.open("ab") as file:
            _pad(file)
            data = _RandomData(seed)
            for tensor in plan:
                data.write(file, tensor)
                _pad(file)
            file.flush()
            os.fsync(file.fileno())  # or the system would be writing while the file is measured
        partial.replace(dest)
    finally:
        partial.unlink(missing_ok=True)


def _write_header(path: Path, model: ModelConfig, plan: list[Tensor]) -> None:
    writer = GGUFWriter(path, "llama")
    writer.add_name(f"synthetic {model.name}, {model.n_layers} layers")
    writer.add_quantization_version(GGML_QUANT_VERSION)
    for key, value in model.to_gguf().items():
        writer.add_key_value(key, value, GGUFValueType.UINT32 if isinstance(value, int) else GGUFValueType.FLOAT32)
    _add_vocabulary(writer)
    for tensor in plan:
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.n_bytes, raw_dtype=tensor.type)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()


def _add_vocabulary(writer: GGUFWriter) -> None:
    """Ids as in Mixtral: unknown, begin, end, the 256 bytes, then pieces, here of no meaning."""
    special = ["<unk>", "<s>", "</s>"]
    pieces = special + [f"<0x{byte:02X}>" for byte in range(256)]
    n_named, n_vocab = len(pieces), MODELS["8x7b"].n_vocab
    pieces += [f"▁w{i}" for i in range(n_named, n_vocab)]
    types = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL] + [TokenType.BYTE] * 256
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([0.0] * n_named + [float(-i) for i in range(n_vocab - n_named)])
    writer.add_token_types(types + [TokenType.NORMAL] * (n_vocab - n_named))
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)


class _RandomData:
    """The tensors' bytes."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._pools: dict[tuple[GGMLQuantizationType, int], Blocks] = {}

    def write(self, file: BinaryIO, tensor: Tensor) -> None:
        cols = tensor.shape[-1]
        if len(tensor.shape) == 1:
            file.write((1 + _f32(self._rng, tensor.n_blocks, 0.1)).data)
        elif tensor.n_bytes <= POOL_BYTES:
            file.write(self._draw(tensor.type, tensor.n_blocks, cols).data)
        else:
            self._write_from_pool(file, tensor, cols)

    def _write_from_pool(self, file: BinaryIO, tensor: Tensor, cols: int) -> None:
        key = tensor.type, cols
        if key not in self._pools:
            self._pools[key] = self._draw(tensor.type, POOL_BYTES // block_bytes(tensor.type), cols)
        pool = self._pools[key]
        n_left = tensor.n_blocks
        while n_left:
            start = int(self._rng.integers(len(pool)))
            part = pool[start : start + n_left]
            file.write(part.data)
            n_left -= len(part)

    def _draw(self, kind: GGMLQuantizationType, n_blocks: int, cols: int) -> Blocks:
        return BLOCKS[kind](self._rng, n_blocks, 1 / sqrt(cols))


def _pad(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % ALIGNMENT))


@click.command()
@click.argument("dest", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--layers", type=click.IntRange(1, 1024), default=4, show_default=True, help="Decoder layers; Mixtral 8x7B has 32."
)
@click.option(
    "--type",
    "name",
    type=click.Choice(TYPES),
    default="q4_0",
    show_default=True,
    help="Type of the matrices, or mix of types; norms and router are f32.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the random weights.")
def main(dest: Path, layers: int, name: str, seed: int) -> None:
    """Write a Mixtral of full width with random weights to DEST, a GGUF file."""
    start = time.perf_counter()
    write(dest, replace(MODELS["8x7b"], n_layers=layers), name, seed)
    click.echo(f"{dest}: {dest.stat().st_size / 1e9:.2f} GB in {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
