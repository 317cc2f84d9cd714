"""Reads a file back from the disk and compares it with what was meant to be written."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from pymixtral.errors import CheckpointError, ModelFileError, PymixtralError
from pymixtral.files.gguf import GGUFFile
from pymixtral.model.config import ModelConfig
from pymixtral.model.weights import load_weights

from .planning import ALIGNMENT, Plan
from .sources.stored import SourceFile

_CHUNK_BYTES = 1 << 20


def verify(path: Path, header: bytes, plan: Plan, checksums: Mapping[str, int]) -> Iterator[int]:
    """Compares header, names, shapes, types and the checksum of each tensor's bytes; yields the numbers of bytes as they are read.

    Raises CheckpointError for a file that is not what was written, or that pymixtral would not run.
    """
    try:
        with GGUFFile(path) as file:
            found = [(tensor.name, tensor.type, tensor.shape) for tensor in file.tensors.values()]
            load_weights(file, ModelConfig.from_gguf(file))
    except ModelFileError as error:
        raise CheckpointError(f"read back, the file is broken: {error}; check the disk and try again") from error
    except PymixtralError as error:
        raise CheckpointError(f"read back, the file describes no model that pymixtral runs: {error}") from error
    written = SourceFile(path)
    _drop_cache(path)
    planned = [(tensor.target.name, tensor.type, tensor.target.shape) for tensor in plan.tensors]
    if found != planned or written.read(len(header), 0) != header:
        raise CheckpointError(f"{path}: read back, the header is not what was written; check the disk and try again")
    offset = len(header)
    buffer = np.empty(_CHUNK_BYTES, np.uint8)
    for tensor in plan.tensors:
        checksum, end = 0, offset + tensor.n_bytes + -tensor.n_bytes % ALIGNMENT
        while offset < end:
            part = buffer[: min(_CHUNK_BYTES, end - offset)]
            written.read_into(part, offset)
            checksum = zlib.crc32(part.data, checksum)
            offset += len(part)
            yield len(part)
        if checksum != checksums[tensor.target.name]:
            raise CheckpointError(
                f"{path}: read back, tensor {tensor.target.name} is not what was written: its checksum is {checksum:08x}, expected "
                f"{checksums[tensor.target.name]:08x}; check the disk and memory and try again"
            )
    if written.size != offset:
        raise CheckpointError(f"{path}: read back, the file has {written.size} bytes, expected {offset}; check the disk and try again")


def _drop_cache(path: Path) -> None:
    """Lets the system forget the file's pages, where it can be told so, so that the disk is read and not memory."""
    if not hasattr(os, "posix_fadvise"):
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
