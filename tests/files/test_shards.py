"""Models in several files: opened by the name of any, refused where they do not belong together."""

from __future__ import annotations

import os
import shutil
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFValueType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pymixtral import Mixtral
from pymixtral.errors import ModelFileError, PymixtralError
from pymixtral.files.gguf import GGUFFile
from pymixtral.files.header import MAX_HEADER_BYTES
from pymixtral.files.shards import MAX_SHARDS, read_shards, shard_name, stem
from pymixtral.inspection.inspect import inspect
from support.gguf_bytes import F32, V, build, key, refused, tensor
from support.ggufs import rewrite

PROMPT = "Once upon a time there was a king"


@pytest.fixture(scope="module")
def shards(tiny_q8_0: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """tiny-mixtral in three files, written by the gguf package."""
    directory = tmp_path_factory.mktemp("shards")
    rewrite(tiny_q8_0, directory / "tiny.gguf", shard_tensors=15)
    return sorted(directory.iterdir())


def test_any_shard_opens_the_model(tiny_q8_0: Path, shards: list[Path]) -> None:
    assert [path.name for path in shards] == [f"tiny-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    whole = GGUFFile(tiny_q8_0)
    for path in shards:
        with GGUFFile(path) as file:
            assert (file.path, file.paths) == (str(path), tuple(map(str, shards)))
            assert file.n_bytes == sum(shard.stat().st_size for shard in shards)
            assert {
                k: v for k, v in file.metadata.items() if not k.startswith("split.")
            }.keys() == whole.metadata.keys()
            assert file.metadata["general.name"] == "tiny-mixtral"
            assert sorted(file.tensors) == sorted(whole.tensors)
            for name, found in file.tensors.items():
                assert (found.type, found.shape) == (whole.tensors[name].type, whole.tensors[name].shape)
                assert not found.data.flags.owndata  # mapped
                assert np.array_equal(found.data, whole.tensors[name].data)


def test_a_model_in_shards_has_the_logits_of_the_whole(tiny_q8_0: Path, shards: list[Path]) -> None:
    with Mixtral(tiny_q8_0) as whole, Mixtral(shards[1]) as model:
        ids = whole.tokenize(PROMPT)
        assert model.config == whole.config
        assert np.array_equal(model.logits(ids), whole.logits(ids))
    found = inspect(shards[2])
    assert found.problem is None
    assert found.file_bytes == sum(shard.stat().st_size for shard in shards)


def test_a_relative_path_and_links_as_download_caches_make_them(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i, path in enumerate(shards):
        shutil.copy(path, tmp_path / f"blob{i}")
        (tmp_path / path.name).symlink_to(tmp_path / f"blob{i}")
    monkeypatch.chdir(tmp_path)
    with GGUFFile(shards[1].name) as file:
        assert file.paths == tuple(path.name for path in shards)


def test_names() -> None:
    assert shard_name("a/b", 1, 12) == "a/b-00002-of-00012.gguf"
    assert [stem(f"/x/{name}") for name in ("m.gguf", "m-00002-of-00012.gguf", "m-2-of-12.gguf", "m")] == [
        "m",
        "m",
        "m-2-of-12",
        "m",
    ]


# --- Hostile sets ---------------------------------------------------------------------------------


def number(name: str, n: int, kind: GGUFValueType = V.UINT16) -> bytes:
    return key(name, kind, struct.pack({V.UINT16: "<H", V.INT32: "<i", V.UINT32: "<I"}[kind], n))


def shard(
    no: int, count: int = 2, total: int = 2, *, names: tuple[str, ...] | None = None, keys: list[bytes] | None = None
) -> bytes:
    names = (f"t{no}",) if names is None else names
    split = [number("split.no", no), number("split.count", count), number("split.tensors.count", total, V.INT32)]
    infos = [tensor(name, [8], F32, 32 * i) for i, name in enumerate(names)]
    return build(split if keys is None else keys, infos, bytes(32 * len(names)))


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two shards that belong together."""
    paths = tmp_path / "m-00001-of-00002.gguf", tmp_path / "m-00002-of-00002.gguf"
    for i, path in enumerate(paths):
        path.write_bytes(shard(i))
    assert list(GGUFFile(paths[0]).tensors) == ["t0", "t1"]
    return paths


def test_a_missing_shard_is_named(pair: tuple[Path, Path]) -> None:
    pair[0].unlink()
    refused(pair[1], "expected shard 1 of 2", f"no file {pair[0]}")


@pytest.mark.parametrize(
    "name", ["m.gguf", "m-00002-of-00003.gguf", "m-00001-of-00002.gguf.part", "m-1-of-2.gguf", "m-00001-of-00003.gguf"]
)
def test_a_name_that_contradicts_the_metadata(pair: tuple[Path, Path], name: str) -> None:
    path = pair[0].rename(pair[0].with_name(name))
    refused(path, "-00001-of-00002.gguf", "shard 1 of 2")


def test_names_come_from_the_named_file_alone(tmp_path: Path) -> None:
    """Only files beside it with its own name and another number are opened, whatever it says."""
    path = tmp_path / "m-00001-of-00002.gguf"
    for claim in (2, 3, 65535):
        path.write_bytes(shard(0, claim))
        with pytest.raises(ModelFileError) as caught:
            GGUFFile(path)
        assert "/../" not in str(caught.value)


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (shard(0), ("'split.no'", "expected 1", "found 0")),
        (shard(1, count=3), ("'split.count'", "expected 2", "found 3")),
        (shard(1, count=1), ("'split.count'", "expected 2", "found 1")),
        (shard(1, total=3), ("'split.tensors.count'", "expected 2", "found 3")),
        (shard(1, names=("t0",)), ("'t0'", "in one shard, found it in")),
        (shard(1, names=("t1", "t2")), ("expected the 3 tensors", "found 2")),
        (shard(1, names=()), ("expected the 1 tensors", "found 2")),
        (shard(1, keys=[]), ("'split.count'", "found none")),
        (shard(1)[:-1], ("'t1'", "truncated")),
        (b"GGUF", ("version",)),
        (b"", ("empty",)),
    ],
)
def test_shards_that_do_not_belong_together(pair: tuple[Path, Path], second: bytes, words: tuple[str, ...]) -> None:
    pair[1].write_bytes(second)
    with pytest.raises(ModelFileError) as caught:
        GGUFFile(pair[0])
    for word in words:
        assert word in str(caught.value)
    assert str(caught.value).startswith(str(pair[0].parent))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ([number("split.count", 2)], ("'split.no'", "found none")),
        ([number("split.count", 2), number("split.no", 2)], ("'split.no'", "expected 0 to 1", "found 2")),
        ([number("split.count", 2), number("split.no", -1, V.INT32)], ("'split.no'", "found -1")),
        ([number("split.count", 2), key("split.no", V.BOOL, b"\0")], ("'split.no'", "integer", "False")),
        ([number("split.count", 2), number("split.no", 0)], ("'split.tensors.count'", "found none")),
        ([number("split.count", 2**32 - 1, V.UINT32)], ("'split.no'",)),
        ([number("split.count", MAX_SHARDS + 1), number("split.no", 0)], (f"at most {MAX_SHARDS}",)),
    ],
)
def test_keys_that_make_no_sense(pair: tuple[Path, Path], keys: list[bytes], words: tuple[str, ...]) -> None:
    pair[0].write_bytes(shard(0, keys=keys))
    refused(pair[0], *words)


def test_one_file_of_one_has_any_name(tmp_path: Path) -> None:
    path = tmp_path / "renamed.gguf"
    path.write_bytes(build([number("split.count", 1), number("split.no", 0)], [tensor("t", [8], F32, 0)], bytes(32)))
    assert list(GGUFFile(path).tensors) == ["t"]


def test_headers_together_have_the_limits_of_one(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pymixtral.files.shards.MAX_HEADER_BYTES", len(shard(0)) + 1)
    with pytest.raises(ModelFileError, match="expected headers of at most"):
        GGUFFile(pair[0])
    monkeypatch.undo()
    monkeypatch.setattr("pymixtral.files.shards.MAX_TENSORS", 1)
    with pytest.raises(ModelFileError, match=r"expected at most 1 tensors .*, found 2"):
        GGUFFile(pair[0])


FIRST, SECOND = shard(0), shard(1)
edits = st.lists(
    st.tuples(st.integers(0, len(FIRST) - 1), st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**64 - 1)),
    min_size=1,
    max_size=3,
)


@settings(max_examples=500, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=edits, which=st.integers(0, 1), end=st.just(len(FIRST)) | st.integers(0, len(FIRST)))
def test_a_mutated_shard_opens_cleanly_or_is_refused(
    tmp_path: Path, changes: list[tuple[int, int, int]], which: int, end: int
) -> None:
    contents = [bytearray(FIRST), bytearray(SECOND)]
    for pos, width, value in changes:
        contents[which][pos : pos + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
    contents[which] = contents[which][:end]
    for i, content in enumerate(contents):
        (tmp_path / shard_name("m", i, 2)).write_bytes(content)
    for i in range(2):
        try:
            file = GGUFFile(tmp_path / shard_name("m", i, 2))
        except PymixtralError:
            continue
        assert len(file.tensors) in (1, 2)  # 1: of a file that no longer says that it is a shard
        for found in file.tensors.values():
            found.data.sum()


def test_the_digest_is_of_all_shards_and_of_nothing_but_their_content(
    tiny_q8_0: Path, shards: list[Path], tmp_path: Path
) -> None:
    def digest(path: Path) -> bytes:
        with GGUFFile(path) as file:
            return file.digest()

    expected = digest(shards[0])
    assert digest(shards[2]) == expected != digest(tiny_q8_0)
    for path in shards:
        shutil.copy(path, tmp_path / path.name.replace("tiny", "other"))
    copies = sorted(tmp_path.iterdir())
    assert digest(copies[1]) == expected
    for path in copies:
        data = bytearray(path.read_bytes())
        with GGUFFile(path) as file:
            begin = file._header_bytes[str(path)]
        for at in (data.index(b"blk."), -(-begin // 32) * 32):  # a tensor's name, the first tensor's content
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            assert digest(path) != expected
        path.write_bytes(data)
    assert digest(copies[0]) == expected


def test_shards_that_are_read_keep_their_headers_alone(tmp_path: Path) -> None:
    """Not the 64 MB that each is looked at for its header, which are a hole here."""
    n = 8
    for i in range(n):
        path = tmp_path / shard_name("m", i, n)
        path.write_bytes(shard(i, count=n, total=n))
        os.truncate(path, MAX_HEADER_BYTES)
    tracemalloc.start()
    try:
        found = read_shards(str(path), mapped=False)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [bytes(one.encoded["split.no"]) for one in found] == [number("split.no", i) for i in range(n)]
    assert kept < 1 << 20
    assert peak < 2 * MAX_HEADER_BYTES
