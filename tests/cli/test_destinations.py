"""Files that commands write: what appears under their names meanwhile is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from pymixtral.cli import main
from pymixtral.files import atomic
from support.adapters import ADAPTERS, adapter_base
from support.checkpoints import Shape, make_checkpoint

TEXT = "Once upon a time there was a king who had three daughters. " * 4


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["quantize", "{hf}", "{new}/m.gguf", "--type", "f16"], "m.gguf"),
        (["quantize", "{hf}", "{new}/m.gguf", "--type", "f16", "--report", "{new}/r.json"], "r.json"),
        (["quantize", "{hf}", "{new}/m.gguf", "--type", "f16", "--heatmap", "{new}/h.png"], "h.png"),
        (["convert-layout", "{model}", "{new}/m.gguf", "--layout", "split"], "m.gguf"),
        (["convert-layout", "{model}", "{new}/m.gguf", "--max-shard-size", "10M"], "m-00002-of-00002.gguf"),
        (["convert-adapter", f"{ADAPTERS}/v4-all", "{new}/a.gguf", "--base", "{base}"], "a.gguf"),
        (["prune", "{model}", "{new}/m.gguf", "--experts", "6", "--criterion", "random"], "m.gguf"),
        (["perplexity", "-m", "{model}", "-f", "{text}", "-c", "32", "--save-base", "{new}/b"], "b"),
        (["routing", "-m", "{model}", "-f", "{text}", "--trace", "{new}/t.npz"], "t.npz"),
        (["routing", "-m", "{model}", "-f", "{text}", "--html", "{new}/r.html"], "r.html"),
        (["routing", "-m", "{model}", "-f", "{text}", "--png", "{new}/r.png"], "r.png"),
    ],
)
def test_row_18_a_destination_that_appears_meanwhile_is_kept(
    tiny_q8_0: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], name: str
) -> None:
    if {"--heatmap", "--png"} & {*arguments}:
        pytest.importorskip("matplotlib")
    make_checkpoint(tmp_path / "hf", Shape(n_layers=1), seed=4)
    (tmp_path / "text").write_text(TEXT)
    new = tmp_path / "new"
    new.mkdir()
    places = {"hf": tmp_path / "hf", "new": new, "model": tiny_q8_0, "text": tmp_path / "text"}
    places["base"] = adapter_base(tmp_path / "base")
    genuine = atomic._locked

    def locked(directory: Path) -> tuple[Path, int]:  # after everything was checked, before anything is written
        (new / name).write_bytes(b"theirs")
        return genuine(directory)

    monkeypatch.setattr(atomic, "_locked", locked)
    result = CliRunner().invoke(main, [argument.format(**places) for argument in arguments])
    assert result.exit_code == 2
    assert f"{new / name}: expected a new file, found one that appeared meanwhile" in result.stderr
    assert (new / name).read_bytes() == b"theirs"
    assert {path.name for path in new.iterdir()} - {name} <= {"m.gguf"}  # a report that fails leaves the model
