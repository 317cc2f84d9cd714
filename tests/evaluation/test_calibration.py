"""Calibration: sums as the oracle has them, resumption, and the command."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from pymixtral import Mixtral, ops
from pymixtral.cli import main
from pymixtral.errors import InvalidArgumentError
from pymixtral.evaluation import calibration
from pymixtral.evaluation.calibration import calibrate
from pymixtral.files.imatrix import read, write
from pymixtral.files.importance import ImportanceMatrix
from support.ggufs import rewrite

TEXT = (
    "Once upon a time there was a king who had three daughters, and the youngest was so beautiful "
    "that the sun wondered. " * 4
)


@pytest.fixture(scope="module")
def model(tiny_f32: Path) -> Iterator[Mixtral]:
    with Mixtral(tiny_f32, n_ctx=64) as engine:
        yield engine


@pytest.fixture(scope="module")
def whole(model: Mixtral) -> ImportanceMatrix:
    return calibrate(model, [("t", TEXT)], n_ctx=32, progress=False)


def equal(a: ImportanceMatrix, b: ImportanceMatrix, rtol: float = 0) -> None:
    assert a.entries.keys() == b.entries.keys()
    for name, entry in a.entries.items():
        np.testing.assert_allclose(entry.sums, b.entries[name].sums, rtol=rtol)
        np.testing.assert_array_equal(entry.counts, b.entries[name].counts)


def test_every_matrix_of_tiny_mixtral_is_measured(model: Mixtral, whole: ImportanceMatrix) -> None:
    n_tokens = whole.n_windows * 32
    assert whole.n_windows == len(model.tokenize(TEXT)) // 32
    assert len(whole.entries) == 4 * 7 + 1
    for name, entry in whole.entries.items():
        experts = "exps" in name
        assert entry.sums.shape == (8 if experts else 1, 512 if "down" in name else 256)
        assert entry.counts.sum() == n_tokens * (2 if experts else 1)
        assert (entry.sums[entry.counts > 0] > 0).all()
        assert (entry.sums[entry.counts == 0] == 0).all()


def test_sums_are_those_of_the_layers_inputs(model: Mixtral, whole: ImportanceMatrix) -> None:
    """The head's input is what gives the logits; the experts of a layer get their tokens' rows,
    n_experts_used times in all.
    """
    tokens = model.tokenize(TEXT)
    total = np.zeros(256)
    for i in range(whole.n_windows):
        window = tokens[i * 32 : (i + 1) * 32]
        window[0] = tokens[0]
        observers = model.observers()
        rows = model.observe(window, observers)
        total += np.square(rows.astype(np.float64)).sum(axis=0)
        np.testing.assert_allclose(rows @ head(model).T, model.logits(window), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(whole.entries["output.weight"].sums[0], total, rtol=1e-12)
    gate, up = (whole.entries[f"blk.1.ffn_{name}_exps.weight"] for name in ("gate", "up"))
    np.testing.assert_array_equal(gate.sums, up.sums)


@pytest.mark.parametrize("n_windows", [0, -1, 1.5])
def test_numbers_of_windows_that_are_none(model: Mixtral, n_windows: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="n_windows"):
        calibrate(model, [("t", TEXT)], n_ctx=32, n_windows=n_windows, progress=False)


def head(model: Mixtral) -> np.ndarray:  # type: ignore[type-arg]
    return model.core.engine._loop._model.weights.head.data.view(np.float32)


def test_observers_change_nothing_and_batches_add_up(tiny_f32: Path, model: Mixtral) -> None:
    tokens = model.tokenize(TEXT)[:64]
    one = model.observers()
    hidden = model.observe(tokens, one)
    with Mixtral(tiny_f32, n_ctx=64, n_batch=10) as small:
        many = small.observers()
        np.testing.assert_array_equal(small.observe(tokens, many), hidden)
    for a, b in zip(one, many, strict=True):
        np.testing.assert_allclose(a.down_input, b.down_input, rtol=1e-12)
        np.testing.assert_array_equal(a.n_tokens, b.n_tokens)


def test_texts_add_up(model: Mixtral, whole: ImportanceMatrix) -> None:
    two = calibrate(model, [("a", TEXT), ("b", TEXT)], n_ctx=32, progress=False)
    assert (two.datasets, two.n_windows) == (["a", "b"], 2 * whole.n_windows)
    for name, entry in whole.entries.items():
        np.testing.assert_allclose(two.entries[name].sums, 2 * entry.sums, rtol=1e-12)
    first = calibrate(model, [("a", TEXT), ("b", TEXT)], n_ctx=32, n_windows=whole.n_windows, progress=False)
    equal(first, whole)


def interrupted(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Interrupts the third window that is observed. The list gets an entry for each."""
    observe, calls = Mixtral.observe, list[object]()

    def counted(*arguments: Any) -> object:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return observe(*arguments)

    monkeypatch.setattr(Mixtral, "observe", counted)
    return calls


def test_an_interrupted_calibration_goes_on(
    model: Mixtral, whole: ImportanceMatrix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, path = interrupted(monkeypatch), tmp_path / "i.gguf"
    with pytest.raises(KeyboardInterrupt):
        calibrate(model, [("t", TEXT)], n_ctx=32, save=lambda state: write(state, path, force=True), progress=False)
    assert read(path).n_windows == 2
    rest = calibrate(model, [("t", TEXT)], n_ctx=32, resume=read(path), progress=False)
    assert rest.n_windows == whole.n_windows
    assert len(calls) == 3 + whole.n_windows - 2
    equal(rest, whole, rtol=1e-6)  # sums are float32 in the file
    with pytest.raises(InvalidArgumentError, match="begun with others"):
        calibrate(model, [("t", "Twice" + TEXT[4:])], n_ctx=32, resume=read(path), progress=False)
    with pytest.raises(InvalidArgumentError, match="begun with others"):
        calibrate(model, [("t", TEXT)], n_ctx=16, resume=read(path), progress=False)


def test_an_observer_of_another_model_is_refused(model: Mixtral) -> None:
    layer = model.core.engine._loop._model.layers[0]
    observer = ops.Observer(layer)
    observer.down_input = observer.down_input[:, :-1]
    with pytest.raises(InvalidArgumentError, match="observer"):
        model.observe([1, 2, 3], [observer] * 4)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["calibrate", *map(str, arguments)], prog_name="pymixtral")


def test_the_command_measures_resumes_and_merges(tiny_f32: Path, whole: ImportanceMatrix, tmp_path: Path) -> None:
    text, out, both = tmp_path / "t.txt", tmp_path / "i.gguf", tmp_path / "both.gguf"
    text.write_text(TEXT)
    result = run("-m", tiny_f32, "-f", text, "-c", 32, "--windows", 2, "-o", out, "-t", 1)
    assert (result.exit_code, read(out).n_windows) == (0, 2)
    assert "29 tensors, 2 windows of 32 tokens" in result.stdout
    assert "blk.0: hardly seen" in result.stdout
    assert run("-m", tiny_f32, "-f", text, "-c", 32, "-o", out, "--resume").exit_code == 0
    equal(read(out), whole, rtol=1e-6)
    assert read(out).datasets == ["t.txt"]
    assert run("--merge", out, "--merge", out, "-o", both).exit_code == 0
    assert read(both).n_windows == 2 * whole.n_windows
    assert (
        run("-m", tiny_f32, "-f", text, "-c", 32, "--windows", 1, "--merge", both, "-o", out, "--force").exit_code == 0
    )
    assert read(out).n_windows == 2 * whole.n_windows + 1


def test_ctrl_c_keeps_the_windows_beside_what_is_merged(
    tiny_f32: Path, whole: ImportanceMatrix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, old, out = (tmp_path / name for name in ("t.txt", "old.gguf", "out.gguf"))
    text.write_text(TEXT)
    write(whole, old, force=True)
    interrupted(monkeypatch)
    result = run("-m", tiny_f32, "-f", text, "-c", 32, "--merge", old, "-o", out)
    assert (result.exit_code, result.stdout) == (130, "")
    assert "2 windows so far; with what is merged" in result.stderr
    assert "--resume" not in result.stderr
    assert read(out).n_windows == whole.n_windows + 2


@pytest.mark.parametrize("resume", [False, True])
def test_row_18_a_file_that_appears_meanwhile_is_kept_and_so_is_the_work(
    tiny_f32: Path, whole: ImportanceMatrix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    """It is written under way after every window; another file comes before the first of them, and between two."""
    observe, calls, (text, out) = Mixtral.observe, [0], (tmp_path / name for name in ("t.txt", "out.gguf"))
    text.write_text(TEXT)

    def disturbed(*arguments: object) -> object:
        calls[0] += 1
        if theirs := {1: out, 2: tmp_path / "out-2.gguf"}.get(calls[0]):
            (tmp_path / "theirs").write_bytes(b"theirs %d" % calls[0])
            (tmp_path / "theirs").rename(theirs)
        return observe(*arguments)  # type: ignore[arg-type]

    if resume:
        assert run("-m", tiny_f32, "-f", text, "-c", 32, "--windows", 1, "-o", out).exit_code == 0
    monkeypatch.setattr(Mixtral, "observe", disturbed)
    monkeypatch.setattr(calibration, "SAVE_SECONDS", -1)
    result = run("-m", tiny_f32, "-f", text, "-c", 32, "-o", out, *(["--resume"] if resume else []))
    assert (result.exit_code, result.stdout) == (2, "")
    assert (
        f"{out}: expected a new file, found one that appeared meanwhile: it was kept, and the result is"
        in result.stderr
    )
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.read_bytes().startswith(b"theirs")}
    assert kept == {"out.gguf": b"theirs 1", "out-2.gguf": b"theirs 2"}
    equal(read(tmp_path / "out-3.gguf"), whole, rtol=1e-6)


@pytest.mark.parametrize("arguments", [["--force"], ["--force", "--resume"]])
def test_with_force_the_output_is_replaced(tiny_f32: Path, tmp_path: Path, arguments: list[str]) -> None:
    text, out = tmp_path / "t.txt", tmp_path / "out.gguf"
    text.write_text(TEXT)
    common = ["-m", tiny_f32, "-f", text, "-c", 32, "--windows", 1, "-o", out]
    assert run(*common).exit_code == 0
    assert run(*common, *arguments).exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"t.txt", "out.gguf"}


def test_what_cannot_be_read_again_does_not_replace_the_old_file(tmp_path: Path) -> None:
    """llama.cpp's dat form has larger numbers and longer names than the gguf form."""
    out = tmp_path / "i.gguf"
    out.write_bytes(b"old")
    for name, n_calls, value, n_chunks, words in (
        (b"a", 1, 3e38, 1, "sums of 'a': expected at most 3.40282e+38"),
        (b"n" * 60, 1, 1.0, 1, "names of at most 55 bytes"),
        (b"a", 1, 1.0, (1 << 31) - 1, "expected at most 4294967295 windows"),
    ):
        entry = struct.pack("<ii", 1, len(name)) + name + struct.pack("<iifii", n_calls, 1, value, n_chunks, 0)
        (tmp_path / "a.dat").write_bytes(entry)
        result = run("--merge", tmp_path / "a.dat", *(["--merge", tmp_path / "a.dat"] * 2), "-o", out, "--force")
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
        assert words in result.stderr
        assert out.read_bytes() == b"old"


def test_row_18_nothing_that_is_read_is_overwritten(tiny_q8_0: Path, whole: ImportanceMatrix, tmp_path: Path) -> None:
    model, text, old, link = (tmp_path / name for name in ("m.gguf", "t.txt", "i.gguf", "link"))
    model.write_bytes(tiny_q8_0.read_bytes())
    text.write_text(TEXT)
    write(whole, old, force=True)
    link.symlink_to(model)
    shard = rewrite(tiny_q8_0, tmp_path / "s.gguf", shard_tensors=30)
    other = tmp_path / "s-00002-of-00002.gguf"
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert other in before
    for source, output in ((model, model), (model, link), (model, text), (model, old), (shard, other)):
        result = run("-m", source, "-f", text, "-c", 32, "--windows", 1, "--merge", old, "-o", output, "--force")
        assert (result.exit_code, result.stdout) == (2, "")
        assert f"{output}: expected a file of its own to write" in result.stderr
    for output in (model, text):
        result = run("-m", model, "-f", text, "-c", 32, "--windows", 1, "-o", output, "--resume")
        assert (result.exit_code, "read or written otherwise" in result.stderr) == (2, True)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "'-o' / '--output'"),
        (["-o", "i.gguf"], "expected a model (-m) and a text (-f)"),
        (["-m", "m.gguf", "-o", "i.gguf"], "expected a model (-m) and a text (-f)"),
        (["-m", "m.gguf", "--merge", "i.gguf", "-o", "j.gguf"], "expected a model (-m) and a text (-f)"),
        (["-m", "m.gguf", "-f", __file__], "'-o' / '--output'"),
        (["-m", "m.gguf", "-f", __file__, "-o", "i.gguf"], "m.gguf"),
        (["-m", "m.gguf", "-f", __file__, "-o", "no/such/i.gguf"], "no/such"),
        (["-m", "m.gguf", "-f", __file__, "-o", read.__code__.co_filename], "exists: choose another name, --resume"),
        (["-m", "m.gguf", "-f", __file__, "-o", __file__], "read or written otherwise"),
        (["-m", "m.gguf", "-f", __file__, "--merge", "i.gguf", "--resume", "-o", "j.gguf"], "--resume or --merge"),
        (["--merge", "missing.gguf", "-o", "i.gguf"], "missing.gguf"),
        (["--merge", __file__, "-o", "i.gguf"], "is it an importance matrix"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert words in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_short_text_is_refused_by_name(tiny_f32: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Once upon a time")
    result = run("-m", tiny_f32, "-f", tmp_path / "short.txt", "-o", tmp_path / "i.gguf")
    assert (result.exit_code, "short.txt" in result.stderr) == (2, True)
