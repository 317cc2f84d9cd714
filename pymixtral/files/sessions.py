"""Session files: the ids of a text and the pages of its keys and values. docs/sessions.md has the bytes.

Each page has its own checksum, which also covers the header's and the page's number, so that a file
of gigabytes is written and read in the memory of a page.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from pymixtral.arrays import I32, U8
from pymixtral.errors import ContextLengthError, SessionFileError
from pymixtral.files.atomic import replacing
from pymixtral.files.kinds import directory_instead, named

_MAGIC = b"PMXSESSN"
_VERSION = 1
_ADAPTED_VERSION = 2
"""Of files with adapters, whose header has their digest before the checksum."""
_HEADER = struct.Struct("<8sII32s32sII")
_ADAPTERS_BYTES = 32
_CHECKSUM_BYTES = 32
_PAGE = struct.Struct("<32sI")
_READ = 1 << 20
"""Bytes of ids that are read at a time."""

KV_NUMBERS = {"f32": 0, "f16": 1, "q8_0": 8}
"""The cache's type in a file: GGUF's numbers."""


@dataclass(frozen=True)
class Binding:
    """What keys and values depend on beside the ids.

    Attributes:
        model: SHA-256 of the model, as of GGUFFile.digest().
        overrides: SHA-256 of the metadata that the caller gave in place of the file's.
        numerics: version of the numerics contract.
        kv_type: "f16", "f32" or "q8_0".
        adapters: SHA-256 of the adapters and their scales; b"": none.
        adapted: the names of the adapters, for messages.
    """

    model: bytes
    overrides: bytes
    numerics: int
    kv_type: str
    adapters: bytes = b""
    adapted: str = ""


@dataclass(frozen=True)
class SessionForm:
    """The session files of an open model.

    Attributes:
        binding: what they must have.
        page_positions: positions of a page.
        page_bytes: bytes of a page.
        n_ctx: the most ids.
        n_vocab: ids are below it.
    """

    binding: Binding
    page_positions: int
    page_bytes: int
    n_ctx: int
    n_vocab: int

    def n_pages(self, n_ids: int) -> int:
        """Count the pages of a text.

        Args:
            n_ids: its length.
        """
        return -(-n_ids // self.page_positions)

    def n_bytes(self, n_ids: int) -> int:
        """Compute the size of the file of a text.

        Args:
            n_ids: its length.
        """
        header = _HEADER.size + len(self.binding.adapters) + _CHECKSUM_BYTES
        return header + 4 * n_ids + self.n_pages(n_ids) * (self.page_bytes + _CHECKSUM_BYTES)


def write(path: Path, form: SessionForm, ids: I32, pages: Iterable[U8], *, force: bool) -> None:
    """Write a session. The file appears when it is complete.

    Args:
        path: the file.
        form: of the open model.
        ids: the text, int32 [1 to n_ctx].
        pages: its pages in order, page_bytes each.
        force: whether an existing file is replaced.

    Raises:
        OutputError: if it cannot be written, or exists.
    """
    binding = form.binding
    content = ids.astype("<i4").tobytes()
    head = _HEADER.pack(
        *(_MAGIC, _ADAPTED_VERSION if binding.adapters else _VERSION, binding.numerics),
        *(binding.model, binding.overrides, KV_NUMBERS[binding.kv_type], len(ids)),
    )
    head += binding.adapters
    checksum = hashlib.sha256(head + content).digest()
    with replacing(path, force=force) as temporary, temporary.open("wb") as file:
        file.write(head + checksum + content)
        for i, page in enumerate(pages):
            file.write(page.data)
            file.write(_page_checksum(checksum, i, page.data))


class SessionFile:
    """An open session file, whose header and ids are checked. Pages are checked as they are read.

    Args:
        path: the file.
        form: of the open model.

    Attributes:
        ids: the text, int32 [1 to n_ctx].
        n_pages: its pages.

    Raises:
        SessionFileError: for a file that cannot be read, is broken, or is of another model.
        ContextLengthError: for more ids than n_ctx.
    """

    def __init__(self, path: Path, form: SessionForm) -> None:
        self._path = path
        self._form = form
        try:
            if path.is_dir():
                raise self._error("a session file", directory_instead(path), "check the path")
            if not path.is_file():  # before open, which would wait for the writer of a pipe
                path.stat()  # raises the reason if nothing is there
                raise self._error("a session file", "something that is not a regular file", "check the path")
            self._file = path.open("rb")
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise self._error("a file that can be opened", f"an error ({reason})", "check the path") from error
        try:
            self.ids = self._read_ids()
        except BaseException:
            self._file.close()
            raise
        self.n_pages = form.n_pages(len(self.ids))

    def _read_ids(self) -> I32:
        form = self._form
        size = os.fstat(self._file.fileno()).st_size
        head = self._file.read(_HEADER.size)
        if head[: len(_MAGIC)] != _MAGIC:
            raise self._error("a session file", "another file", "choose one that save_session() wrote")
        if len(head) < _HEADER.size:
            raise self._error(f"{_HEADER.size} bytes of header", f"{len(head)}", "save it again")
        _, version, numerics, model, overrides, kv_number, n_ids = _HEADER.unpack(head)
        if version not in (_VERSION, _ADAPTED_VERSION):
            raise self._error(
                f"version {_VERSION} or {_ADAPTED_VERSION} of the format",
                f"{version}",
                "save it again with this pymixtral",
            )
        adapters = self._file.read(_ADAPTERS_BYTES if version == _ADAPTED_VERSION else 0)
        checksum = self._file.read(_CHECKSUM_BYTES)
        self._begin = len(head) + len(adapters) + len(checksum) + 4 * n_ids
        if n_ids < 1 or self._begin > size:
            raise self._error("1 or more ids inside the file", f"{n_ids} in {size} bytes", "save it again")
        content, found = self._read_content(4 * n_ids, hashlib.sha256(head + adapters))
        if found != checksum:
            raise self._error("a header and ids of its checksum", "damage", "save it again")
        self._check_binding(numerics, model, overrides, kv_number, adapters)
        if n_ids > form.n_ctx:
            raise ContextLengthError(
                f"{named(self._path)}: expected a session of at most {form.n_ctx} tokens (n_ctx), found {n_ids}: "
                "open the model with a larger n_ctx"
            )
        if size != form.n_bytes(n_ids):
            raise self._error(f"{form.n_bytes(n_ids)} bytes for {n_ids} tokens", f"{size}", "save it again")
        ids: I32 = np.frombuffer(content, "<i4").astype(np.int32)
        if ids.min() < 0 or ids.max() >= form.n_vocab:
            raise self._error(f"ids from 0 to {form.n_vocab - 1}", "others", "save it again")
        self._checksum = checksum
        return ids

    def _read_content(self, n_bytes: int, checksum: Any) -> tuple[bytes, bytes]:
        """The ids as the file has them, as many as n_ctx, and the checksum of all: a file may have billions."""
        content, left = bytearray(), n_bytes
        while left and (part := self._file.read(min(left, _READ))):
            checksum.update(part)
            content += part[: max(4 * self._form.n_ctx - len(content), 0)]
            left -= len(part)
        return bytes(content), checksum.digest()

    def _check_binding(self, numerics: int, model: bytes, overrides: bytes, kv_number: int, adapters: bytes) -> None:
        binding = self._form.binding
        if numerics != binding.numerics:
            raise self._error(
                f"a session of version {binding.numerics} of the numerics contract",
                f"version {numerics}",
                "save it again",
            )
        if model != binding.model:
            raise self._error("a session of the open model", "one of another model", "open the model that it is of")
        if overrides != binding.overrides:
            raise self._error(
                "a session with the overrides, experts_used, expert_min_p and activations of the open model",
                "one with others",
                "open the model with those",
            )
        if kv_number != KV_NUMBERS[binding.kv_type]:
            found = {number: name for name, number in KV_NUMBERS.items()}.get(kv_number, f"type {kv_number}")
            raise self._error(
                f"a session of a cache of kv_type {binding.kv_type}", found, "open the model with that kv_type"
            )
        if adapters != binding.adapters:
            raise self._error(
                f"a session with {binding.adapted}" if binding.adapters else "a session without adapters",
                ("one with other adapters or scales" if binding.adapters else "one with some")
                if adapters
                else "one without adapters",
                "name the adapter that it was saved with" if adapters else "load it with adapter={}",
            )

    def page(self, i: int) -> bytes:
        """Read a page.

        Args:
            i: its number, 0 to n_pages - 1.

        Returns:
            page_bytes bytes, of the right checksum.

        Raises:
            SessionFileError: if it cannot be read or is damaged.
        """
        n = self._form.page_bytes
        try:
            self._file.seek(self._begin + i * (n + _CHECKSUM_BYTES))
            content, checksum = self._file.read(n), self._file.read(_CHECKSUM_BYTES)
        except OSError as error:
            raise self._error("a file that can be read", f"an error ({error.strerror})", "check the disk") from error
        if _page_checksum(self._checksum, i, content) != checksum:
            raise self._error(f"page {i} of its checksum", "damage", "save it again")
        return content

    def refuse(self, i: int) -> SessionFileError:
        """Make the error of a page that no kernel has written.

        Args:
            i: its number.
        """
        return self._error(f"numbers that a cache can hold in page {i}", "others, such as NaN", "do not use this file")

    def _error(self, expected: str, found: str, do: str) -> SessionFileError:
        return SessionFileError(f"{named(self._path)}: expected {expected}, found {found}: {do}")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> SessionFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _page_checksum(checksum: bytes, i: int, page: bytes | memoryview) -> bytes:
    found = hashlib.sha256(_PAGE.pack(checksum, i))
    found.update(page)
    return found.digest()
