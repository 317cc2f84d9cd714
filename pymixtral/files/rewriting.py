"""A model written anew from the tensors of another file: what `convert-layout` and `prune` share."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from gguf import GGMLQuantizationType, GGUFValueType

from pymixtral.arguments import shown
from pymixtral.arrays import U8
from pymixtral.errors import InvalidArgumentError
from pymixtral.files.atomic import check_dest, check_space, reading_back, replacing_all
from pymixtral.files.gguf import GGUFFile
from pymixtral.files.header import Tensor, read_shard
from pymixtral.files.shards import MAX_SHARDS, shard_name
from pymixtral.files.writing import TensorInfo, encode_header, encode_string, padding
from pymixtral.progress import progress_bar

_CHUNK_BYTES = 1 << 24  # written at a time, between two moves of the bar: some milliseconds


@dataclass(frozen=True, eq=False)
class PlannedTensor:
    """A tensor to write.

    Attributes:
        name: its name.
        type: GGUF's type.
        shape: slowest dimension first.
        pieces: its data one after the other, views of the source, each contiguous.
    """

    name: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]
    pieces: list[U8]

    @classmethod
    def kept(cls, tensor: Tensor) -> PlannedTensor:
        """A tensor of the source as it is."""
        data = tensor.data
        # Half of a fused tensor is contiguous expert by expert.
        return cls(tensor.name, tensor.type, tensor.shape, [data] if data.flags.c_contiguous else list(data))

    @property
    def n_bytes(self) -> int:
        """Bytes of its data."""
        return sum(piece.nbytes for piece in self.pieces)


def rewrite(
    file: GGUFFile,
    planned: list[PlannedTensor],
    dest: Path,
    *,
    max_shard_bytes: int | None,
    force: bool,
    progress: bool,
    changed: Mapping[str, int | str] | None = None,
) -> list[Path]:
    """Write tensors and metadata of a file to another.

    Data are copied byte for byte, and so is the metadata but for what is `changed`. A file appears only when
    all are complete.

    Args:
        file: the open source.
        planned: the tensors to write.
        dest: the file to write, the base of the names of several.
        max_shard_bytes: as of convert_layout().
        force: replace existing files.
        progress: a bar on stderr, when that is a terminal.
        changed: metadata keys and their new values, integers as uint32.

    Returns:
        The files written.

    Raises:
        ModelFileError: the source was changed meanwhile.
        InvalidArgumentError: there are too many shards, or `dest` does not end in .gguf for several.
        OutputError: a file cannot be written.
    """
    keys = {key: bytes(view) for key, view in file.encoded.items() if not key.startswith("split.")}
    for key, value in (changed or {}).items():
        keys[key] = encode_string(key) + _encoded(value)
    shards = _shards(planned, max_shard_bytes)
    paths = _paths(dest, len(shards))
    for one in paths:
        check_dest(one, file.paths, force)
    n_bytes = sum(tensor.n_bytes for tensor in planned)
    check_space(dest, n_bytes + sum(map(len, keys.values())))
    with (
        replacing_all(paths, force=force) as temporaries,
        progress_bar(total=n_bytes, unit="B", unit_scale=True, label=dest.name, shown=progress) as bar,
    ):
        for number, (temporary, shard) in enumerate(zip(temporaries, shards, strict=True)):
            with temporary.open("wb") as out:
                out.write(_header(keys, shard, file.alignment, number, len(shards), len(planned)))
                for chunk in _data(shard, file.alignment):
                    out.write(chunk)
                    bar.update(len(chunk))
            with reading_back(paths[number], temporary):
                read_shard(str(temporary))
        file.check_unchanged()
    return paths


def check_shard_bytes(max_shard_bytes: object) -> None:
    """Check a number of bytes of a shard.

    Args:
        max_shard_bytes: what a caller gave.

    Raises:
        InvalidArgumentError: it is neither None nor an integer of at least 1.
    """
    if max_shard_bytes is not None and (type(max_shard_bytes) is not int or max_shard_bytes < 1):
        raise InvalidArgumentError(
            f"expected max_shard_bytes to be an integer of at least 1, found {shown(max_shard_bytes)}"
        )


def _encoded(value: int | str) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", GGUFValueType.STRING) + encode_string(value)
    return struct.pack("<II", GGUFValueType.UINT32, value)


def _shards(tensors: list[PlannedTensor], max_bytes: int | None) -> list[list[PlannedTensor]]:
    if max_bytes is None:
        return [tensors]
    shards: list[list[PlannedTensor]] = [[]]
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


def _header(
    keys: dict[str, bytes], tensors: list[PlannedTensor], alignment: int, number: int, count: int, n_tensors: int
) -> bytes:
    """Everything before the data of one shard. The first has the metadata, the others the alignment."""
    keys = dict(keys)
    if number > 0:
        keys = {key: view for key, view in keys.items() if key == "general.alignment"}
    if count > 1:
        keys["split.no"] = encode_string("split.no") + struct.pack("<IH", GGUFValueType.UINT16, number)
        keys["split.count"] = encode_string("split.count") + struct.pack("<IH", GGUFValueType.UINT16, count)
        total = struct.pack("<Ii", GGUFValueType.INT32, n_tensors)
        keys["split.tensors.count"] = encode_string("split.tensors.count") + total
    infos = (TensorInfo(tensor.name, tensor.shape, tensor.type, tensor.n_bytes) for tensor in tensors)
    return encode_header(list(keys.values()), infos, alignment)


def _data(tensors: list[PlannedTensor], alignment: int) -> Iterator[memoryview]:
    for tensor in tensors:
        for piece in tensor.pieces:
            flat = piece.reshape(-1)
            for begin in range(0, flat.size, _CHUNK_BYTES):
                yield flat[begin : begin + _CHUNK_BYTES].data
        yield memoryview(bytes(padding(tensor.n_bytes, alignment)))
