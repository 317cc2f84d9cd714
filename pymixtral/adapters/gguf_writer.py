"""An adapter as a GGUF file that llama.cpp and pymixtral read.

alpha is 0, which llama.cpp takes for a scale of 1 whatever the rank: the scale of each pair is in its
lora_b, so that scales and ranks may differ.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType

from pymixtral.arrays import F32
from pymixtral.files.atomic import check_space, reading_back, replacing
from pymixtral.files.header import read_shard
from pymixtral.files.names import TensorName
from pymixtral.files.writing import TensorInfo, encode_header, encode_string, padding
from pymixtral.model.adapter import Adapter, LowRank
from pymixtral.model.config import ModelConfig

from .gguf import ALPHA, A, B

_ALIGNMENT = 32


def write(adapter: Adapter, config: ModelConfig, dest: Path, *, force: bool) -> None:
    """Write an adapter.

    Experts that have no pair, or one of a smaller rank than others of their layer, get zeros: the
    file has one tensor for all of them.

    Args:
        adapter: one that fits the model.
        config: the model's numbers.
        dest: the file.
        force: replace a file that exists.

    Raises:
        OutputError: it cannot be written.
    """
    tensors = dict(_tensors(adapter, config))
    infos = [info for pair in tensors.values() for info in pair.infos()]
    header = encode_header(_keys(adapter), infos, _ALIGNMENT)
    check_space(dest, len(header) + sum(info.n_bytes + _ALIGNMENT for info in infos))
    with replacing(dest, force=force) as temporary:
        with temporary.open("wb") as out:
            out.write(header)
            for pair in tensors.values():
                for array in (pair.a(), pair.b()):
                    out.write(array.reshape(-1).data)
                    out.write(bytes(padding(array.nbytes, _ALIGNMENT)))
        with reading_back(dest, temporary):
            read_shard(str(temporary))


class _Pair:
    """The pairs of all experts, or of a matrix that is no expert's, as two tensors of a file.

    Args:
        name: the model's tensor.
        pairs: of each expert, None of one without; of another matrix the only one.
    """

    def __init__(self, name: TensorName, pairs: list[LowRank | None]) -> None:
        self._name, self._pairs = name, pairs
        present = [pair for pair in pairs if pair is not None]
        self._rank = max(len(pair.a) for pair in present)
        self._rows, self._cols = present[0].b.shape[1], present[0].a.shape[1]
        self._lead = (len(pairs),) if name.merged else ()

    def infos(self) -> Iterator[TensorInfo]:
        """Both tensors, to be written in this order."""
        shapes = {A: (*self._lead, self._rank, self._cols), B: (*self._lead, self._rows, self._rank)}
        for end, shape in shapes.items():
            n_bytes = 4 * int(np.prod(shape, dtype=np.int64))
            yield TensorInfo(f"{self._name}{end}", shape, GGMLQuantizationType.F32, n_bytes)

    def a(self) -> F32:
        """float32 [n_experts, rank, cols], with zeros for what is missing."""
        found = np.zeros((len(self._pairs), self._rank, self._cols), "<f4")
        for e, pair in enumerate(self._pairs):
            if pair is not None:
                found[e, : len(pair.a)] = pair.a
        return found

    def b(self) -> F32:
        """float32 [n_experts, rows, rank], likewise."""
        found = np.zeros((len(self._pairs), self._rows, self._rank), "<f4")
        for e, pair in enumerate(self._pairs):
            if pair is not None:
                found[e, :, : len(pair.b)] = pair.b.T
        return found


def _tensors(adapter: Adapter, config: ModelConfig) -> Iterator[tuple[TensorName, _Pair]]:
    experts: dict[TensorName, list[LowRank | None]] = {}
    for name, pair in adapter.pairs.items():
        if name.expert is None:
            yield name, _Pair(name, [pair])
        else:
            experts.setdefault(name.of_all_experts(), [None] * config.n_experts)[name.expert] = pair
    for name, pairs in experts.items():
        yield name, _Pair(name, pairs)


def _keys(adapter: Adapter) -> list[bytes]:
    texts = {
        "general.architecture": "llama",
        "general.type": "adapter",
        "general.name": Path(adapter.source).stem.encode("utf-8", "replace").decode(),
        "adapter.type": "lora",
    }
    keys = [
        encode_string(key) + struct.pack("<I", GGUFValueType.STRING) + encode_string(text)
        for key, text in texts.items()
    ]
    return [*keys, encode_string(ALPHA) + struct.pack("<If", GGUFValueType.FLOAT32, 0.0)]
