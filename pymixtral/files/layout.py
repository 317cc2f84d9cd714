"""The same model in another layout of files, with no weight changed.

Experts are merged or in one tensor each, the model is in one file or in shards.
"""

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gguf import GGMLQuantizationType, GGUFValueType

from pymixtral.arguments import path_of, shown
from pymixtral.arrays import U8
from pymixtral.errors import InvalidArgumentError, ModelConfigError, UnsupportedError
from pymixtral.files.atomic import check_dest, check_space, reading_back, replacing_all
from pymixtral.files.gguf import GGUFFile
from pymixtral.files.header import MAX_TENSORS, Tensor, read_shard
from pymixtral.files.names import FUSED_PARTS, FUSED_STEM, TensorName, expert_name, merged_name
from pymixtral.files.shards import MAX_SHARDS, shard_name
from pymixtral.files.writing import TensorInfo, encode_header, encode_string, padding
from pymixtral.progress import progress_bar

LAYOUTS = ("merged", "split")

_CHUNK_BYTES = 1 << 24  # written at a time, between two moves of the bar: some milliseconds


@dataclass(frozen=True, eq=False)
class _Tensor:
    """A tensor to write; pieces: its data one after the other, views of the source."""

    name: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]
    pieces: list[U8]

    @property
    def n_bytes(self) -> int:
        return sum(piece.nbytes for piece in self.pieces)


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
    if max_shard_bytes is not None and (type(max_shard_bytes) is not int or max_shard_bytes < 1):
        raise InvalidArgumentError(
            f"expected max_shard_bytes to be an integer of at least 1, found {shown(max_shard_bytes)}"
        )
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
            planned = [_kept(tensor) for tensor in tensors]
        shards = _shards(planned, max_shard_bytes)
        paths = _paths(path, len(shards))
        for one in paths:
            check_dest(one, file.paths, force)
        n_bytes = sum(tensor.n_bytes for tensor in planned)
        check_space(path, n_bytes + sum(map(len, file.encoded.values())))
        with (
            replacing_all(paths, force=force) as temporaries,
            progress_bar(total=n_bytes, unit="B", unit_scale=True, label=path.name, shown=progress) as bar,
        ):
            for number, (temporary, shard) in enumerate(zip(temporaries, shards, strict=True)):
                with temporary.open("wb") as out:
                    out.write(_header(file, shard, number, len(shards), len(planned)))
                    for chunk in _data(shard, file.alignment):
                        out.write(chunk)
                        bar.update(len(chunk))
                with reading_back(paths[number], temporary):
                    read_shard(str(temporary))
            file.check_unchanged()
    return paths


def _kept(tensor: Tensor) -> _Tensor:
    data = tensor.data
    # Half of a fused tensor is contiguous expert by expert.
    return _Tensor(tensor.name, tensor.type, tensor.shape, [data] if data.flags.c_contiguous else list(data))


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


def _split(path: str, tensors: Sequence[Tensor]) -> Iterator[_Tensor]:
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
            yield _kept(tensor)
            continue
        if len(tensor.shape) != 3:
            raise ModelConfigError(
                f"{path}: tensor '{name}': expected three dimensions, found the shape {list(tensor.shape)}"
            )
        for e, data in enumerate(tensor.data):
            one = str(name.of_expert(e))
            if one in names:
                raise ModelConfigError(f"{path}: tensors '{name}' and '{one}': expected one layout, found both")
            yield _Tensor(one, tensor.type, tensor.shape[1:], [data])


def _merged(path: str, tensors: Sequence[Tensor]) -> Iterator[_Tensor]:
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
            yield _kept(tensor)
        elif merged in groups:
            yield _merge(path, merged, groups.pop(merged), names)


def _merge(path: str, name: str, experts: dict[int, Tensor], names: set[str]) -> _Tensor:
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
    return _Tensor(name, ordered[0].type, shape, [tensor.data for tensor in ordered])


def _shards(tensors: list[_Tensor], max_bytes: int | None) -> list[list[_Tensor]]:
    if max_bytes is None:
        return [tensors]
    shards: list[list[_Tensor]] = [[]]
    left = max_bytes
    for tensor in tensors:
        if tensor.n_bytes > left and shards[-1]:
            shards.append([])
            left = max_bytes
        shards[-1].append(tensor)
        left -= tensor.n_bytes
    if len(shards) > MAX_SHARDS:
        raise InvalidArgumentError(
            f"expected at most {MAX_SHARDS} shards, found {len(shards)} of {max_bytes} bytes: ask for larger ones"
        )
    return shards


def _paths(dest: Path, count: int) -> list[Path]:
    if count == 1:
        return [dest]
    if dest.suffix != ".gguf":
        raise InvalidArgumentError(
            f"{dest}: expected a name that ends in .gguf for {count} shards, found one that does not: choose another "
            "name"
        )
    return [dest.with_name(shard_name(dest.stem, number, count)) for number in range(count)]


def _header(file: GGUFFile, tensors: list[_Tensor], number: int, count: int, n_tensors: int) -> bytes:
    """Everything before the data of one shard. The first has the source's metadata as it is."""
    keys = {key: bytes(view) for key, view in file.encoded.items() if not key.startswith("split.")}
    if number > 0:
        keys = {key: view for key, view in keys.items() if key == "general.alignment"}
    if count > 1:
        keys["split.no"] = encode_string("split.no") + struct.pack("<IH", GGUFValueType.UINT16, number)
        keys["split.count"] = encode_string("split.count") + struct.pack("<IH", GGUFValueType.UINT16, count)
        total = struct.pack("<Ii", GGUFValueType.INT32, n_tensors)
        keys["split.tensors.count"] = encode_string("split.tensors.count") + total
    infos = (TensorInfo(tensor.name, tensor.shape, tensor.type, tensor.n_bytes) for tensor in tensors)
    return encode_header(list(keys.values()), infos, file.alignment)


def _data(tensors: list[_Tensor], alignment: int) -> Iterator[memoryview]:
    for tensor in tensors:
        for piece in tensor.pieces:
            flat = piece.reshape(-1)
            for begin in range(0, flat.size, _CHUNK_BYTES):
                yield flat[begin : begin + _CHUNK_BYTES].data
        yield memoryview(bytes(padding(tensor.n_bytes, alignment)))
