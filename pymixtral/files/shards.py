"""Models in several files, named name-00001-of-00003.gguf and so on.

Format: the keys split.no (from 0), split.count and split.tensors.count (of all files together) in each file, the model's metadata in the
first; written by llama.cpp's gguf-split and by pymixtral.files.layout.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from pymixtral.errors import ModelFileError
from pymixtral.files.header import MAX_HEADER_BYTES, MAX_TENSORS, Shard, quoted, read_shard

MAX_SHARDS = 1 << 10  # each is mapped; published models have some dozens

_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL | re.ASCII)


def shard_name(stem: str, number: int, count: int) -> str:
    """The file's name. stem: what the names of all shards begin with; number: from 0."""
    return f"{stem}-{number + 1:05}-of-{count:05}.gguf"


def stem(path: str) -> str:
    """A path's last component without .gguf and without the number of a shard."""
    name = os.path.basename(path)  # noqa: PTH119  # a Path drops a trailing slash or dot
    match = _NAME.fullmatch(name)
    return match[1] if match else name.removesuffix(".gguf")


def open_all(found: Shard) -> list[Shard]:
    """All shards of the model that `found` is one of, in order.

    Their names come from that of `found` and are in its directory; no file can name another. Raises ModelFileError for a name that
    contradicts the metadata, for a shard that is missing, and for shards that contradict each other.
    """
    count, number = found.count, _integer(found, "split.no")
    if count > MAX_SHARDS:
        raise ModelFileError(f"{found.path}: metadata key 'split.count': expected at most {MAX_SHARDS} shards, found {count}")
    if not 0 <= number < count:
        raise ModelFileError(f"{found.path}: metadata key 'split.no': expected 0 to {count - 1}, found {number}")
    directory, name = os.path.split(found.path)
    match = _NAME.fullmatch(name)
    if not match or (int(match[2]), int(match[3])) != (number + 1, count):
        raise ModelFileError(
            f"{found.path}: expected a name that ends in '{shard_name('', number, count)}', as the metadata says that this is shard "
            f"{number + 1} of {count}: give all shards the names that they were published with"
        )
    shards: list[Shard] = []
    names: dict[str, str] = {}
    header_bytes = 0
    for i in range(count):
        path = os.path.join(directory, shard_name(match[1], i, count))  # noqa: PTH118  # found's own path, unchanged
        if i != number and not Path(path).exists():
            raise ModelFileError(f"{found.path}: shard {i + 1} of {count} is missing: expected the file {path}")
        shard = found if i == number else read_shard(path)
        _check(shard, found, i)
        header_bytes += shard.header_bytes
        if header_bytes > MAX_HEADER_BYTES:
            raise ModelFileError(f"{path}: the headers of the shards up to this one have more than the limit of {MAX_HEADER_BYTES} bytes")
        for tensor in shard.tensors:
            if tensor in names:
                raise ModelFileError(f"{path}: tensor {quoted(tensor)} is also in the shard {names[tensor]}")
            names[tensor] = path
        shards.append(shard)
        if len(names) > MAX_TENSORS:
            raise ModelFileError(f"{path}: the shards up to this one have {len(names)} tensors, more than the limit of {MAX_TENSORS}")
    expected = _integer(found, "split.tensors.count")
    if len(names) != expected:
        raise ModelFileError(
            f"{found.path}: metadata key 'split.tensors.count': expected the {len(names)} tensors that the {count} shards have together, "
            f"found {expected}"
        )
    return shards


def _check(shard: Shard, named: Shard, number: int) -> None:
    for key, expected in (
        ("split.count", named.count),
        ("split.no", number),
        ("split.tensors.count", _integer(named, "split.tensors.count")),
    ):
        found = _integer(shard, key)
        if found != expected:
            raise ModelFileError(
                f"{shard.path}: metadata key '{key}': expected {expected}, as the file's name and {named.path} have it, found {found}: "
                "the shards do not belong together"
            )


def _integer(shard: Shard, key: str) -> int:
    value = shard.metadata.get(key)
    if type(value) is not int:
        found = "none" if value is None else quoted(value)
        raise ModelFileError(f"{shard.path}: metadata key '{key}': expected an integer in one of {shard.count} shards, found {found}")
    return value
