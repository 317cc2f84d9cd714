"""Layouts of files: experts merged and split, shards and one file, back to the same bytes."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from gguf import GGMLQuantizationType, GGUFReader

from pymixtral import Mixtral
from pymixtral.cli import main
from pymixtral.errors import (
    InvalidArgumentError,
    ModelConfigError,
    ModelFileError,
    OutputError,
    PymixtralError,
    UnsupportedError,
)
from pymixtral.files import rewriting
from pymixtral.files.gguf import GGUFFile
from pymixtral.files.layout import convert_layout
from support.gguf_bytes import F32, Q8_0, build, key, string, tensor
from support.ggufs import rewrite

PROMPT = "Once upon a time there was a king"


def convert(source: Path, dest: Path, **options: Any) -> list[Path]:
    return convert_layout(source, dest, progress=False, **options)


def contents(path: Path) -> dict[str, tuple[Any, ...]]:
    """Every tensor as the gguf package reads it."""
    return {t.name: (t.tensor_type, t.shape.tolist(), t.data.tobytes()) for t in GGUFReader(path).tensors}


def metadata(path: Path) -> dict[str, Any]:
    fields = GGUFReader(path).fields.items()
    return {name: (field.types, field.contents()) for name, field in fields if not name.startswith("GGUF.")}


def test_merged_to_split_and_back(tiny_q8_0: Path, tmp_path: Path) -> None:
    split = tmp_path / "split.gguf"
    assert convert(tiny_q8_0, split, layout="split") == [split]
    assert contents(split) == contents(rewrite(tiny_q8_0, tmp_path / "expected.gguf", split=True))
    assert metadata(split) == metadata(tiny_q8_0)
    assert len(contents(split)) == 3 + 4 * (7 + 3 * 8)
    convert(split, tmp_path / "again.gguf", layout="split")
    assert (tmp_path / "again.gguf").read_bytes() == split.read_bytes()
    convert(split, tmp_path / "merged.gguf", layout="merged")
    convert(tmp_path / "merged.gguf", tmp_path / "merged again.gguf", layout="merged")
    copy = tmp_path / "copy.gguf"
    convert(tiny_q8_0, copy)
    for path in (tmp_path / "merged.gguf", tmp_path / "merged again.gguf", copy):
        assert path.read_bytes() == tiny_q8_0.read_bytes()  # the quantizer's own file, to the bit


def test_fused_experts_become_those_of_other_files(tiny_q8_0: Path, tmp_path: Path) -> None:
    fused = rewrite(tiny_q8_0, tmp_path / "fused.gguf", fused=True)
    assert "blk.3.ffn_gate_up_exps.weight" in contents(fused)
    convert(fused, tmp_path / "kept.gguf")
    assert contents(tmp_path / "kept.gguf") == contents(fused)
    convert(fused, tmp_path / "merged.gguf", layout="merged")
    assert contents(tmp_path / "merged.gguf") == contents(tiny_q8_0)
    convert(fused, tmp_path / "split.gguf", layout="split")
    assert contents(tmp_path / "split.gguf") == contents(rewrite(tiny_q8_0, tmp_path / "expected.gguf", split=True))
    with Mixtral(tiny_q8_0) as one, Mixtral(fused) as other:
        assert one.generate(PROMPT, temperature=0, max_tokens=9).text == (
            other.generate(PROMPT, temperature=0, max_tokens=9).text
        )


def test_fused_experts_that_make_no_sense(tmp_path: Path) -> None:
    def refused(*tensors: bytes, words: str) -> None:
        (tmp_path / "m.gguf").write_bytes(build([], list(tensors), bytes(4096)))
        with pytest.raises(ModelConfigError, match=words):
            convert(tmp_path / "m.gguf", tmp_path / "out.gguf", layout="merged")

    both, gate = "blk.0.ffn_gate_up_exps.weight", "blk.0.ffn_gate_exps.weight"
    refused(tensor(both, [4, 3, 2], F32, 0), words="of which the second is even, found the shape")
    refused(tensor(both, [4, 4], F32, 0), words="expected three dimensions")
    refused(tensor(both, [4, 4, 2], F32, 0), tensor(gate, [4, 2, 2], F32, 128), words=f"'{gate}': expected it once")


def test_one_file_to_shards_and_back(tiny_q8_0: Path, tmp_path: Path) -> None:
    limit = 4_000_000
    paths = convert(tiny_q8_0, tmp_path / "t.gguf", max_shard_bytes=limit)
    assert len(paths) > 2
    assert [path.name for path in paths] == [f"t-{i + 1:05}-of-{len(paths):05}.gguf" for i in range(len(paths))]
    assert sorted(tmp_path.iterdir()) == paths
    assert all(sum(len(data) for _, _, data in contents(path).values()) <= limit for path in paths)
    for i, path in enumerate(paths):
        values = {name: value for name, (_, value) in metadata(path).items() if name.startswith("split.")}
        assert values == {"split.no": i, "split.count": len(paths), "split.tensors.count": 43}
        assert ("tokenizer.ggml.tokens" in metadata(path)) == (i == 0)
    whole = tmp_path / "whole.gguf"
    assert convert(paths[1], whole) == [whole]
    assert whole.read_bytes() == tiny_q8_0.read_bytes()
    split = convert(paths[0], tmp_path / "split.gguf", layout="split", max_shard_bytes=limit)
    convert(split[-1], tmp_path / "merged.gguf", layout="merged")
    assert (tmp_path / "merged.gguf").read_bytes() == tiny_q8_0.read_bytes()


def test_shards_of_the_gguf_package_become_one_file(tiny_q8_0: Path, tmp_path: Path) -> None:
    first = rewrite(tiny_q8_0, tmp_path / "s.gguf", shard_tensors=15)
    convert(first, tmp_path / "whole.gguf")
    assert contents(tmp_path / "whole.gguf") == contents(tiny_q8_0)
    with Mixtral(tiny_q8_0) as a, Mixtral(tmp_path / "whole.gguf") as b:
        ids = a.tokenize(PROMPT)
        assert np.array_equal(a.logits(ids), b.logits(ids))


def test_a_shard_has_at_least_one_tensor_and_one_shard_is_one_file(tiny_q8_0: Path, tmp_path: Path) -> None:
    assert len(convert(tiny_q8_0, tmp_path / "t.gguf", max_shard_bytes=1)) == 43
    assert convert(tiny_q8_0, tmp_path / "one.gguf", max_shard_bytes=10**9) == [tmp_path / "one.gguf"]
    assert (tmp_path / "one.gguf").read_bytes() == tiny_q8_0.read_bytes()


@pytest.mark.parametrize("alignment", [8, 32, 64, 4096])
def test_the_alignment_is_kept(tmp_path: Path, alignment: int) -> None:
    source = tmp_path / "m.gguf"
    first = -(-3 * 2 * 34 // alignment) * alignment
    keys = [key("general.alignment", 4, alignment.to_bytes(4, "little")), key("x", 8, string("y"))]
    infos = [tensor("blk.0.ffn_gate_exps.weight", [32, 2, 3], Q8_0, 0), tensor("norm", [5], F32, first)]
    data = bytes(range(204)) + bytes(first - 204) + bytes(20)
    source.write_bytes(build(keys, infos, data, alignment=alignment))
    paths = convert(source, tmp_path / "s.gguf", layout="split", max_shard_bytes=100)
    for path in paths:
        assert GGUFFile(path).alignment == alignment
    with GGUFFile(paths[0]) as file:
        found = [file.tensors[f"blk.0.ffn_gate.{e}.weight"].data.tobytes() for e in range(3)]
        assert found == [bytes(range(68)), bytes(range(68, 136)), bytes(range(136, 204))]
    convert(paths[2], tmp_path / "back.gguf", layout="merged")
    assert (tmp_path / "back.gguf").read_bytes()[: source.stat().st_size] == source.read_bytes()


# --- What is refused ------------------------------------------------------------------------------


def experts(*parts: tuple[str, list[int], int]) -> bytes:
    infos, offset = [], 0
    for name, dims, kind in parts:
        infos.append(tensor(f"blk.0.ffn_{name}.weight", dims, kind, offset))
        offset += 256
    return build([], infos, bytes(offset))


@pytest.mark.parametrize(
    ("to", "content", "error", "words"),
    [
        (
            "merged",
            experts(("up.0", [32], F32), ("up.1", [32], Q8_0)),
            UnsupportedError,
            ("'blk.0.ffn_up.1.weight'", "F32", "found Q8_0"),
        ),
        (
            "merged",
            experts(("up.0", [32], F32), ("up.1", [64], F32)),
            ModelConfigError,
            ("ffn_up.1", "[32]", "found [64]"),
        ),
        (
            "merged",
            experts(("up.0", [32], F32), ("up.2", [32], F32)),
            ModelConfigError,
            ("'blk.0.ffn_up.1.weight' is missing",),
        ),
        ("merged", experts(("up.1", [32], F32)), ModelConfigError, ("'blk.0.ffn_up.0.weight' is missing",)),
        (
            "merged",
            experts(("up.0", [32], F32), ("up_exps", [32], F32)),
            ModelConfigError,
            ("ffn_up_exps", "found both"),
        ),
        (
            "split",
            experts(("up.0", [32], F32), ("up_exps", [32, 1, 1], F32)),
            ModelConfigError,
            ("ffn_up.0", "found both"),
        ),
        ("split", experts(("up_exps", [32, 1], F32)), ModelConfigError, ("ffn_up_exps", "three dimensions", "[1, 32]")),
    ],
)
def test_experts_that_cannot_be_converted_are_named(
    tmp_path: Path, to: str, content: bytes, error: type[PymixtralError], words: tuple[str, ...]
) -> None:
    source = tmp_path / "m.gguf"
    source.write_bytes(content)
    with pytest.raises(error) as caught:
        convert(source, tmp_path / "out.gguf", layout=to)
    assert str(caught.value).startswith(str(source))
    for word in words:
        assert word in str(caught.value)
    assert list(tmp_path.iterdir()) == [source]


def test_a_file_that_could_not_be_opened_is_not_written(tmp_path: Path) -> None:
    source, out = tmp_path / "m.gguf", tmp_path / "out.gguf"
    source.write_bytes(build([], [tensor("blk.0.ffn_up_exps.weight", [1, 1, 70_000], F32, 0)], bytes(280_000)))
    with pytest.raises(
        InvalidArgumentError, match="experts that make a file of at most 65536 tensors, found some 70001"
    ):
        convert(source, out, layout="split")
    # The name of expert 10000 is longer than that of all.
    long = "blk." + "1" * 39 + ".ffn_up_exps.weight"
    assert len(long) == 62
    source.write_bytes(build([], [tensor(long, [1, 1, 10_001], F32, 0)], bytes(40_032)))
    convert(source, out, layout="split")
    out.unlink()
    source.write_bytes(build([], [tensor(long.replace(".f", "1.f"), [1, 1, 10_001], F32, 0)], bytes(40_032)))
    with pytest.raises(
        OutputError,
        match=r"out\.gguf: expected to write a file that can be read again.*: name of tensor 10000 .*found 64",
    ):
        convert(source, out, layout="split")
    assert list(tmp_path.iterdir()) == [source]


def test_split_experts_of_two_types_keep_them(tiny_q8_0: Path, tmp_path: Path) -> None:
    source = rewrite(tiny_q8_0, tmp_path / "m.gguf", split=True)
    mixed = rewrite(source, tmp_path / "mixed.gguf", types={"ffn_up.3.": GGMLQuantizationType.F16})
    convert(mixed, tmp_path / "copy.gguf", layout="split")
    assert contents(tmp_path / "copy.gguf") == contents(mixed)
    with pytest.raises(UnsupportedError, match=r"'blk\.0\.ffn_up\.3\.weight': expected Q8_0.*found F16"):
        convert(mixed, tmp_path / "merged.gguf", layout="merged")
    with Mixtral(mixed) as model:
        assert model.generate(PROMPT, max_tokens=4, temperature=0).tokens


def test_row_18_destinations(tiny_q8_0: Path, tmp_path: Path) -> None:
    source = tmp_path / "m.gguf"
    shutil.copy(tiny_q8_0, source)
    (tmp_path / "link.gguf").symlink_to(source)
    os.link(source, tmp_path / "hard.gguf")
    for name, word in {
        "m.gguf": "read or written otherwise",
        "link.gguf": "read or written otherwise",
        "hard.gguf": "read or written otherwise",
        "no/m.gguf": "create .*no first",
        "": "found a directory",
    }.items():
        with pytest.raises(OutputError, match=word):
            convert(source, tmp_path / name, force=True)
    assert source.read_bytes() == tiny_q8_0.read_bytes()
    shards = convert(source, tmp_path / "s.gguf", max_shard_bytes=10**7)
    with pytest.raises(OutputError, match=r"s-00001-of-0000\d\.gguf: expected a new file.*force=True"):
        convert(source, tmp_path / "s.gguf", max_shard_bytes=10**7)
    with pytest.raises(OutputError, match="read or written otherwise"):
        convert(shards[1], tmp_path / "s.gguf", max_shard_bytes=10**7, force=True)
    with pytest.raises(InvalidArgumentError, match=r"ends in \.gguf"):
        convert(source, tmp_path / "s", max_shard_bytes=10**7)
    (tmp_path / "old.gguf").write_bytes(b"old")
    convert(source, tmp_path / "old.gguf", force=True)
    assert (tmp_path / "old.gguf").read_bytes() == tiny_q8_0.read_bytes()


@pytest.mark.parametrize("n", [0, -1, True, 1.5, "1G"])
def test_sizes_of_shards_that_make_no_sense(tiny_q8_0: Path, tmp_path: Path, n: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="max_shard_bytes"):
        convert(tiny_q8_0, tmp_path / "s.gguf", max_shard_bytes=n)
    with pytest.raises(InvalidArgumentError, match="merged or split"):
        convert(tiny_q8_0, tmp_path / "s.gguf", layout=n)


def test_row_19_a_full_disk_leaves_nothing(tiny_q8_0: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = rewriting._data

    def full(*arguments: Any) -> Any:
        yield from list(real(*arguments))[:3]
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(rewriting, "_data", full)
    for size in (None, 10**7):
        with pytest.raises(OutputError, match=r"found an error \(No space left"):
            convert(tiny_q8_0, tmp_path / "out.gguf", max_shard_bytes=size)
        assert not list(tmp_path.iterdir())


def test_row_19_a_source_that_is_overwritten_meanwhile_is_refused(
    tiny_q8_0: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source.gguf"
    content = tiny_q8_0.read_bytes()
    source.write_bytes(content)
    real = rewriting._data

    def overwritten(*arguments: Any) -> Any:
        source.write_bytes(content[:-4096] + bytes(4096))
        yield from real(*arguments)

    monkeypatch.setattr(rewriting, "_data", overwritten)
    with pytest.raises(
        ModelFileError, match=r"source\.gguf: expected a file that stays as it is .* found that it was changed"
    ):
        convert(source, tmp_path / "out.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["source.gguf"]


def test_the_command(tiny_q8_0: Path, tmp_path: Path) -> None:
    def run(*arguments: object) -> Any:
        return CliRunner().invoke(main, ["convert-layout", *map(str, arguments)], prog_name="pymixtral")

    out = tmp_path / "out.gguf"
    result = run(tiny_q8_0, out, "--layout", "split")
    assert (result.exit_code, result.stdout) == (0, f"{out}\n")
    assert "blk.0.ffn_up.7.weight" in contents(out)
    result = run(out, tmp_path / "s.gguf", "--layout", "merged", "--max-shard-size", "10M")
    assert result.exit_code == 0
    first = Path(result.stdout.splitlines()[0])
    assert run(first, out, "--force").exit_code == 0
    assert out.read_bytes() == tiny_q8_0.read_bytes()
    for wrong in (["--max-shard-size", "0"], ["--max-shard-size", "1.5G"], ["--layout", "flat"], []):
        result = run(tiny_q8_0, out, *wrong)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("value", [3, np.zeros(2), "x\n" * 500, b"merged"])
def test_arguments_of_any_type_are_refused_in_one_line(tiny_q8_0: Path, tmp_path: Path, value: Any) -> None:
    calls: list[tuple[Any, Any, dict[str, Any]]] = [(tiny_q8_0, tmp_path / "a.gguf", {"layout": value})]
    if not isinstance(value, int):
        calls.append((tiny_q8_0, tmp_path / "a.gguf", {"max_shard_bytes": value}))
    if not isinstance(value, str):
        calls += [(value, tmp_path / "a.gguf", {}), (tiny_q8_0, value, {})]
    for source, dest, options in calls:
        with pytest.raises(InvalidArgumentError) as caught:
            convert_layout(source, dest, progress=False, **options)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "a\nb", "a\u2028b"])
def test_a_source_that_cannot_be_is_named_in_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelFileError, match="expected a file that can be opened") as caught:
        convert_layout(tmp_path / name, tmp_path / "a.gguf", progress=False)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300
