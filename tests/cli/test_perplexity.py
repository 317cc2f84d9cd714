"""The command `pymixtral perplexity`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pymixtral import Mixtral
from pymixtral.cli import main
from pymixtral.evaluation.perplexity import perplexity

TEXT = (
    "Once upon a time there was a king who had three daughters, and the youngest was so beautiful "
    "that the sun wondered. " * 4
)


def run(*arguments: object, input: str | None = None) -> Result:
    return CliRunner().invoke(main, ["perplexity", *map(str, arguments)], input=input, prog_name="pymixtral")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT + "\n")
    return path


@pytest.fixture(scope="module")
def q8_0(tiny_q8_0: Path) -> Iterator[Mixtral]:
    with Mixtral(tiny_q8_0, n_ctx=32) as model:
        yield model


def test_people_read_the_figures(tiny_q8_0: Path, q8_0: Mixtral, text: Path) -> None:
    result = run("-m", tiny_q8_0, "-f", text, "-c", 32)
    expected = perplexity(q8_0, TEXT, n_ctx=32)
    assert result.exit_code == 0
    assert (
        f"Perplexity {expected.perplexity:.4f} ± {expected.standard_error:.4f} (standard error): {expected.n_tokens} "
        in result.stdout
    )
    assert re.search(rf"in {expected.n_windows} windows of 32; [\d.]+ tokens/s, [\d.]+ s\n$", result.stdout)
    assert result.stderr == ""  # the bar is for terminals
    assert run("-m", tiny_q8_0, "-c", 32, input=TEXT + "\n").stdout.split(";")[0] == result.stdout.split(";")[0]


def test_programs_read_json_and_options_reach_the_measure(tiny_q8_0: Path, q8_0: Mixtral, text: Path) -> None:
    result = run("-m", tiny_q8_0, "-f", text, "-c", 32, "--stride", 8, "--windows", 3, "-t", 1, "--json")
    found, expected = json.loads(result.stdout), asdict(perplexity(q8_0, TEXT, n_ctx=32, stride=8, n_windows=3))
    timed = ("seconds", "tokens_per_second")
    assert {k: v for k, v in found.items() if k not in timed} == {k: v for k, v in expected.items() if k not in timed}
    exact = json.loads(run("-m", tiny_q8_0, "-f", text, "-c", 32, "--kv-type", "f32", "--json").stdout)["perplexity"]
    with Mixtral(tiny_q8_0, kv_type="f32") as model:
        assert exact == perplexity(model, TEXT, n_ctx=32).perplexity != perplexity(q8_0, TEXT, n_ctx=32).perplexity


def test_a_base_is_saved_and_compared_with(tiny_q8_0: Path, tiny_q4_0: Path, text: Path, tmp_path: Path) -> None:
    base = tmp_path / "b"
    assert run("-m", tiny_q8_0, "-f", text, "-c", 32, "--save-base", base).exit_code == 0
    same = run("-m", tiny_q8_0, "-f", text, "-c", 32, "--kl-against", base).stdout
    assert "mean 0.000000 ± 0.000000, median 0.000000,\n99th percentile 0.000000, maximum 0.000000\n" in same
    assert "Same most likely token: 100.00%" in same
    assert "ratio to it 1.00000 ± 0.00000" in same
    other = json.loads(run("-m", tiny_q4_0, "-f", text, "-c", 32, "--kl-against", base, "--json").stdout)["kl"]
    assert 0 < other["median"] < other["p99"] <= other["maximum"]
    assert 0.5 < other["top1_agreement"] < 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-m", "missing.gguf"], "missing.gguf"),
        (["-c", "1"], "-c"),
        (["-c", "4096"], "--context"),
        (["-c", "2"], "--context"),
        (["-c", "512"], "at least one window of 512 tokens"),
        (["--stride", "0"], "--stride"),
        (["-c", "32", "--stride", "32"], "stride"),
        (["-c", "32", "--windows", "0"], "--windows"),
        (["-c", "32", "-f", "missing.txt"], "missing.txt"),
        (["-c", "32", "--kl-against", "missing"], "found nothing"),
        (["-c", "32", "--kl-against", __file__], "begins with"),
        (["-c", "32", "--save-base", __file__], "new file"),
        (["-c", "32", "--save-base", "no/such/place"], "no/such"),
    ],
)
def test_wrong_input_is_one_line(tiny_q8_0: Path, arguments: list[str], words: str) -> None:
    model = [] if "-m" in arguments else ["-m", tiny_q8_0]
    result = run(*model, *arguments, input=TEXT)
    assert (result.exit_code, result.stdout) == (2, "")
    assert re.fullmatch(r"Error: [^\n]+\n", result.stderr)
    assert words in result.stderr


def test_text_that_is_not_utf8_is_refused(tiny_q8_0: Path, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    result = run("-m", tiny_q8_0, "-f", tmp_path / "latin.txt")
    assert (result.exit_code, "0xe9 at offset 3" in result.stderr) == (2, True)


def test_the_help_has_examples() -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert "--save-base book.base" in result.stdout
