"""GGUF files as sources of the quantizer: what is kept, what is dequantized, and what is broken."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from pymixtral.errors import CheckpointError, ModelConfigError, ModelFileError, OutputError, UnsupportedError
from pymixtral.files.gguf import GGUFFile
from pymixtral.quantize import quantize
from support.ggufs import contents, damaged, rewrite


def test_metadata_of_a_gguf_source_is_kept(tmp_path: Path, tiny_f16: Path) -> None:
    keys = {
        "general.name": "a name",
        "llama.rope.freq_base": 12345.0,
        "general.author": "someone",
        "quantize.imatrix.file": "x.dat",
    }
    source = rewrite(tiny_f16, tmp_path / "source.gguf", keys=keys)
    quantize(source, tmp_path / "m.gguf", "q8_0", progress=False)
    with GGUFFile(source) as before, GGUFFile(tmp_path / "m.gguf") as after:
        changed = {key for key in before.encoded if before.encoded[key] != after.encoded.get(key)}
        assert changed == {"general.file_type", "quantize.imatrix.file"}
        assert after.metadata["general.file_type"] == 7
        assert after.metadata["general.author"] == "someone"
        assert before.encoded.keys() - after.encoded.keys() == {"quantize.imatrix.file"}


def test_quantized_source_is_warned_of(tmp_path: Path, tiny_q8_0: Path, capfd: pytest.CaptureFixture[str]) -> None:
    report = quantize(tiny_q8_0, tmp_path / "m.gguf", "q4_0")
    assert any("quantized already (30 q8_0)" in note for note in report.notes)
    assert "warning: the source is quantized already" in capfd.readouterr().err


def test_quantized_source_is_dequantized_as_the_gguf_package_does(tmp_path: Path, tiny_q8_0: Path) -> None:
    quantize(tiny_q8_0, tmp_path / "m.gguf", "f32", progress=False)
    source = rewrite(tiny_q8_0, tmp_path / "f32.gguf", types={"": GGMLQuantizationType.F32})
    assert contents(tmp_path / "m.gguf") == contents(source)


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_tensors_that_stay_in_their_type_are_copied(
    tmp_path: Path, tiny_q8_0: Path, tiny_q4_0: Path, kind: str
) -> None:
    source = {"q8_0": tiny_q8_0, "q4_0": tiny_q4_0}[kind]
    quantize(source, tmp_path / "m.gguf", kind, progress=False)
    assert contents(tmp_path / "m.gguf") == contents(source)


def test_row_20_a_damaged_scale_is_refused(tmp_path: Path, tiny_q8_0: Path) -> None:
    path = Path(shutil.copy(tiny_q8_0, tmp_path / "source.gguf"))
    with GGUFFile(path) as file:
        data = file.tensors["blk.2.ffn_up_exps.weight"].data
        offset = path.read_bytes().index(data.tobytes())
    with path.open("r+b") as raw:
        raw.seek(offset + 34 * 7)
        raw.write(b"\0\x7e")  # NaN in f16
    for kind in ("q8_0", "q4_0"):
        with pytest.raises(CheckpointError, match=r"blk\.2\.ffn_up_exps\.weight\[0\]: .*found NaN"):
            quantize(path, tmp_path / "m.gguf", kind, progress=False)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["source.gguf"]


@pytest.mark.parametrize("scale", [b"\0\x7e", b"\0\x7c", b"\0\xfc"])
def test_row_20_a_block_with_a_damaged_scale_is_0_when_asked_for(tmp_path: Path, tiny_q8_0: Path, scale: bytes) -> None:
    name = "blk.2.ffn_up_exps.weight"
    path = damaged(tiny_q8_0, tmp_path / "source.gguf", name, 34 * 7, scale)
    for kind in ("q8_0", "f32"):
        report = quantize(path, tmp_path / "m.gguf", kind, zero_nonfinite=True, force=True, progress=False)
        assert {tensor.name: tensor.n_zeroed for tensor in report.tensors if tensor.n_zeroed} == {name: 32}
        with GGUFFile(tiny_q8_0) as before, GGUFFile(tmp_path / "m.gguf") as after:
            expected, found = (
                quants.dequantize(file.tensors[name].data, file.tensors[name].type) for file in (before, after)
            )
        expected.reshape(-1)[32 * 7 : 32 * 8] = 0
        np.testing.assert_array_equal(found, expected)


def test_row_18_a_gguf_source_is_not_overwritten(tmp_path: Path, tiny_f16: Path) -> None:
    source = rewrite(tiny_f16, tmp_path / "m.gguf", shard_tensors=20)
    for path in sorted(tmp_path.glob("*.gguf")):
        with pytest.raises(OutputError, match="found one that is read"):
            quantize(source, path, force=True, progress=False)


def test_gguf_source_that_is_broken_or_another_model(tmp_path: Path, tiny_f16: Path) -> None:
    def refused(error: type[Exception], source: Path, word: str) -> None:
        with pytest.raises(error, match=word):
            quantize(source, tmp_path / "m.gguf", progress=False)

    (tmp_path / "cut.gguf").write_bytes(tiny_f16.read_bytes()[:-1])
    refused(ModelFileError, tmp_path / "cut.gguf", "truncated")
    refused(
        ModelConfigError,
        rewrite(tiny_f16, tmp_path / "a.gguf", without=("blk.1.attn_q.weight",)),
        r"blk\.1\.attn_q\.weight",
    )
    refused(
        UnsupportedError,
        rewrite(tiny_f16, tmp_path / "b.gguf", keys={"llama.rope.scaling.type": "longrope"}),
        "longrope",
    )
    (tmp_path / "c.gguf").write_bytes(b"some text, not a model")
    refused(ModelFileError, tmp_path / "c.gguf", "not a GGUF file")
