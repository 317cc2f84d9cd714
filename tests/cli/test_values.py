"""Every value that an option can have, sensible or not: a result, or one line and exit code 2."""

from __future__ import annotations

import os
from pathlib import Path

import click
import pytest

from pymixtral import InvalidArgumentError, Mixtral
from pymixtral.files import imatrix
from pymixtral.quantize import plan
from support import tasks
from support.adapters import ADAPTERS
from support.command_line import commands, options, refused, run

TEXT = "Once upon a time there was a king. " * 60
NAME = "n\udcff\n\x1b[2J\x9b"

NUMBERS = ("nan", "inf", "-inf", "1e400", "", "x", "0x10", "1_0 0", "\udcff", "1" + "0" * 30, "9" * 5000)
ACCEPTED = (
    *(
        f"{command} --{name}"
        for command in ("generate", "chat")
        for name in ("max-tokens", "top-k", "penalty-window", "seed", "dry-allowed-length", "dry-window", "min-tokens")
    ),
    *(
        "perplexity --windows",
        "calibrate --windows",
        "prune --windows",
        "routing --windows",
        "evaluate --limit",
    ),
)
"""Where 10^30 means something. inspect says that such a model does not run."""


TEXTS = (
    "prompt",
    "texts",
    "continuations",
    "stop",
    "overrides",
    "regex",
    "choice",
    "system",
    "bad_words",
    "judge_url",
    "judge_model",
    "adapters",
)
"""Options that take any text."""


@pytest.fixture
def lines(
    tiny_q8_0: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, list[str]]:
    """By command: words that run it, but for an option that it lacks."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    tasks.hellaswag(tmp_path / "data.d" / "hellaswag")
    model, text = ["-m", str(tiny_q8_0)], ["-f", "text.txt", "-c", "32", "--windows", "1"]
    return {
        "generate": ["generate", *model, "-p", "a", "-n", "1"],
        "chat": ["chat", *model, "-p", "a", "-n", "1", "--chat-format", "mistral-v1"],
        "score": ["score", *model, "-p", "a", "--continuation", "b"],
        "embed": ["embed", *model, "-f", "text.txt", "-o", "vectors.npy"],
        "tokenize": ["tokenize", *model, "-p", "a"],
        "perplexity": ["perplexity", *model, *text],
        "routing": ["routing", *model, "-f", "text.txt", "-c", "32", "--windows", "1"],
        "evaluate": ["evaluate", *model, "--tasks", "hellaswag", "--data", "data.d", "--limit", "1"],
        "bench": ["bench", *model, "--prompt-tokens", "2", "-n", "1", "-r", "1"],
        "batch": ["batch", *model, "text.txt", "answers.jsonl"],
        "inspect": ["inspect", str(tiny_q8_0)],
        "plan": ["plan", str(tiny_q8_0)],
        "deploy": ["deploy", "--for", str(tiny_q8_0)],
        "quantize": ["quantize", str(tiny_checkpoint), "model.gguf"],
        "calibrate": ["calibrate", *model, *text, "-o", "imatrix"],
        "convert-adapter": ["convert-adapter", str(ADAPTERS / "v4-all"), "adapter.gguf", "--base", str(tiny_q8_0)],
        "convert-layout": ["convert-layout", str(tiny_q8_0), "parts.gguf"],
        "prune": ["prune", str(tiny_q8_0), "pruned.gguf", "--experts", "6", "--calibration", *text[1:]],
    }


def numeric() -> list[tuple[str, str]]:
    """Command and option of all that take a number, a size or a choice."""
    return [
        (name, option)
        for name, command in commands().items()
        if name != "serve"  # which has no end: tests/server
        for option, param in options(command).items()
        if not param.is_flag and not isinstance(param.type, click.Path) and param.name not in TEXTS
    ]


@pytest.mark.parametrize(("command", "option"), numeric())
def test_numbers_that_are_none_or_too_large(command: str, option: str, lines: dict[str, list[str]]) -> None:
    values = NUMBERS
    if option == "--logit-bias":
        values = (*(f"5={value}" for value in NUMBERS if value != "-inf"), *(f"{value}=1" for value in NUMBERS))
    for value in values:
        result = run(*lines[command], option, value)
        if f"{command} {option}" in ACCEPTED and value == "1" + "0" * 30:
            assert result.exit_code == 0, result.stderr
        else:
            refused(result)
            assert len(result.stderr) < 2100
    assert {path.name for path in Path().iterdir()} <= {"text.txt", "imatrix", "pruned.gguf", "data.d"}


def test_a_target_that_is_no_number_is_refused_in_python(tiny_checkpoint: Path) -> None:
    for value in (float("nan"), float("inf"), -1.0):
        with pytest.raises(InvalidArgumentError, match="expected target_bpw to be a number from 0 to 32"):
            plan(tiny_checkpoint, target_bpw=value, progress=False)


@pytest.mark.parametrize(
    "value", ["llama.rope.freq_base=float:nan", "llama.expert_used_count=int:" + "9" * 5000, "=", "", NAME]
)
def test_overrides_that_are_none(value: str, lines: dict[str, list[str]]) -> None:
    for command in ("generate", "perplexity"):
        refused(run(*lines[command], "--override-kv", value))


def names(line: list[str]) -> list[int]:
    """Where a line has a word that names a file."""
    return [i for i, word in enumerate(line) if i and (os.sep in word or "." in word or word == "imatrix")]


@pytest.mark.parametrize(
    "name", ["", "n" * 300, "no/such/" + NAME, "/dev/null/x"], ids=["empty", "long", "nowhere", "no folder"]
)
@pytest.mark.parametrize("command", [name for name in commands() if name not in ("doctor", "serve")])
def test_names_of_files_that_cannot_be(command: str, name: str, lines: dict[str, list[str]]) -> None:
    line = lines[command]
    for i in names(line):
        refused(run(*line[:i], name, *line[i + 1 :]))
    more = {
        "generate": ["--prompts", "-o", "--adapter"],
        "perplexity": ["--save-base", "--kl-against"],
        "quantize": ["--imatrix", "--report", "--heatmap"],
        "calibrate": ["--merge"],
        "routing": ["--html", "--trace"],
        "evaluate": ["-o", "--compare", "--adapter"],
        "bench": ["--adapter"],
    }
    for option in more.get(command, []):
        refused(run(*line, option, name))
    assert sorted(path.name for path in Path().iterdir()) == ["data.d", "text.txt"]


def test_names_that_are_not_utf8_and_have_newlines_work(lines: dict[str, list[str]]) -> None:
    Path("text.txt").rename(NAME)
    line = [NAME if word == "text.txt" else word for word in lines["calibrate"]]
    assert run(*line[:-1], f"{NAME}.imatrix").exit_code == 0
    assert imatrix.read(Path(f"{NAME}.imatrix")).datasets == ["n\\udcff\\n\\x1b[2J\\x9b"]
    assert (
        run(
            *lines["quantize"][:-1], f"{NAME}.gguf", "--report", f"{NAME}.json", "--imatrix", f"{NAME}.imatrix"
        ).exit_code
        == 0
    )
    assert run("convert-layout", f"{NAME}.gguf", f"{NAME}parts.gguf", "--max-shard-size", "6M").exit_code == 0
    assert len(list(Path().glob(f"{NAME}parts-0000?-of-00003.gguf"))) == 3
    with Mixtral(f"{NAME}.gguf") as model:
        assert model.generate("a", max_tokens=1).tokens


def test_an_empty_name_in_python() -> None:
    with pytest.raises(InvalidArgumentError, match="expected path to be the name of a file, found ''"):
        Mixtral("")
