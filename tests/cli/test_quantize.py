"""The command: its options, its help, and that errors leave it as exceptions of pymixtral."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from gguf import GGMLQuantizationType

from pymixtral.cli.quantize import quantize
from pymixtral.errors import CheckpointError, OutputError, UnsupportedError
from pymixtral.files.gguf import GGUFFile
from pymixtral.quantize.recipe import TENSOR_TYPES
from support.checkpoints import ONE_TYPE, Shape, make_checkpoint, make_tensors, write_safetensors
from support.packed import Form, make_packed


def run(*arguments: object) -> Result:
    return CliRunner().invoke(quantize, list(map(str, arguments)), catch_exceptions=False)


def test_default_type_is_q8_0(tiny_checkpoint: Path, tiny_q8_0: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    result = CliRunner().invoke(quantize, [str(tiny_checkpoint), str(path)], catch_exceptions=False)
    assert result.exit_code == 0
    assert path.read_bytes() == tiny_q8_0.read_bytes()
    assert "bits per weight" in result.stdout
    assert result.stderr == ""


@pytest.mark.parametrize(("form", "method"), [(Form(32, 1), "GPTQ"), (Form(32), "AWQ")])
def test_a_packed_checkpoint_is_q4_1_and_the_rounding_is_told(tmp_path: Path, form: Form, method: str) -> None:
    make_packed(tmp_path, Shape(n_vocab=64), form)
    result = run(tmp_path, tmp_path / "m.gguf")
    assert result.exit_code == 0
    assert f"warning: the source is quantized already (32 matrices by {method}, in groups of 32)" in result.stderr
    told = rf"note: the codes of {method} are kept, and .* changed by 0\.04\d+% at most by rounding to f16"
    assert re.search(told, " ".join(result.stdout.split()))


@pytest.mark.parametrize("kind", ONE_TYPE)
def test_type_and_threads(tiny_checkpoint: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "tiny.gguf"
    result = CliRunner().invoke(
        quantize, [str(tiny_checkpoint), str(path), "--type", kind, "-t", "1"], catch_exceptions=False
    )
    assert result.exit_code == 0
    with GGUFFile(path) as file:
        assert file.tensors["output.weight"].type == GGMLQuantizationType(TENSOR_TYPES[kind])


def test_force_replaces(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"old")
    with pytest.raises(OutputError, match="force=True"):
        CliRunner().invoke(quantize, [str(tiny_checkpoint), str(path)], catch_exceptions=False)
    assert path.read_bytes() == b"old"
    assert (
        CliRunner().invoke(quantize, [str(tiny_checkpoint), str(path), "--force"], catch_exceptions=False).exit_code
        == 0
    )
    assert path.stat().st_size > 1_000_000


@pytest.mark.parametrize(
    "arguments", [[], ["a"], ["a", "b", "--type", "q4"], ["a", "b", "-t", "0"], ["a", "b", "--what"]]
)
def test_wrong_usage_exits_2(arguments: list[str]) -> None:
    result = CliRunner().invoke(quantize, arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_report_and_heat_map_are_written(tiny_checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = [str(tmp_path / name) for name in ("m.gguf", "r.json", "h.png")]
    arguments = [str(tiny_checkpoint), files[0], "--type", "q4_k_m", "--report", files[1], "--heatmap", files[2]]
    assert CliRunner().invoke(quantize, arguments, catch_exceptions=False).exit_code == 0
    assert json.loads(Path(files[1]).read_text())["type"] == "q4_k_m"
    assert Path(files[2]).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("option", ["--report", "--heatmap"])
def test_row_18_a_report_overwrites_nothing_that_is_used(tiny_checkpoint: Path, tmp_path: Path, option: str) -> None:
    """And says so before anything is encoded."""
    pytest.importorskip("matplotlib")
    source, dest, matrix, old = tmp_path / "hf", tmp_path / "m.gguf", tmp_path / "i.gguf", tmp_path / "old"
    shutil.copytree(tiny_checkpoint, source)
    matrix.write_bytes(b"importance")
    old.write_bytes(b"old")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    cases = {
        dest: "read or written",
        matrix: "read or written",
        source / "config.json": "read or written",
        source / "model.safetensors": "read or written",
        tmp_path / "missing" / "x": "create",
    }
    for path, words in cases.items():
        with pytest.raises(OutputError, match=words):
            run(source, dest, "--imatrix", matrix, "--force", option, path)
    with pytest.raises(OutputError, match="force=True"):
        run(source, dest, option, old)
    other = {"--report": "--heatmap", "--heatmap": "--report"}[option]
    with pytest.raises(OutputError, match="read or written"):
        run(source, dest, option, tmp_path / "x", other, tmp_path / "x")
    with pytest.raises(OutputError, match="read or written"):
        run(source, matrix, "--imatrix", matrix, "--force")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_heat_map_of_a_dense_model_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "hf", Shape(n_experts=0, n_vocab=64), seed=1)
    with pytest.raises(UnsupportedError, match="dense"):
        run(tmp_path / "hf", tmp_path / "m.gguf", "--heatmap", tmp_path / "h.png")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_report_that_fails_leaves_the_model_and_no_part_of_itself(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, *_: object, **__: object) -> None:
        path.write_bytes(b"{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    result = CliRunner().invoke(
        quantize, [str(tiny_checkpoint), str(tmp_path / "m.gguf"), "--report", str(tmp_path / "r.json")]
    )
    assert isinstance(result.exception, OSError)
    assert "bits per weight" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_row_20_non_finite_weights(tmp_path: Path) -> None:
    shape = Shape(n_layers=1, n_vocab=64)
    make_checkpoint(tmp_path / "hf", shape, seed=4)
    tensors = make_tensors(shape, seed=4)
    tensors["model.norm.weight"][7] = float("nan")
    write_safetensors(tmp_path / "hf" / "model.safetensors", tensors)
    arguments = [tmp_path / "hf", tmp_path / "m.gguf", "--report", tmp_path / "r.json"]
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight: .*found NaN .* zero_nonfinite=True"):
        run(*arguments)
    assert "1 of model.norm.weight" in run(*arguments, "--zero-nonfinite").stdout
    counts = {tensor["name"]: tensor["n_zeroed"] for tensor in json.loads((tmp_path / "r.json").read_text())["tensors"]}
    assert {name: n for name, n in counts.items() if n} == {"output_norm.weight": 1}


@pytest.mark.parametrize("option", ["--report", "--heatmap"])
def test_a_dry_run_has_no_report(tiny_checkpoint: Path, tmp_path: Path, option: str) -> None:
    result = CliRunner().invoke(quantize, [str(tiny_checkpoint), "--dry-run", option, str(tmp_path / "x")])
    assert (result.exit_code, "without --dry-run" in result.stderr) == (2, True)


def test_a_dry_run_looks_at_dest(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"old")
    for dest in (tmp_path / "m.gguf", tiny_checkpoint / "config.json", tmp_path / "missing" / "m.gguf"):
        with pytest.raises(OutputError):
            run(tiny_checkpoint, dest, "--dry-run")
    result = run(tiny_checkpoint, tmp_path / "m.gguf", "--dry-run", "--force")
    assert "q8_0" in result.stdout
    assert (tmp_path / "m.gguf").read_bytes() == b"old"


def test_help_shows_examples_line_by_line() -> None:
    text = CliRunner().invoke(quantize, ["--help"]).stdout
    assert "Examples:\n    pymixtral quantize Mixtral-8x7B-v0.1 mixtral-q8_0.gguf\n    pymixtral quantize" in text
    assert "--type q4_k_m \\\n      --imatrix imatrix.gguf\n" in text
    told = r"--type TYPE .*fewest f32,\s+bf16,.*q3_k,.*\s+iq2_xs,\s+iq2_xxs\.\s+\[default:\s+q8_0;\s+q4_1\s+of"
    assert re.search(told, text, re.DOTALL)
    assert max(map(len, text.splitlines())) <= 80


def test_ctrl_c_exits_130_and_leaves_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pymixtral import ops; from pymixtral.cli import main\n"
        "encode, calls = ops.encode, []\n"
        "def interrupted(*arguments):\n"
        "    calls.append(os.listdir(os.path.dirname(sys.argv[-1])))\n"
        "    if len(calls) == 7: print(len(calls[-1]), flush=True); os.kill(os.getpid(), signal.SIGINT)\n"
        "    return encode(*arguments)\n"
        "ops.encode = interrupted\n"
        "main()\n"
    )
    arguments = [sys.executable, "-c", code, "quantize", str(tiny_checkpoint), str(tmp_path / "m.gguf")]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert result.returncode == 130
    assert result.stdout == "1\n"  # there was a temporary file
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []
