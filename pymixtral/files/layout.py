"""The same model in another layout of files, with no weight changed.

Experts are merged or in one tensor each, the model is in one file or in shards.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pymixtral.arguments import path_of, shown
from pymixtral.errors import InvalidArgumentError, ModelConfigError, UnsupportedError
from pymixtral.files.gguf import GGUFFile
from pymixtral.files.header import MAX_TENSORS, Tensor
from pymixtral.files.names import FUSED_PARTS, FUSED_STEM, TensorName, expert_name, merged_name
from pymixtral.files.rewriting import PlannedTensor, check_shard_bytes, rewrite

LAYOUTS = ("merged", "split")


def convert_layout(
    source: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    *,
    layout: str | None = None,
    max_shard_bytes: int | None = None,
    force: bool = False,
    progress: bool = True,
) -> list[Path]:
    """Writes a model in another layout.

    Tensor data and metadata are copied byte for byte. A file appears only when all are complete.

    Args:
        source: a GGUF file, or any shard of a model in several.
        dest: the file to write.
        layout: "merged" (each layer's experts in three tensors, which current programs read),
            "split" (a tensor for each expert), None: as it is.
        max_shard_bytes: bytes of tensor data in one file, which has at least one tensor. A model
            with more becomes several files, dest-00001-of-0000N.gguf and so on. None: one file.
        force: replace existing files.
        progress: a bar on stderr, when that is a terminal.

    Returns:
        The files written.

    Raises:
        ModelFileError: the source cannot be read, or was changed meanwhile.
        ModelConfigError: experts are incomplete.
        UnsupportedError: experts of different types cannot be merged.
        InvalidArgumentError: an argument is out of its range.
        OutputError: a file cannot be written.
    """
    if layout is not None and (not isinstance(layout, str) or layout not in LAYOUTS):
        raise InvalidArgumentError(f"expected a layout of {' or '.join(LAYOUTS)}, found {shown(layout)}")
    check_shard_bytes(max_shard_bytes)
    path = path_of("dest", dest)
    with GGUFFile(path_of("source", source)) as file:
        tensors = list(file.tensors.values())
        if layout:
            tensors = [part for tensor in tensors for part in _unfused(file.path, tensor)]
            (name, times), *_ = [*Counter(tensor.name for tensor in tensors).most_common(1), ("", 0)]
            if times > 1:
                raise ModelConfigError(
                    f"{file.path}: tensor '{name}': expected it once, found it fused with another and by itself"
                )
        if layout == "merged":
            planned = list(_merged(file.path, tensors))
        elif layout == "split":
            planned = list(_split(file.path, tensors))
        else:
            planned = [PlannedTensor.kept(tensor) for tensor in tensors]
        return rewrite(file, planned, path, max_shard_bytes=max_shard_bytes, force=force, progress=progress)


def _unfused(path: str, tensor: Tensor) -> list[Tensor]:
    """Gate and up of a tensor that has both; another tensor itself."""
    name = TensorName.parse(tensor.name)
    if name is None or name.stem != FUSED_STEM:
        return [tensor]
    if len(tensor.shape) != 3 or tensor.shape[1] % 2:
        raise ModelConfigError(
            f"{path}: tensor '{name}': expected three dimensions, of which the second is even, "
            f"found the shape {list(tensor.shape)}"
        )
    n_experts, rows, cols = tensor.shape
    half = rows // 2
    return [
        Tensor(
            str(replace(name, stem=stem)),
            tensor.type,
            (n_experts, half, cols),
            tensor.data[:, i * half : (i + 1) * half],
        )
        for i, stem in enumerate(FUSED_PARTS)
    ]


def _split(path: str, tensors: Sequence[Tensor]) -> Iterator[PlannedTensor]:
    """Each merged tensor as those of its experts, in its place."""
    names = {tensor.name for tensor in tensors}
    parts = (tensor.shape[0] for tensor in tensors if tensor.name.endswith("_exps.weight"))
    if (count := len(tensors) + sum(parts)) > MAX_TENSORS:
        raise InvalidArgumentError(
            f"{path}: expected experts that make a file of at most {MAX_TENSORS} tensors, found some {count}"
        )
    for tensor in tensors:
        name = TensorName.parse(tensor.name)
        if name is None or not name.merged:
            yield PlannedTensor.kept(tensor)
            continue
        if len(tensor.shape) != 3:
            raise ModelConfigError(
                f"{path}: tensor '{name}': expected three dimensions, found the shape {list(tensor.shape)}"
            )
        for e, data in enumerate(tensor.data):
            one = str(name.of_expert(e))
            if one in names:
                raise ModelConfigError(f"{path}: tensors '{name}' and '{one}': expected one layout, found both")
            yield PlannedTensor(one, tensor.type, tensor.shape[1:], [data])


def _merged(path: str, tensors: Sequence[Tensor]) -> Iterator[PlannedTensor]:
    """The experts' tensors of one layer and kind as one, in the place of the first."""
    groups: dict[str, dict[int, Tensor]] = {}
    for tensor in tensors:
        name = TensorName.parse(tensor.name)
        if name is not None and name.expert is not None:
            groups.setdefault(str(name.of_all_experts()), {})[name.expert] = tensor
    names = {tensor.name for tensor in tensors}
    for tensor in tensors:
        merged = merged_name(tensor.name)
        if merged == tensor.name:
            yield PlannedTensor.kept(tensor)
        elif merged in groups:
            yield _merge(path, merged, groups.pop(merged), names)


def _merge(path: str, name: str, experts: dict[int, Tensor], names: set[str]) -> PlannedTensor:
    if name in names:
        one = expert_name(name, min(experts))
        raise ModelConfigError(f"{path}: tensors '{one}' and '{name}': expected one layout, found both")
    for e in range(len(experts)):
        one = f"{path}: tensor '{expert_name(name, e)}'"
        if e not in experts:
            raise ModelConfigError(f"{one} is missing, expected experts from 0 to {max(experts)}")
        if experts[e].shape != experts[0].shape:
            shapes = f"{list(experts[0].shape)} of expert 0, found {list(experts[e].shape)}"
            raise ModelConfigError(f"{one}: expected the shape {shapes}")
        if experts[e].type != experts[0].type:
            raise UnsupportedError(
                f"{one}: expected {experts[0].type.name}, the type of expert 0, found {experts[e].type.name}: "
                "experts of different types cannot be merged"
            )
    ordered = [experts[e] for e in range(len(experts))]
    shape = (len(ordered), *ordered[0].shape)
    return PlannedTensor(name, ordered[0].type, shape, [tensor.data for tensor in ordered])
