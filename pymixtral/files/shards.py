"""Models in several files, named name-00001-of-00003.gguf and so on.

Format: each file has the keys split.no (from 0), split.count, and split.tensors.count, the number
of tensors of all files together. The first file has the model's metadata. llama.cpp's gguf-split
and pymixtral.files.layout write such files.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from pymixtral.errors import ModelFileError
from pymixtral.files.header import MAX_HEADER_BYTES, MAX_TENSORS, Shard, quoted, read_shard

MAX_SHARDS = 1 << 10  # each is mapped, or its beginning is read; published models have some dozens

_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL | re.ASCII)


def shard_name(stem: str, number: int, count: int) -> str:
    """Name a shard.

    Args:
        stem: the beginning of the names of all shards.
        number: the shard's number, from 0.
        count: number of shards.

    Returns:
        Such as "stem-00001-of-00003.gguf", where numbers are from 1.
    """
    return f"{stem}-{number + 1:05}-of-{count:05}.gguf"


def stem(path: str) -> str:
    """Find the beginning of a model's name.

    Args:
        path: a GGUF file.

    Returns:
        The path's last component without .gguf and without the number of a shard.
    """
    name = os.path.basename(path)  # noqa: PTH119  # a Path drops a trailing slash or dot
    match = _NAME.fullmatch(name)
    return match[1] if match else name.removesuffix(".gguf")


def read_shards(path: str, *, mapped: bool = True) -> list[Shard]:
    """Read the headers of a file, and of all shards where it is one of several.

    Their paths are made from its own, in its directory: no file can name another.

    Args:
        path: a GGUF file, or any one of the shards.
        mapped: as for read_shard().

    Returns:
        All shards, in order.

    Raises:
        ModelFileError: for a file that cannot be opened or breaks the format; if a name contradicts the
            metadata, a shard is missing, or shards contradict each other.
        UnsupportedError: for a tensor type that ggml has retired.
    """
    found = read_shard(path, mapped=mapped)
    count = found.count
    if count <= 1:
        return [found]
    number = _integer(found, "split.no")
    if count > MAX_SHARDS:
        raise ModelFileError(
            f"{found.path}: metadata key 'split.count': expected at most {MAX_SHARDS} shards, found {count}"
        )
    if not 0 <= number < count:
        raise ModelFileError(f"{found.path}: metadata key 'split.no': expected 0 to {count - 1}, found {number}")
    directory, name = os.path.split(found.path)
    match = _NAME.fullmatch(name)
    if not match or (int(match[2]), int(match[3])) != (number + 1, count):
        raise ModelFileError(
            f"{found.path}: expected a name that ends in '{shard_name('', number, count)}', as its metadata says "
            f"shard {number + 1} of {count}, found {quoted(name)}: give all shards the names that they were published "
            "with"
        )
    shards: list[Shard] = []
    names: dict[str, str] = {}
    header_bytes = 0
    for i in range(count):
        path = os.path.join(directory, shard_name(match[1], i, count))  # noqa: PTH118  # found's own path, unchanged
        if i != number and not Path(path).exists():
            raise ModelFileError(
                f"{found.path}: expected shard {i + 1} of {count} beside it, found no file {path}: "
                "put all shards into one directory"
            )
        shard = found if i == number else read_shard(path, mapped=mapped)
        _check(shard, found, i)
        header_bytes += shard.header_bytes
        if header_bytes > MAX_HEADER_BYTES:
            raise ModelFileError(
                f"{path}: expected headers of at most {MAX_HEADER_BYTES} bytes in all shards up to this one, "
                f"found {header_bytes}: get the shards again"
            )
        for tensor in shard.places:
            if tensor in names:
                raise ModelFileError(
                    f"{path}: tensor {quoted(tensor)}: expected it in one shard, found it in {names[tensor]} too: "
                    "use shards that belong together"
                )
            names[tensor] = path
        shards.append(shard)
        if len(names) > MAX_TENSORS:
            raise ModelFileError(
                f"{path}: expected at most {MAX_TENSORS} tensors in all shards up to this one, found {len(names)}: "
                "get the shards again"
            )
    expected = _integer(found, "split.tensors.count")
    if len(names) != expected:
        raise ModelFileError(
            f"{found.path}: metadata key 'split.tensors.count': expected the {len(names)} tensors that the {count} "
            f"shards have together, found {expected}: use shards that belong together"
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
                f"{shard.path}: metadata key '{key}': expected {expected}, as the file's name and {named.path} have "
                f"it, found {found}: use shards that belong together"
            )


def _integer(shard: Shard, key: str) -> int:
    value = shard.metadata.get(key)
    if type(value) is not int:
        found = "none" if value is None else quoted(value)
        raise ModelFileError(
            f"{shard.path}: metadata key '{key}': expected an integer in one of {shard.count} shards, found {found}"
        )
    return value
