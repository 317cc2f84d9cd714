"""Files that are no model: each is answered with what it is and what helps."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from pymixtral import Mixtral
from pymixtral.cli import main
from pymixtral.errors import ModelFileError, PymixtralError, UnsupportedError
from pymixtral.files.kinds import HEAD_BYTES, directory_instead, found_instead, gguf_instead, part_of
from pymixtral.quantize import quantize
from support.checkpoints import Shape, make_checkpoint, write_safetensors
from support.gguf_bytes import V, build, key, string
from support.ggufs import rewrite

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 14483464192\n"
PAGE = b"\n<!DOCTYPE HTML><html><head><title>Sign in</title></head></html>"


def refused(path: Path, *words: str, error: type[PymixtralError] = ModelFileError) -> None:
    """In Python, and in one line by the commands that take a model or a source."""
    with pytest.raises(error) as caught:
        Mixtral(path)
    for word in (str(path), *words):
        assert word in str(caught.value)
    for command in (["generate", "-m", path, "-p", "a"], ["inspect", path], ["perplexity", "-m", path]):
        result = CliRunner().invoke(main, list(map(str, command)), input="a")
        if error is ModelFileError or command[0] != "inspect":  # which describes files that it cannot run
            assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert words[0] in result.output


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (LFS, "a pointer of git-lfs in place of the file: fetch it with `git lfs pull`"),
        (PAGE, "a web page: log in"),
        (b"<html>", "a web page"),
        (b'{"error": "Repository not found"}', "JSON: download the file again"),
        (bytes(HEAD_BYTES), "zeros: the download is incomplete"),
        (gzip.compress(b"GGUF" * 9, mtime=0), "a gzip archive: unpack it"),
        (b"tjgg" + bytes(40), "GGML, the format before GGUF"),
    ],
)
def test_what_was_downloaded_in_place_of_a_model(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    refused(path, words)
    with pytest.raises(ModelFileError, match="expected a GGUF file, found"):
        quantize(path, tmp_path / "out.gguf", progress=False)


def test_a_zip_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.gguf", "w") as archive:
        archive.writestr("model.gguf", b"GGUF")
    refused(tmp_path / "m.gguf", "a zip archive")


def test_safetensors_as_a_model(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "a model", Shape(n_layers=1), seed=1)
    where = f"`pymixtral quantize '{tmp_path / 'a model'}' model.gguf`"
    refused(tmp_path / "a model" / "model.safetensors", "safetensors: make a GGUF file", where)


def test_directories_as_a_model(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(empty, "a directory: name a GGUF file")
    (empty / "b.gguf").touch()
    (empty / "a.gguf").touch()
    refused(empty, f"a directory: name a file in it, such as {empty / 'a.gguf'}")
    make_checkpoint(tmp_path / "hf", Shape(n_layers=1), seed=1)
    refused(tmp_path / "hf", "the directory of a checkpoint", f"`pymixtral quantize {tmp_path / 'hf'} model.gguf`")
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    refused(tmp_path / "lora", "a LoRA adapter", "as an adapter")
    write_safetensors(tmp_path / "lora" / "adapter_model.safetensors", {})
    refused(tmp_path / "lora" / "adapter_model.safetensors", "a LoRA adapter")
    write_safetensors(empty / "lora.safetensors", {})
    (empty / "params.json").write_text("{}")
    for path in empty.glob("*.gguf"):
        path.unlink()
    refused(empty, "a LoRA adapter")


@pytest.mark.parametrize("name", ["m.gguf-split-a", "m.gguf.part1of2", "m.gguf.split-01", "m.gguf-part-aa"])
def test_parts_of_a_file_that_was_cut(tmp_path: Path, tiny_q8_0: Path, name: str) -> None:
    content = tiny_q8_0.read_bytes()
    for part in (content[: len(content) // 2], content[len(content) // 2 :]):
        (tmp_path / name).write_bytes(part)
        refused(tmp_path / name, "join all its parts in order", "`cat m.gguf[.-]* > m.gguf`")


@pytest.mark.parametrize("name", ["m.gguf", "m-00001-of-00002.gguf", "part1.gguf", "m.gguf.part", "m-split.gguf"])
def test_other_names_are_no_parts(name: str) -> None:
    assert part_of(Path(name)) == ""


def test_names_cannot_smuggle_commands(tmp_path: Path) -> None:
    assert "`cat 'a; rm -rf x.gguf'[.-]* > 'a; rm -rf x.gguf'`" in part_of(tmp_path / "a; rm -rf x.gguf-split-a")
    (tmp_path / "params.json").touch()
    assert "'" in directory_instead(tmp_path) or ";" not in str(tmp_path)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"general.type": "adapter", "adapter.type": "lora"}, "a LoRA adapter"),
        ({"general.type": "mmproj"}, "a projector of images"),
        ({"general.type": "imatrix"}, "an importance matrix"),
    ],
)
def test_gguf_files_that_are_no_models(tmp_path: Path, tiny_q8_0: Path, keys: dict[str, str], words: str) -> None:
    refused(rewrite(tiny_q8_0, tmp_path / "m.gguf", keys=keys), words, error=UnsupportedError)


def test_keys_of_any_type_are_answered() -> None:
    for value in (np.array([1, 2]), ["adapter"], 7, None):
        assert gguf_instead({"general.type": value, "general.architecture": value}) == ""


def test_a_projector_without_a_type(tmp_path: Path) -> None:
    """As older ones are."""
    path = tmp_path / "mmproj.gguf"
    path.write_bytes(build([key("general.architecture", V.STRING, string("clip"))], []))
    refused(path, "a projector of images", error=UnsupportedError)


def test_pointers_in_a_checkpoint(tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json", "tokenizer.model"):
        make_checkpoint(tmp_path / name, Shape(n_layers=1), seed=1)
        (tmp_path / name / name).write_bytes(LFS)
        with pytest.raises(PymixtralError, match=rf"{name}: expected .*, found a pointer of git-lfs .*`git lfs pull`"):
            quantize(tmp_path / name, tmp_path / "m.gguf", progress=False)
    (tmp_path / "config.json" / "config.json").write_bytes(PAGE)
    with pytest.raises(PymixtralError, match="found a web page"):
        quantize(tmp_path / "config.json", tmp_path / "m.gguf", progress=False)


@pytest.mark.parametrize(
    "names", [("adapter_config.json", "adapter_model.safetensors"), ("params.json", "lora.safetensors")]
)
def test_an_adapter_as_a_checkpoint(tmp_path: Path, names: tuple[str, str]) -> None:
    (tmp_path / names[0]).write_text(json.dumps({"peft_type": "LORA"}))
    write_safetensors(tmp_path / names[1], {})
    with pytest.raises(UnsupportedError, match="found a LoRA adapter: merge it into its model"):
        quantize(tmp_path, tmp_path / "m.gguf", progress=False)


@given(st.binary(max_size=HEAD_BYTES))
def test_any_bytes_are_answered_in_one_line(head: bytes) -> None:
    assert "\n" not in found_instead(Path("m.gguf"), head)
