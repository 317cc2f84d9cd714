"""The command: its options, its help, and that errors leave it as exceptions of pymixtral."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from gguf import GGMLQuantizationType
from pymixtral.quantize.cli import quantize
from pymixtral.quantize.recipe import TYPES

from pymixtral.errors import InvalidArgumentError
from pymixtral.gguf import GGUFFile


def test_default_type_is_q8_0(tiny_checkpoint: Path, tiny_q8_0: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    result = CliRunner().invoke(quantize, [str(tiny_checkpoint), str(path)], catch_exceptions=False)
    assert result.exit_code == 0
    assert path.read_bytes() == tiny_q8_0.read_bytes()
    assert "bits per weight" in result.stdout
    assert result.stderr == ""


@pytest.mark.parametrize("kind", TYPES)
def test_type_and_threads(tiny_checkpoint: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "tiny.gguf"
    result = CliRunner().invoke(quantize, [str(tiny_checkpoint), str(path), "--type", kind, "-t", "1"], catch_exceptions=False)
    assert result.exit_code == 0
    with GGUFFile(path) as file:
        assert file.tensors["output.weight"].type == GGMLQuantizationType(TYPES[kind])


def test_force_replaces(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"old")
    with pytest.raises(InvalidArgumentError, match="--force"):
        CliRunner().invoke(quantize, [str(tiny_checkpoint), str(path)], catch_exceptions=False)
    assert path.read_bytes() == b"old"
    assert CliRunner().invoke(quantize, [str(tiny_checkpoint), str(path), "--force"], catch_exceptions=False).exit_code == 0
    assert path.stat().st_size > 1_000_000


@pytest.mark.parametrize("arguments", [[], ["a"], ["a", "b", "--type", "q4"], ["a", "b", "-t", "0"], ["a", "b", "--what"]])
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


def test_help_shows_examples_line_by_line() -> None:
    text = CliRunner().invoke(quantize, ["--help"]).stdout
    assert "--type [f32|bf16|f16|q8_0|q5_0|q5_1|" in text
    assert "\n  pymixtral quantize Mixtral-8x7B-v0.1 mixtral-q8_0.gguf\n" in text or "\n    pymixtral quantize Mixtral" in text


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
