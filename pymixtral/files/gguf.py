"""A GGUF model, in one file or several, memory-mapped."""

from __future__ import annotations

import os
from types import TracebackType

from pymixtral.errors import ModelFileError
from pymixtral.files.header import Tensor, Value, read_shard
from pymixtral.files.shards import open_all


class GGUFFile:
    """An open GGUF file: its metadata in memory, its tensors as views of the memory-mapped file.

    metadata: key to int, float, bool, str, list of str, or a NumPy array (one dimension, the file's type; bool as bool).
    tensors: name to Tensor, in the file's order.
    version: 2 or 3. alignment: of each tensor's offset, in bytes, a power of two of at least 8.
    encoded: key to its bytes in the file (name, type and value), views of the mapped file.
    paths: the file, or all shards of a model in several files, of which `path` may be any; metadata, encoded, version and alignment are
    those of the first, the tensors those of all. maps: path to mapped file. n_bytes: of all files.

    Opening reads the headers only, whatever the size of the file. Raises ModelFileError for a file that cannot be opened or breaks
    the format and for shards that are missing or contradict each other, and UnsupportedError for a retired tensor type.

    The mapping ends when the file is closed and the last view of it (a tensor's data, or anything sliced from it) is gone; close()
    does not invalidate views that are in use. The mapped file must not change meanwhile: reading a page beyond the end of a file that
    was shortened in place kills the process (SIGBUS; check_length() tells of one whose last page was not lost whole), and bytes
    overwritten in place are read as they then are. Replace a model file by renaming a new one over it: the mapping keeps the old one.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        found = read_shard(self.path)
        shards = open_all(found) if found.count > 1 else [found]
        first = shards[0]
        self.paths = tuple(shard.path for shard in shards)
        self.n_bytes = sum(shard.n_bytes for shard in shards)
        self.maps = {shard.path: shard.mapped for shard in shards}
        self.version, self.alignment = first.version, first.alignment
        self.metadata: dict[str, Value] = first.metadata
        self.encoded: dict[str, memoryview] = first.encoded
        self.tensors: dict[str, Tensor] = {name: tensor for shard in shards for name, tensor in shard.tensors.items()}

    def check_length(self) -> None:
        """Raises ModelFileError if a file is shorter than when it was mapped: what was read of its last page may then be zeros."""
        for path, mapped in self.maps.items():
            if mapped.size() < len(mapped):
                raise ModelFileError(
                    f"{path}: the file was shortened while it was in use, from {len(mapped)} bytes to {mapped.size()}: results are "
                    "wrong; restore the file and open the model again"
                )

    def close(self) -> None:
        """Drops the tensors; the mapping itself ends with the last view of it. May be called twice."""
        self.tensors, self.encoded, self.maps = {}, {}, {}

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
