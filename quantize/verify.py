"""Reads a file back from the disk and compares it with what was meant to be written."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from pymixtral.errors import CheckpointError, ModelFileError, PymixtralError
from pymixtral.files.gguf import GGUFFile
from pymixtral.files.stored import SourceFile
from pymixtral.files.writing import padding
from pymixtral.model.config import ModelConfig
from pymixtral.model.weights import load_weights

from .planning import ALIGNMENT, Plan

_CHUNK_BYTES = 1 << 20  # read at a time: it stays in the caches while its checksum is computed


def verify(path: Path, header: bytes, plan: Plan, checksums: Mapping[str, int]) -> Iterator[int]:
    """Compares a file with what was written: header, names, shapes, types, checksums of the data.

    Args:
        path: the file.
        header: what was written before the data.
        plan: the tensors that were written.
        checksums: CRC-32 of each tensor's data and padding, by its name.

    Yields:
        Numbers of bytes, as they are read.

    Raises:
        CheckpointError: the file is not what was written, or pymixtral would not run it.
    """
    try:
        with GGUFFile(path) as file:
            found = [(tensor.name, tensor.type, tensor.shape) for tensor in file.tensors.values()]
            load_weights(file, ModelConfig.from_gguf(file))
    except ModelFileError as error:
        raise CheckpointError(f"read back, the file is broken: {error}: check the disk and try again") from error
    except PymixtralError as error:
        raise CheckpointError(f"read back, the file describes no model that pymixtral runs: {error}") from error
    written = SourceFile(path)
    _drop_cache(path)
    planned = [(tensor.target.name, tensor.type, tensor.target.shape) for tensor in plan.tensors]
    if found != planned or written.read(len(header), 0) != header:
        raise CheckpointError(
            f"{path}: expected the header that was written, found another when it was read back: "
            "check the disk and try again"
        )
    offset = len(header)
    buffer = np.empty(_CHUNK_BYTES, np.uint8)
    for tensor in plan.tensors:
        checksum, end = 0, offset + tensor.n_bytes + padding(tensor.n_bytes, ALIGNMENT)
        while offset < end:
            part = buffer[: min(_CHUNK_BYTES, end - offset)]
            written.read_into(part, offset)
            checksum = zlib.crc32(part.data, checksum)
            offset += len(part)
            yield len(part)
        if checksum != checksums[tensor.target.name]:
            raise CheckpointError(
                f"{path}: tensor {tensor.target.name}: expected the checksum {checksums[tensor.target.name]:08x} of "
                f"what was written, found {checksum:08x} when it was read back: check the disk and memory and try again"
            )
    if written.size != offset:
        raise CheckpointError(
            f"{path}: expected {offset} bytes, found {written.size} when it was read back: check the disk and try again"
        )


def _drop_cache(path: Path) -> None:
    """Lets the system forget the file's pages, so that the disk is read and not memory.

    Nothing happens where a system cannot be told so.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
