"""What strangers write into files and names does not reach a terminal as it is."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pymixtral import Mixtral
from pymixtral.cli import _COMMANDS as COMMANDS
from pymixtral.files.gguf import GGUFFile
from support import tasks
from support.adapter_files import write_adapter
from support.adapters import ADAPTERS, adapter_base
from support.command_line import COMMAND, run
from support.ggufs import rewrite

HOSTILE = "\x1b[2J\x9b31m\x7f\u202e\u2066"
SHOWN = HOSTILE.encode("unicode_escape").decode()
NAME = f"odd\udcff\n{HOSTILE}"
TEXT = "Once upon a time there was a king. " * 60


@pytest.fixture(scope="module")
def place(tiny_q8_0: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and a text with hostile names, metadata and tokens, and a checkpoint of such a name."""
    place = tmp_path_factory.mktemp("place")
    with GGUFFile(tiny_q8_0) as file:
        pieces, types = (file.metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type"))
    assert not isinstance(pieces, int | float | str)
    hostile = [
        f"{HOSTILE}{i}" if kind == 1 else str(piece) for i, (piece, kind) in enumerate(zip(pieces, types, strict=True))
    ]  # type: ignore[arg-type]
    keys = {"tokenizer.ggml.tokens": hostile, "general.name": NAME.replace("\udcff", ""), f"x.{HOSTILE}": HOSTILE}
    rewrite(tiny_q8_0, place / "model", keys=keys)
    (place / "model").rename(place / f"{NAME}.gguf")
    shutil.copytree(tiny_checkpoint, place / NAME)
    (place / f"{NAME}.txt").write_text(TEXT)
    request = {"custom_id": "1", "url": "/v1/completions", "body": {"prompt": f"a{HOSTILE}", "max_tokens": 2}}
    tasks.hellaswag(place / f"{NAME}.data" / "hellaswag")
    shutil.copytree(ADAPTERS / "v4-all", place / f"{NAME}.tales")
    adapter_base(place / f"{NAME}.of")
    (place / f"{NAME}.jsonl").write_text(json.dumps(request))
    with Mixtral(tiny_q8_0, n_ctx=64) as model:
        write_adapter(place / f"{NAME}.lora", model.config, 1)
    return place


def in_terminal(place: Path, *arguments: object) -> tuple[int, str]:
    """The exit code, and what a command writes to a terminal, which all its standard streams are."""
    master, slave = pty.openpty()
    process = subprocess.Popen([*COMMAND, *map(str, arguments)], cwd=place, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    written = b""
    try:
        while data := os.read(master, 1 << 16):
            written += data
    except OSError:  # how Linux says that the other side is closed
        pass
    finally:
        os.close(master)
    return process.wait(60), written.decode()


def safe(text: str) -> bool:
    """Whether nothing but ends of lines and tabs is left that a terminal obeys."""
    return not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text)


MODEL, FILE = f"{NAME}.gguf", f"{NAME}.txt"
LINES = {
    "generate": ["-m", MODEL, "-p", "a", "-n", 5, "--adapter", f"x={NAME}.lora"],
    "chat": ["-m", MODEL, "-p", f"a{HOSTILE}", "--system", HOSTILE, "-n", 5, "--chat-format", "mistral-v1"],
    "batch": ["-m", MODEL, f"{NAME}.jsonl", f"{NAME}.answers", "--force"],
    "score": ["-m", MODEL, "-p", f"a{HOSTILE}", "--continuation", f"b{HOSTILE}"],
    "embed": ["-m", MODEL, "-p", f"a{HOSTILE}"],
    "tokenize": ["-m", MODEL, "-p", f"a{HOSTILE}"],
    "perplexity": ["-m", MODEL, "-f", FILE, "-c", 32, "--windows", 1, "--save-base", f"{NAME}.base"],
    "evaluate": ["-m", MODEL, "--tasks", "hellaswag", "--data", f"{NAME}.data", "--limit", 1],
    "routing": ["-m", MODEL, "-f", f"a{HOSTILE}={FILE}", "-c", 32, "--windows", 1],
    "bench": ["-m", MODEL, "--prompt-tokens", 2, "-n", 1, "-r", 1, "--adapter", f"x={NAME}.lora"],
    "inspect": [MODEL],
    "plan": [MODEL],
    "deploy": ["--for", MODEL],
    "doctor": [],
    "quantize": [NAME, f"{NAME}.q8_0", "--force"],
    "calibrate": ["-m", MODEL, "-f", FILE, "-c", 32, "--windows", 1, "-o", f"{NAME}.imatrix", "--force"],
    "convert-adapter": [f"{NAME}.tales", f"{NAME}.tales.gguf", "--base", f"{NAME}.of", "--force"],
    "convert-layout": [MODEL, f"{NAME}.merged", "--force"],
    "prune": [MODEL, f"{NAME}.pruned", "--experts", 6, "--calibration", FILE, "-c", 32, "--windows", 1, "--force"],
}  # fmt: skip


def test_there_is_a_line_for_each_command_that_has_an_end() -> None:
    assert set(LINES) == set(COMMANDS) - {"serve"}  # tests/server


@pytest.mark.parametrize("command", LINES)
def test_no_command_writes_what_a_terminal_obeys(command: str, place: Path) -> None:
    for more in ([], ["--json"]):
        (place / f"{NAME}.base").unlink(missing_ok=True)
        code, text = in_terminal(place, command, *LINES[command], *more)
        assert (code, safe(text)) == (0, True), text
        if more:
            assert json.loads(text[text.index("\r\n{") if "\r\n{" in text else text.index("{") : text.rindex("}") + 1])
    named = ("convert-layout", "convert-adapter", "prune")
    if command in ("generate", "chat", "inspect", "bench", "calibrate", "quantize", *named):
        assert "\\x1b[2J" in in_terminal(place, command, *LINES[command])[1]


@pytest.mark.parametrize("command", LINES)
def test_no_error_has_what_a_terminal_obeys(command: str, place: Path) -> None:
    there = (MODEL, FILE, NAME, f"{NAME}.of")
    wrong = [f"missing{NAME}" if word in there else word for word in LINES[command]] or [f"--{NAME}"]
    for words in (wrong, [*LINES[command], f"--{NAME}"]):
        code, text = in_terminal(place, command, *words)
        assert (code, safe(text), text.count("\n")) == (2, True, 1), text
        assert SHOWN in text


def test_generated_text_and_names_of_files_are_escaped_on_terminals_alone(place: Path) -> None:
    piped = run("generate", *("-m", place / MODEL, "-p", "a", "-n", 5, "--temperature", 0)).stdout
    assert HOSTILE in piped
    shown = in_terminal(place, *("generate", "-m", MODEL, "-p", "a", "-n", 5, "--temperature", 0))[1]
    assert shown.startswith(piped.replace(HOSTILE, SHOWN).replace("\n", "\r\n"))
    names = subprocess.run(
        [*COMMAND, "convert-layout", MODEL, f"{NAME}.again"], cwd=place, capture_output=True, check=True
    )
    assert names.stdout == os.fsencode(f"{NAME}.again\n")


def test_newlines_and_tabs_of_a_text_stay(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    from pymixtral.cli.text import write_data

    isatty: Callable[[], bool] = lambda: True  # noqa: E731
    monkeypatch.setattr("sys.stdout.isatty", isatty, raising=False)
    write_data("a\n\tb\r\x1b[c", keep="\n\t")
    assert capsysbinary.readouterr().out == b"a\n\tb\\r\\x1b[c"
