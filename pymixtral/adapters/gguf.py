"""Adapters as llama.cpp reads them: a GGUF file of tensors X.lora_a and X.lora_b.

Each pair is scaled by alpha over its own rank, or not at all where alpha is 0. Experts are merged in
one tensor of three dimensions, or have tensors of their own. The file is read, not mapped: an
adapter has its numbers for itself, and what becomes of the file while it is read is an error and
never the end of the process.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from pymixtral import ops
from pymixtral.arguments import shown
from pymixtral.arrays import F32
from pymixtral.errors import AdapterError, CheckpointError, NonFiniteError, UnsupportedError
from pymixtral.files.header import Shard, Value, quoted
from pymixtral.files.identity import check_unchanged
from pymixtral.files.names import FUSED_PARTS, FUSED_STEM, TensorName
from pymixtral.files.shards import read_shards
from pymixtral.files.stored import SourceFile, StoredTensor
from pymixtral.files.types import MATRIX_TYPES, Matrix, show_type
from pymixtral.model.adapter import Adapter, LowRank
from pymixtral.model.config import ModelConfig

from .pairs import Shapes, adapter_of, scaled

A, B = ".lora_a", ".lora_b"
ALPHA = "adapter.lora.alpha"

_MAX_ALPHA = 1e6

_KEYS = (("general.type", "adapter"), ("adapter.type", "lora"), ("general.architecture", "llama"))
"""What the metadata must say."""


def read(path: Path, config: ModelConfig) -> Adapter:
    """Read an adapter.

    Args:
        path: the file.
        config: the numbers of the model that it is for.

    Returns:
        The adapter.

    Raises:
        ModelFileError: it is broken or not GGUF.
        AdapterError: it is no adapter, does not fit the model, means what is not computed, or changes
            while it is read.
    """
    source = str(path)
    try:
        shards = read_shards(source, mapped=False)
        alpha = _read_keys(source, shards[0].metadata)
        pairs: dict[TensorName, LowRank] = {}
        with ops.Context(1) as context:
            tensors = _pairs_of_tensors(source, _stored(shards))
            if not tensors:
                raise AdapterError(f"{source}: expected tensors that end in {A} and {B}, found none")
            for base, (a, b) in tensors.items():
                for name, pair in _pairs(context, Shapes(source, config), alpha, base, a, b):
                    if name in pairs:
                        raise AdapterError(f"{source}: tensor {shown(base)}: expected one pair for {name}, found two")
                    pairs[name] = pair
    except (CheckpointError, UnsupportedError) as error:
        raise AdapterError(str(error)) from None
    for shard in shards:
        check_unchanged(Path(shard.path), shard.identity, AdapterError)
    return adapter_of(pairs, source)


def _stored(shards: list[Shard]) -> dict[str, StoredTensor]:
    """All tensors by name; their numbers are read when they are asked for."""
    found: dict[str, StoredTensor] = {}
    for shard in shards:
        file = SourceFile(Path(shard.path))
        for name, place in shard.places.items():
            found[name] = StoredTensor(file, place.type, place.shape, place.offset)
    return found


def _read_keys(source: str, metadata: Mapping[str, Value]) -> float:
    """The alpha of the file, 0 where there is none."""
    for key, expected in _KEYS:
        found = metadata.get(key)
        if not isinstance(found, str) or found != expected:
            raise AdapterError(
                f"{source}: metadata key {key!r}: expected {expected!r}, as of a LoRA adapter for a Mixtral, a "
                f"Mistral or a Llama, found {quoted(found) if key in metadata else 'none'}"
            )
    if any(key.startswith("adapter.alora.") for key in metadata):
        raise AdapterError(
            f"{source}: metadata key 'adapter.alora.invocation_tokens': expected none, found an adapter that begins "
            "at certain tokens (aLoRA): this is not computed"
        )
    alpha = metadata.get(ALPHA, 0.0)
    if type(alpha) is not float or not abs(alpha) <= _MAX_ALPHA:
        raise AdapterError(
            f"{source}: metadata key {ALPHA!r}: expected a number from {-_MAX_ALPHA:g} to {_MAX_ALPHA:g}, found "
            f"{quoted(alpha)}"
        )
    return alpha


def _pairs_of_tensors(source: str, tensors: Mapping[str, StoredTensor]) -> dict[str, tuple[StoredTensor, StoredTensor]]:
    """The tensors of each pair, by the name of the model's tensor."""
    for name in tensors:
        if not name.endswith((A, B)):
            raise AdapterError(
                f"{source}: tensor {shown(name)}: expected names that end in {A} or {B}, found this one, which is not "
                "computed"
            )
    pairs = {}
    for base in dict.fromkeys(name[: -len(A)] for name in tensors):
        for end in (A, B):
            if base + end not in tensors:
                raise AdapterError(f"{source}: expected both tensors of a pair, found no {shown(base + end)}")
        pairs[base] = tensors[base + A], tensors[base + B]
    return pairs


def _pairs(
    context: ops.Context, shapes: Shapes, alpha: float, base: str, a: StoredTensor, b: StoredTensor
) -> Iterator[tuple[TensorName, LowRank]]:
    name = TensorName.parse(base)
    if name is None or name.layer is None:
        raise AdapterError(
            f"{shapes.source}: tensor {shown(base + A)}: expected attention, router, experts or feed-forward of a "
            "layer, found a tensor that is not computed"
        )
    stems = FUSED_PARTS if name.stem == FUSED_STEM else (name.stem,)
    n = shapes.config.n_experts if name.merged else 0
    one = replace(name, stem=stems[0], merged=False, expert=0) if name.merged else name
    part, cols = shapes.of(one, base)
    rows = part * len(stems)
    lead = (n,) if n else ()
    found_a, found_b = (_padded(tensor.shape, len(lead) + 2) for tensor in (a, b))
    rank = found_b[-1]
    shapes.check_rank(rank, base + B)
    shapes.check(base + B, found_b, (*lead, rows, rank))
    shapes.check(base + A, found_a, (*lead, rank, cols))
    factor = alpha / rank if alpha else 1.0
    every_a = _floats(context, f"{shapes.source}: tensor {shown(base + A)}", a).reshape(-1, rank, cols)
    every_b = _floats(context, f"{shapes.source}: tensor {shown(base + B)}", b).reshape(-1, rows, rank)
    for e, (one_a, one_b) in enumerate(zip(every_a, every_b, strict=True)):
        for i, stem in enumerate(stems):
            single = TensorName(stem, name.layer, expert=e if n else name.expert)
            yield single, LowRank(one_a, scaled(one_b[i * part : (i + 1) * part].T, factor))


def _padded(shape: tuple[int, ...], n_dims: int) -> tuple[int, ...]:
    """A shape with the dimensions of 1 that ggml leaves out."""
    return (1,) * (n_dims - len(shape)) + shape


def _floats(context: ops.Context, where: str, tensor: StoredTensor) -> F32:
    if tensor.type not in MATRIX_TYPES:
        raise AdapterError(f"{where}: expected a type of weights, found {show_type(tensor.type)}")
    rows = tensor.raw()
    try:
        return ops.embed(context, Matrix(tensor.type, rows), np.arange(len(rows), dtype=np.int32))
    except NonFiniteError:
        raise AdapterError(f"{where}: expected finite numbers, found NaN or infinity: get the file again") from None
