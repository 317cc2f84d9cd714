"""A GGUF model, in one file or several, memory-mapped."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import TracebackType

from pymixtral.errors import ModelFileError
from pymixtral.files.header import Tensor, Value
from pymixtral.files.identity import check_unchanged
from pymixtral.files.shards import read_shards

_DIGESTED = 4096
"""Bytes of each tensor that digest() reads: models that were trained on have the same headers."""


class GGUFFile:
    """An open GGUF model: its metadata in memory, its tensors as views of the memory-mapped file.

    Opening reads the headers only, whatever the size of the file. metadata, encoded, version and
    alignment of a model in several files are those of the first one.

    The mapping ends when the file is closed and the last view of it is gone: a tensor's data, or
    anything sliced from it. close() does not invalidate views that are in use.

    The file must not change while it is mapped. If it is shortened in place, reading a page beyond
    its end kills the process (SIGBUS); check_length() notices a file that lost only a part of its
    last page. Bytes that are overwritten in place are read as they then are. To replace a model
    file, rename a new one over it: the mapping keeps the old one.

    Args:
        path: a GGUF file, or any one of the shards of a model in several files.

    Attributes:
        path: as given.
        paths: the file, or all shards in order.
        version: of GGUF, 2 or 3.
        alignment: of each tensor's offset, in bytes, a power of two of at least 8.
        metadata: key to int, float, bool, str, list of str, or a NumPy array of one dimension and
            the file's type.
        encoded: key to the bytes of its name, type and value, views of the mapped file.
        tensors: name to Tensor, of all files, in their order.
        maps: path to mapped file.
        n_bytes: bytes of all files.

    Raises:
        NativeError: for no memory or too many open files.
        ModelFileError: for a file that cannot be opened or breaks the format, and for shards that
            are missing or contradict each other.
        UnsupportedError: for a tensor type that ggml has retired.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        shards = read_shards(self.path)
        self._header_bytes = {shard.path: shard.header_bytes for shard in shards}
        self._identities = {Path(shard.path): shard.identity for shard in shards}
        first = shards[0]
        self.paths = tuple(shard.path for shard in shards)
        self.n_bytes = sum(shard.n_bytes for shard in shards)
        self.maps = {shard.path: shard.mapped for shard in shards if shard.mapped is not None}
        self.version, self.alignment = first.version, first.alignment
        self.metadata: dict[str, Value] = first.metadata
        self.encoded: dict[str, memoryview] = first.encoded
        self.tensors: dict[str, Tensor] = {
            name: place.tensor(name, self.maps[shard.path]) for shard in shards for name, place in shard.places.items()
        }

    def digest(self) -> bytes:
        """Compute what tells the model from others, in the time of reading a little of each tensor.

        Returns:
            The SHA-256 of the headers of all files, that is metadata and names, types, shapes and
            offsets of the tensors, and of the first 4096 bytes of each tensor. It does not depend
            on the files' names.
        """
        found = hashlib.sha256()
        for path, mapped in self.maps.items():
            found.update(mapped[: self._header_bytes[path]])
        for tensor in self.tensors.values():
            found.update(tensor.data.reshape(-1)[:_DIGESTED].tobytes())
        return found.digest()

    def check_length(self) -> None:
        """Check that no file was shortened since it was mapped.

        The end of the last page of such a file reads as zeros.

        Raises:
            ModelFileError: for a file that is shorter than when it was mapped.
        """
        for path, mapped in self.maps.items():
            if mapped.size() < len(mapped):
                raise ModelFileError(
                    f"{path}: expected {len(mapped)} bytes, found {mapped.size()}, as it was shortened while it was "
                    "in use: discard the results, restore the file and open the model again"
                )

    def check_unchanged(self) -> None:
        """Raises ModelFileError if a file is no longer what it was when it was opened, as one that
        is overwritten in place.
        """
        for path, before in self._identities.items():
            check_unchanged(path, before, ModelFileError)

    def close(self) -> None:
        """Drop the tensors. The mapping ends with its last view. A second close() does nothing."""
        self.tensors, self.encoded, self.maps = {}, {}, {}

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
