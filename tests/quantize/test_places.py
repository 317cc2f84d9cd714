"""Where the files of a checkpoint may lie: links, devices, pipes; and what their JSON may cost."""

from __future__ import annotations

import json
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from pymixtral.errors import CheckpointError
from pymixtral.files import strict_json
from pymixtral.files.places import check_place
from pymixtral.quantize import quantize
from pymixtral.quantize.sources.opening import open_checkpoint
from pymixtral.quantize.sources.safetensors import read_safetensors
from support.checkpoints import Shape, make_checkpoint
from support.ggufs import contents

SHAPE = Shape(n_layers=1)
FILES = ["config.json", "model.safetensors", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja"]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    directory = tmp_path / "hf"
    make_checkpoint(directory, SHAPE, seed=2)
    (directory / "tokenizer_config.json").write_text("{}")
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    return directory


def refused(directory: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        quantize(directory, directory.parent / "m.gguf", progress=False)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_row_25_links_to_other_places_are_refused(checkpoint: Path, name: str) -> None:
    """So that no private file becomes a part of what is published."""
    private = checkpoint.parent / "private"
    (checkpoint / name).rename(private)
    for target in (private, Path("../private")):
        (checkpoint / name).symlink_to(target)
        refused(checkpoint, f"{checkpoint / name}: expected a file of the checkpoint, found a link to {private}")
        (checkpoint / name).unlink()
    (checkpoint / "inner").symlink_to("../private")
    (checkpoint / name).symlink_to("inner")
    refused(checkpoint, str(private))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.symlink_to("/dev/zero"), "found a link to /dev/zero"),
        (os.mkfifo, "not a regular one"),
        (Path.mkdir, "not a regular one"),
        (lambda path: path.symlink_to(path.name), "symbolic links"),
    ],
)
def test_row_25_devices_pipes_and_circles_are_refused(
    checkpoint: Path, name: str, make: Callable[[Path], object], words: str
) -> None:
    (checkpoint / name).unlink()
    make(checkpoint / name)
    if name in FILES[2:] and words == "symbolic links":
        return  # a file that is not needed, and not there
    refused(checkpoint, str(checkpoint / name), words)


def test_a_link_to_nothing_is_a_broken_download(checkpoint: Path) -> None:
    for name in FILES[:2]:
        (checkpoint / name).rename(checkpoint / "kept")
        (checkpoint / name).symlink_to("../../blobs/4d7a21")
        refused(
            checkpoint, f"{name}: cannot be read (No such file or directory, where a link leads: download it again)"
        )
        (checkpoint / "kept").rename(checkpoint / name)


def test_the_cache_of_hugging_face(checkpoint: Path, tmp_path: Path) -> None:
    """models--ORG--NAME/snapshots/REVISION has links to blobs of the same model."""
    expected = tmp_path / "a.gguf"
    quantize(checkpoint, expected, progress=False)
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "4d7a21", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, name in enumerate(FILES):
        (checkpoint / name).rename(blobs / str(i))
        (snapshot / name).symlink_to(f"../../blobs/{i}")
    quantize(snapshot, tmp_path / "b.gguf", progress=False)
    assert contents(tmp_path / "b.gguf") == contents(expected)
    (tmp_path / "link").symlink_to(snapshot)  # the user's own
    assert open_checkpoint(tmp_path / "link").files
    other = tmp_path / "models--c--d" / "blobs"
    other.mkdir(parents=True)
    (blobs / "0").rename(other / "0")
    (snapshot / FILES[0]).unlink()
    (snapshot / FILES[0]).symlink_to("../../../models--c--d/blobs/0")
    refused(snapshot, "found a link to")


def test_links_inside_the_directory(checkpoint: Path) -> None:
    (checkpoint / "sub").mkdir()
    for name in FILES:
        (checkpoint / name).rename(checkpoint / "sub" / name)
        (checkpoint / name).symlink_to(f"sub/{name}")
        check_place(checkpoint / name)
    assert open_checkpoint(checkpoint).files


# --- JSON that takes more memory than its file -------------------------------------------------------------------

BOMBS = [
    b'{"a":[' + b"[]," * 2**21 + b"0]}",
    b'{"a":[' + b'{"a":{}},' * 2**20 + b"0]}",
    b'{"a":"' + b"a" * 2**25 + b'"}',
]


@pytest.mark.parametrize("bomb", BOMBS)
def test_row_17_json_that_expands_is_refused(checkpoint: Path, bomb: bytes) -> None:
    for name in ("config.json", "tokenizer_config.json"):
        genuine = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(bomb)
        tracemalloc.start()
        try:
            refused(checkpoint, f"{name}: expected ", "at most ")
            assert tracemalloc.get_traced_memory()[1] < 2 * len(bomb) + 2**20
        finally:
            tracemalloc.stop()
        (checkpoint / name).write_bytes(genuine)


@pytest.mark.parametrize("bomb", BOMBS)
def test_row_17_a_header_that_expands_is_refused(tmp_path: Path, bomb: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(bomb)) + bomb)
    with pytest.raises(CheckpointError, match=r"at most .* values|header length at offset 0: expected 2 to 16777216"):
        read_safetensors(tmp_path / "x.safetensors")


def test_row_17_an_index_of_very_many_entries_or_shards(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    index = checkpoint / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {str(i): "x.safetensors" for i in range(2**18 + 1)}}))
    refused(checkpoint, "index.json: expected JSON of at most 262144 values")
    index.write_text(json.dumps({"weight_map": {str(i): f"{i}.safetensors" for i in range(1025)}}))
    refused(checkpoint, "index.json: weight_map: expected at most 1024 shards, found 1025")


def test_a_large_vocabulary_is_read(tmp_path: Path) -> None:
    """tokenizer.json has more values than others may."""
    merges = ",".join(f'["a{i}","b{i}"]' for i in range(2**18))
    (tmp_path / "tokenizer.json").write_text(f'{{"merges":[{merges}]}}')
    assert len(strict_json.read_object(tmp_path / "tokenizer.json")["merges"]) == 2**18
    (tmp_path / "tokenizer.json").rename(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="at most 262144 values, found 786433"):
        strict_json.read_object(tmp_path / "config.json")
