"""Which form an adapter has, what is none, and damage to any of them."""

from __future__ import annotations

import mmap
import os
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pymixtral import AdapterError, InvalidArgumentError, ModelFileError, NativeError
from pymixtral.adapters import gguf, gguf_writer, peft
from pymixtral.adapters.opening import open_adapter
from pymixtral.files import header
from pymixtral.files.identity import identity
from support.adapters import ADAPTERS, CONFIG, case_config, model_config
from support.ggufs import rewrite

CASE = case_config("v4-all")
FILES = ("adapter_config.json", "adapter_model.safetensors", "a.gguf")


def refused(path: Path, *words: str, error: Any = AdapterError) -> None:
    with pytest.raises(error) as caught:
        open_adapter(path, CASE)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), caught.value


def test_row_26_pickles_are_refused_with_the_way_to_convert(tmp_path: Path) -> None:
    folder = shutil.copytree(ADAPTERS / "v4-all", tmp_path / "a")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    for path in (folder, folder / "adapter_model.bin"):
        refused(path, "adapter_model.bin", "any code", "weights_only", "adapter_model.safetensors")


def test_row_26_places_that_hold_no_adapter(tmp_path: Path) -> None:
    refused(tmp_path, "found none of them")
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    refused(tmp_path, "name one of them", "a.gguf")
    (tmp_path / "lora.safetensors").symlink_to("/dev/zero")
    (tmp_path / "params.json").write_text('{"lora": {"rank": 3, "scaling": 2}}')
    refused(tmp_path, "lora.safetensors")
    for path in (ADAPTERS / "v4-all" / "adapter_config.json", ADAPTERS / "v4-all" / "adapter_model.safetensors"):
        refused(path, "name the folder")
    refused(tmp_path / "missing", "missing", "found none of this name")
    with pytest.raises(InvalidArgumentError):
        open_adapter(3, CASE)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_row_26_half_of_a_folder(tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(ADAPTERS / "v4-all", tmp_path / "a")
    (folder / name).unlink()
    refused(folder, f"expected {name}" if name.endswith("json") else f"{name}: expected it", "found none: download it")


def test_row_26_files_that_are_links_elsewhere_or_no_files(tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text('{"peft_type": "LORA"}')
    folder = shutil.copytree(ADAPTERS / "v4-all", tmp_path / "a")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        kept = (folder / name).read_bytes()
        (folder / name).unlink()
        (folder / name).symlink_to(secret)
        refused(folder, name, "outside its directory")
        (folder / name).unlink()
        os.mkfifo(folder / name)
        refused(folder, name, "not a regular one")
        (folder / name).unlink()
        (folder / name).write_bytes(kept)


def test_row_26_json_that_expands_in_memory(tmp_path: Path) -> None:
    folder = shutil.copytree(ADAPTERS / "v4-all", tmp_path / "a")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "x": [' + "[]," * 300_000 + "0]}")
    refused(folder, "values")


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", forbidden)  # root may read everything
    refused(tmp_path, str(tmp_path), "Permission denied", "permissions")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["written in place", "replaced", "removed"])
def test_a_file_that_changes_while_it_is_read(
    sound: Path, name: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read may be half of the old adapter, or its numbers with the settings of another."""
    folder = shutil.copytree(sound / "v4-all", tmp_path / "a")
    changed = folder / name

    reader, step = (gguf, "_pairs_of_tensors") if name == "a.gguf" else (peft, "paired")
    found = getattr(reader, step)

    def late(*of: Any) -> Any:
        data = changed.read_bytes()
        if how != "written in place":
            changed.unlink()
        if how != "removed":
            changed.write_bytes(data)
            os.utime(changed, ns=(1, 1))
        return found(*of)

    monkeypatch.setattr(reader, step, late)
    refused(changed if name == "a.gguf" else folder, name, "try again", error=(AdapterError, ModelFileError))


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "a.gguf"])
def test_row_26_a_file_that_is_shortened_while_it_is_read(
    sound: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where its pages were mapped, this would end the process."""
    folder = shutil.copytree(sound / "v4-all", tmp_path / "a")
    reader, step = (gguf, "_pairs_of_tensors") if name == "a.gguf" else (peft, "paired")
    found = getattr(reader, step)

    def late(*of: Any) -> Any:
        os.truncate(folder / name, 0)
        return found(*of)

    monkeypatch.setattr(reader, step, late)
    refused(folder / name if name == "a.gguf" else folder, name, "shortened while it was read")


def test_row_26_a_gguf_that_is_shortened_before_its_header_is_read(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copy(sound / "v4-all" / "a.gguf", tmp_path))

    def late(status: os.stat_result) -> Any:
        os.truncate(path, 100)
        return identity(status)

    monkeypatch.setattr(header, "identity", late)
    refused(path, "a.gguf", "found 84 left", error=ModelFileError)


def in_shards(sound: Path, folder: Path) -> list[Path]:
    rewrite(sound / "v4-all" / "a.gguf", folder / "a.gguf", shard_tensors=8)
    return sorted(folder.glob("*-of-*.gguf"))


def test_a_gguf_in_shards(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any of them opens it. None is mapped, as no single file is."""
    paths = in_shards(sound, tmp_path)
    assert len(paths) > 2
    monkeypatch.setattr(mmap, "mmap", type("NoMap", (), {}))
    whole = open_adapter(sound / "v4-all" / "a.gguf", CASE).pairs
    for path in paths:
        pairs = open_adapter(path, CASE).pairs
        assert pairs.keys() == whole.keys()
        assert all(np.array_equal(pairs[name].a, whole[name].a) for name in whole)
        assert all(np.array_equal(pairs[name].b, whole[name].b) for name in whole)


def test_a_shard_that_changes_while_it_is_read(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, *_, last = in_shards(sound, tmp_path)
    found = gguf._pairs_of_tensors

    def late(*of: Any) -> Any:
        os.utime(last, ns=(1, 1))
        return found(*of)

    monkeypatch.setattr(gguf, "_pairs_of_tensors", late)
    refused(first, last.name, "try again")


def test_a_gguf_with_a_type_that_ggml_has_retired(sound: Path, tmp_path: Path) -> None:
    content = (sound / "v4-all" / "a.gguf").read_bytes()
    at = content.index(b".lora_a") + len(b".lora_a")
    n_dims = int.from_bytes(content[at : at + 4], "little")
    at += 4 + 8 * n_dims
    (tmp_path / "a.gguf").write_bytes(content[:at] + (4).to_bytes(4, "little") + content[at + 4 :])
    refused(tmp_path / "a.gguf", "a.gguf", "Q4_2", "retired")


@pytest.mark.parametrize("name", ["v4-all", "v5-all", "v4-all/a.gguf"])
@pytest.mark.parametrize("how", ["overwritten", "shortened"])
def test_a_loaded_adapter_needs_no_file(sound: Path, name: str, how: str, tmp_path: Path) -> None:
    place = Path(shutil.copytree(sound, tmp_path / "all")) / name
    adapter = open_adapter(place, CASE)
    before = {str(name): (pair.a.tobytes(), pair.b.tobytes()) for name, pair in adapter.pairs.items()}
    for file in [place] if place.is_file() else list(place.iterdir()):
        if how == "shortened":
            os.truncate(file, 0)
        else:
            with file.open("r+b") as out:  # the same pages
                out.write(b"\xff" * file.stat().st_size)
    assert {str(name): (pair.a.tobytes(), pair.b.tobytes()) for name, pair in adapter.pairs.items()} == before
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(tmp_path) not in maps.read_text()


@pytest.mark.parametrize("name", ["v4-all", "v5-all/a.gguf"])
def test_too_little_memory(sound: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("pymixtral.adapters.peft.simple_pair", full)
    monkeypatch.setattr("pymixtral.adapters.gguf.scaled", full)
    with pytest.raises(NativeError, match="expected memory"):
        open_adapter(sound / name, CASE)


CHANGE = st.tuples(st.integers(0, 1 << 16), st.integers(0, 255))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter in both forms, and folders for what becomes of it."""
    place = tmp_path_factory.mktemp("fuzz")
    for case in ("v4-all", "v5-all"):
        folder = shutil.copytree(ADAPTERS / case, place / case)
        gguf_writer.write(open_adapter(folder, CASE), CASE, folder / "a.gguf", force=False)
        shutil.copytree(folder, place / f"{case}-damaged")
    return place


@pytest.mark.parametrize("case", ["v4-all", "v5-all"])
@pytest.mark.parametrize("name", FILES)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(CHANGE, max_size=4), cut=st.integers(0, 40), in_header=st.booleans())
def test_any_damage_is_refused_or_harmless(
    sound: Path, case: str, name: str, changes: list[tuple[int, int]], cut: int, in_header: bool
) -> None:
    """Bytes that differ, and a file that is shorter: one error, in no more memory than some of the file's size."""
    data = bytearray((sound / case / name).read_bytes())
    end = min(len(data), 4000) if in_header else len(data)
    for place, value in changes:
        data[place % end] = value
    damaged = sound / f"{case}-damaged"
    (damaged / name).write_bytes(data[: len(data) - cut] if cut < 20 else data)
    path = damaged / name if name == "a.gguf" else damaged
    message = ""
    tracemalloc.start()
    try:
        open_adapter(path, CASE).check(CASE)
    except (AdapterError, ModelFileError) as error:
        message = str(error)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        shutil.copy(sound / case / name, damaged / name)
    assert "\n" not in message
    assert peak < 1_000_000 + 30 * len(data)


def test_another_model_is_refused_before_numbers_are_read() -> None:
    for case in ("v4-all", "v5-all"):
        with pytest.raises(AdapterError, match="own base model"):
            open_adapter(ADAPTERS / case, model_config(CONFIG | {"hidden_size": 32}))
