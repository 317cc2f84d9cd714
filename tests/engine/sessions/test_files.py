"""Session files: what is in them, and that nothing else comes in."""

from __future__ import annotations

import hashlib
import os
import struct
import tracemalloc
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pymixtral import Mixtral, ops
from pymixtral.engine import sessions
from pymixtral.errors import (
    ContextLengthError,
    InvalidArgumentError,
    NonFiniteError,
    OutputError,
    SessionFileError,
)
from support.sessions import refused

HEADER = struct.Struct("<8sII32s32sII")  # the table of docs/sessions.md, up to the checksum


@dataclass(frozen=True)
class Content:
    """A session file in parts, read and written by the letter of the documentation."""

    magic: bytes
    version: int
    numerics: int
    model: bytes
    overrides: bytes
    kv_type: int
    n_ids: int
    ids: bytes
    pages: list[bytes]

    @classmethod
    def of(cls, path: Path) -> Content:
        data = path.read_bytes()
        fields = HEADER.unpack_from(data)
        n_ids = fields[-1]
        checksum, at = data[88:120], 120 + 4 * n_ids
        assert checksum == hashlib.sha256(data[:88] + data[120:at]).digest()
        n_pages = -(-n_ids // 64)
        size = (len(data) - at) // n_pages
        pages = [data[at + i * size : at + (i + 1) * size] for i in range(n_pages)]
        for i, page in enumerate(pages):
            assert page[-32:] == hashlib.sha256(checksum + struct.pack("<I", i) + page[:-32]).digest()
        return cls(*fields, data[120:at], [page[:-32] for page in pages])

    def encode(self) -> bytes:
        fields = self.magic, self.version, self.numerics, self.model, self.overrides, self.kv_type, self.n_ids
        head = HEADER.pack(*fields)
        checksum = hashlib.sha256(head + self.ids).digest()
        pages = [
            page + hashlib.sha256(checksum + struct.pack("<I", i) + page).digest() for i, page in enumerate(self.pages)
        ]
        return head + checksum + self.ids + b"".join(pages)

    def with_page(self, i: int, page: bytes) -> Content:
        return replace(self, pages=[*self.pages[:i], page, *self.pages[i + 1 :]])


def test_the_file_is_what_the_documentation_says(model: Mixtral, saved: Path, ids: list[int]) -> None:
    content = Content.of(saved)
    config = model.config
    n = config.n_kv_heads * config.head_dim * 64 * 2
    assert (content.magic, content.version, content.numerics) == (b"PMXSESSN", 1, ops.NUMERICS_VERSION)
    assert (content.kv_type, content.n_ids) == (1, 150)
    assert np.frombuffer(content.ids, "<i4").tolist() == ids
    assert [len(page) for page in content.pages] == [2 * n * config.n_layers] * 3
    assert content.overrides == hashlib.sha256(b"{}").digest()
    assert content.encode() == saved.read_bytes()
    k = np.frombuffer(content.pages[2], "<f2")[: n * config.n_layers // 2]
    k = k.reshape(config.n_layers, config.n_kv_heads, config.head_dim, 64)
    assert np.all(k[..., 150 - 128 :] == 0)
    assert np.all(np.any(k[..., : 150 - 128] != 0, axis=2))


def test_paths_that_are_no_files(model: Mixtral, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("once upon a time" * 100)
    for name, found in (("", "a directory"), ("pipe", "not a regular file"), ("none", "No such file")):
        with pytest.raises(SessionFileError, match=found):
            model.load_session(tmp_path / name)
    for name in ("empty", "text"):
        refused(model, tmp_path / name, "found another file")
    with pytest.raises(SessionFileError):
        model.load_session("a\0b")
    for nothing in (b"a", None, 3, ""):
        with pytest.raises(InvalidArgumentError, match="path"):
            model.load_session(nothing)  # type: ignore[arg-type]


def test_every_truncation_and_every_bit_is_noticed(model: Mixtral, saved: Path, tmp_path: Path) -> None:
    data = saved.read_bytes()
    path = tmp_path / "a.session"
    page = (len(data) - 720) // 3
    ends = [*range(0, 121), 719, 720, 721, 720 + page - 33, 720 + page - 1, 720 + 2 * page, len(data) - 1]
    for end in ends:
        path.write_bytes(data[:end])
        refused(model, path, "expected")
    path.write_bytes(data + b"\0")
    refused(model, path, f"expected {len(data)} bytes for 150 tokens, found {len(data) + 1}")
    rng = np.random.default_rng(1)
    for at in [*range(0, 720, 7), *rng.integers(720, len(data), 40).tolist(), len(data) - 1]:
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1 :])
        with pytest.raises((SessionFileError, ContextLengthError)):
            model.load_session(path)


def changed(page: bytes, dtype: str, value: float, at: int) -> bytes:
    numbers: NDArray[Any] = np.frombuffer(page, dtype).copy()
    numbers[at] = value
    return numbers.tobytes()


def test_hostile_files_whose_checksums_are_right(model: Mixtral, saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.session"
    content = Content.of(saved)
    path.write_bytes(content.encode())
    assert len(model.load_session(path)) == 150
    n_vocab = model.config.n_vocab
    for bad in (-1, n_vocab, -(2**31), 2**31 - 1):
        for at in (0, 75, 149):
            path.write_bytes(replace(content, ids=changed(content.ids, "<i4", bad, at)).encode())
            refused(model, path, f"expected ids from 0 to {n_vocab - 1}, found others")
    for value in (np.nan, np.inf, -np.inf):
        for i in range(3):
            for at in (0, 7777, len(content.pages[0]) // 4, len(content.pages[0]) // 2 - 1):
                path.write_bytes(content.with_page(i, changed(content.pages[i], "<f2", value, at)).encode())
                refused(model, path, f"expected numbers that a cache can hold in page {i}")
    for n_ids in (0, 2**32 - 1, 2**31):
        path.write_bytes(replace(content, n_ids=n_ids).encode())
        refused(model, path, "expected 1 or more ids inside the file")
    for n_ids in (149, 151, 128, 192):
        path.write_bytes(replace(content, n_ids=n_ids).encode())
        refused(model, path, "save it again")
    for version in (0, 3, 2**32 - 1):
        path.write_bytes(replace(content, version=version).encode())
        refused(model, path, f"expected version 1 or 2 of the format, found {version}")
    path.write_bytes(replace(content, version=2).encode())  # whose header is longer
    refused(model, path, "a header and ids of its checksum")
    path.write_bytes(replace(content, kv_type=7).encode())
    refused(model, path, "kv_type f16, found type 7")
    for pages in ([], content.pages[:2], [*content.pages, content.pages[0]]):
        path.write_bytes(replace(content, pages=pages).encode())
        refused(model, path, "bytes for 150 tokens")
    swapped = content.encode()
    size = (len(swapped) - 720) // 3
    path.write_bytes(
        swapped[:720] + swapped[720 + size : 720 + 2 * size] + swapped[720 : 720 + size] + swapped[720 + 2 * size :]
    )
    refused(model, path, "page 0 of its checksum")


def test_hostile_blocks_of_q8_0(tiny_q8_0: Path, ids: list[int], tmp_path: Path) -> None:
    path = tmp_path / "a.session"
    with Mixtral(tiny_q8_0, n_ctx=256, kv_type="q8_0") as model:
        model.save_session(path, ids)
        content = Content.of(path)
        config = model.config
        page = np.frombuffer(content.pages[1], np.uint8).reshape(2, config.n_layers, config.n_kv_heads, -1)
        n = 64 * config.head_dim
        for part in (0, 1):
            for at, value in ((0, 0x80), (n - 1, 0x80), (n + 1, 0x7C), (n + 1, 0xFE), (page.shape[-1] - 1, 0x80)):
                broken = page.copy()
                broken[part, -1, -1, at] = value
                path.write_bytes(content.with_page(1, broken.tobytes()).encode())
                refused(model, path, "expected numbers that a cache can hold in page 1")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), signed=st.booleans())
def test_a_mutated_file_is_refused_or_harmless(
    model: Mixtral, saved: Path, tmp_path: Path, data: st.DataObject, signed: bool
) -> None:
    """With `signed` the checksums are made anew, as an attacker would."""
    path = tmp_path / "a.session"
    content = Content.of(saved)
    if signed:
        part = data.draw(st.sampled_from(["version", "numerics", "model", "kv_type", "n_ids", "ids", "page"]))
        if part in ("version", "numerics", "kv_type", "n_ids"):
            content = replace(content, **{part: data.draw(st.integers(0, 2**32 - 1) | st.integers(0, 300))})
        elif part == "model":
            content = replace(content, model=data.draw(st.binary(min_size=32, max_size=32)))
        else:
            i = data.draw(st.integers(0, 2))
            old = content.ids if part == "ids" else content.pages[i]
            at = data.draw(st.integers(0, len(old) - 1))
            new = data.draw(st.binary(min_size=1, max_size=8))
            cut = data.draw(st.sampled_from([0, 0, 1, 64]))
            old = (old[:at] + new + old[at + len(new) :])[: len(old) - cut]
            content = replace(content, ids=old) if part == "ids" else content.with_page(i, old)
        path.write_bytes(content.encode())
    else:
        found = saved.read_bytes()
        at = data.draw(st.integers(0, len(found) - 1) | st.integers(0, 800))
        new = data.draw(st.binary(max_size=40))
        path.write_bytes(found[:at] + new + found[at + data.draw(st.integers(0, 80)) :])
    model.forget()
    try:
        text = model.load_session(path)
    except (SessionFileError, ContextLengthError):
        assert model.stats().cached_pages == 0
    else:
        assert path.read_bytes() == saved.read_bytes() or signed
        with suppress(NonFiniteError):  # numbers so large that the computation overflows
            model.generate([*text, 300], max_tokens=3, temperature=0)
    model.forget()


def test_destinations(model: Mixtral, tiny_q8_0: Path, ids: list[int], tmp_path: Path) -> None:
    path = tmp_path / "a.session"
    path.write_text("mine")
    model.forget()
    before = model.stats().passes
    for dest, found in (
        (path, "found one that exists"),
        (tiny_q8_0, "read or written otherwise"),
        (tmp_path, "a directory"),
        (tmp_path / "none" / "a.session", "found none: create"),
    ):
        with pytest.raises(OutputError, match=found):
            model.save_session(dest, ids, force=dest is tiny_q8_0)
    assert model.stats().passes == before
    assert path.read_text() == "mine"
    model.save_session(path, ids, force=True)
    assert model.load_session(path) == ids
    for bad in ([], [model.config.n_vocab], None, b"text"):
        with pytest.raises(InvalidArgumentError):
            model.save_session(tmp_path / "b.session", bad)  # type: ignore[arg-type]
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.session"]


def test_an_interrupt_midway_leaves_the_old_file(
    model: Mixtral, ids: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.session"
    path.write_text("mine")
    monkeypatch.setattr(sessions, "_GROUP_BYTES", 1)
    calls = 0

    def interrupted(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return found(*args)

    found = sessions._find
    monkeypatch.setattr(sessions, "_find", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.save_session(path, ids, force=True)
    assert path.read_text() == "mine"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.session"]
    assert model.generate(ids, max_tokens=1).tokens


def test_billions_of_ids_take_no_memory(model: Mixtral, saved: Path, tmp_path: Path) -> None:
    """They are all read for their checksum, but not kept: most of them lie in a hole of the file."""
    n_ids, path = 1 << 25, tmp_path / "long.session"
    path.write_bytes(replace(Content.of(saved), n_ids=n_ids, pages=[]).encode())
    os.truncate(path, 120 + 4 * n_ids)
    tracemalloc.start()
    try:
        refused(model, path, "found damage")
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()
