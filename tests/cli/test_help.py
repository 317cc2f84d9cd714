"""Help, its page in docs, its examples, completion, and `python -m pymixtral`."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest

from pymixtral import Mixtral, convert_adapter, convert_layout, prune
from pymixtral.adapters import peft_writer
from pymixtral.cli import _COMMANDS, main
from pymixtral.demo import demo_chat_path
from pymixtral.evaluation.calibration import calibrate
from pymixtral.evaluation.perplexity import perplexity
from pymixtral.files import imatrix
from pymixtral.files.names import TensorName
from pymixtral.model.adapter import Adapter, LowRank
from pymixtral.quantize.adapters import read_numbers
from support import tasks
from support.checkpoints import Shape
from support.command_line import COMMAND, commands, refused, run
from support.fenced import blocks
from support.ggufs import rewrite
from support.packed import Form, make_packed
from support.paths import ROOT

COMMANDS = commands()
WRITTEN = (*("dest", "output", "report", "heatmap", "save_base"), *("trace", "html", "png"))
"""The parameters that name files to write."""


def examples() -> list[str]:
    """The commands of all examples, as a shell takes them, but for those that serve, which have no end:
    tests/server runs them; and for those of a cluster, which tests/cluster runs.
    """
    found = []
    for command in (main, *COMMANDS.values()):
        lines = (command.epilog or "").replace("\\\n", " ").splitlines()
        found += [" ".join(line.split()) for line in lines if line.startswith("  ") and "_COMPLETE" not in line]
    found = [line for line in found if "pymixtral serve" not in line and "--ray" not in line]
    return list(dict.fromkeys(found))


def parsed(line: str) -> click.Context:
    """What click makes of the command in a line of a shell; raises what it raises."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|>")
    lexer.whitespace_split = True  # a word may be a URL, or a list with commas
    words = list(lexer)
    begin = words.index("pymixtral")
    end = next((i for i, word in enumerate(words) if i > begin and word in ("|", ">")), len(words))
    name, *arguments = shlex.split(" ".join(map(shlex.quote, words[begin + 1 : end])))
    return COMMANDS[name].make_context(name, arguments)


# --- Help ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_the_first_line_of_a_help_is_that_of_the_list(name: str) -> None:
    assert (COMMANDS[name].help or "").split("\n\n")[0] == _COMMANDS[name][1]


def test_the_page_of_all_helps_is_up_to_date() -> None:
    path = ROOT / "docs" / "command-line.md"
    text = path.read_text(encoding="utf-8")
    # In a process of its own: a command that another test has run by itself keeps that test's --help.
    code = "import runpy, sys; sys.stdout.write(runpy.run_path(sys.argv[1])['page'](sys.stdin.read()))"
    program = [sys.executable, "-X", "utf8", "-c", code, str(ROOT / "docs" / "command_line.py")]
    made = subprocess.run(program, input=text, capture_output=True, text=True, encoding="utf-8", check=True)
    assert made.stdout == text, "docs/command-line.md is not what the commands say: run `python docs/command_line.py`"
    assert all(f"### pymixtral {name}\n" in text for name in COMMANDS)
    assert max(len(line) for block in text.split("```text\n")[1:] for line in block.split("```")[0].splitlines()) <= 80


@pytest.mark.parametrize("arguments", [["generate", "--help"], ["generate", "--unknown"], ["unknown"], ["--version"]])
def test_python_m_is_the_same_command(arguments: list[str]) -> None:
    start = "import sys; sys.argv[0] = '/bin/pymixtral'; from pymixtral.__main__ import main; main()"  # as pip does
    results = [
        subprocess.run([*command, *arguments], capture_output=True, text=True)
        for command in (COMMAND, [sys.executable, "-c", start])
    ]
    assert results[0].stdout + results[0].stderr
    for result in results:
        assert "python" not in result.stdout + result.stderr
    assert len({(result.returncode, result.stdout, result.stderr) for result in results}) == 1


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("genrate", "found 'genrate': did you mean 'generate'?"),
        ("perplexty", "did you mean 'perplexity'?"),
        ("convert_layout", "did you mean 'convert-layout'?"),
        ("zzz", "there are generate, chat,"),
    ],
)
def test_an_unknown_command_is_answered_with_the_nearest(wrong: str, words: str) -> None:
    refused(run(wrong), words, "(see pymixtral --help)")


# --- Examples -----------------------------------------------------------------------------------------------------


def write_adapter(model: Path, shelf: Path) -> None:
    """An adapter for a model, as a folder and as a file."""
    config, random = read_numbers(model), np.random.default_rng(1)
    shapes = (config.hidden, config.n_heads * config.head_dim)
    pair = LowRank(*(random.standard_normal((2, n)).astype(np.float32) / 100 for n in shapes))
    peft_writer.write(Adapter({TensorName("attn_q", 1): pair}, "tales"), config, shelf / "tales-lora", force=False)
    convert_adapter(shelf / "tales-lora", shelf / "tales-lora.gguf", model)


@pytest.fixture(scope="module")
def shelf(
    tiny_checkpoint: Path, tiny_q4_0: Path, tiny_q8_0: Path, tiny_f16: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Small stand-ins for all files that the examples read."""
    shelf = tmp_path_factory.mktemp("shelf")
    with Mixtral(tiny_f16, n_ctx=512) as model:
        story = model.generate("Once upon a time", max_tokens=400, seed=1, ignore_eos=True).text
        text = (story + "\n") * 8
        for name in ("book.txt", "prose.txt", "code.txt"):
            (shelf / name).write_text(text, encoding="utf-8")
        lines = [json.dumps({"prompt": story[i : i + 40], "max_tokens": 9}) for i in range(0, 400, 40)]
        (shelf / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
        request = {"custom_id": "1", "url": "/v1/completions", "body": {"prompt": "Once", "max_tokens": 9}}
        (shelf / "requests.jsonl").write_text(json.dumps(request), encoding="utf-8")
        (shelf / "chapter.txt").write_text(story, encoding="utf-8")
        matrix = calibrate(model, [("book.txt", text)], n_windows=2, progress=False)
        for name in ("imatrix.gguf", "prose.gguf", "old.dat"):
            imatrix.write(matrix, shelf / name, force=True)
        perplexity(model, text, n_windows=50, save_base=shelf / "book.base", progress=False)
    for name, path in (("mixtral", tiny_q8_0), ("mixtral-q8_0", tiny_q8_0), ("mixtral-f16", tiny_f16)):
        (shelf / f"{name}.gguf").symlink_to(path)
    rewrite(tiny_q4_0, shelf / "mixtral-q4_0.gguf", keys={"llama.context_length": 32768})
    convert_layout(tiny_q8_0, shelf / "mixtral-of-2023.gguf", layout="split", progress=False)
    assert (
        len(convert_layout(tiny_q8_0, shelf / "mixtral.gguf", max_shard_bytes=7_000_000, force=True, progress=False))
        == 3
    )
    prune(tiny_q8_0, shelf / "mixtral-6x7b.gguf", n_experts=6, criterion="random", progress=False)
    (shelf / "mixtral-instruct.gguf").symlink_to(demo_chat_path())
    tasks.write_all(shelf / "data")
    for name in ("Mixtral-8x7B-v0.1", "my-merge"):
        (shelf / name).symlink_to(tiny_checkpoint)
    write_adapter(tiny_q8_0, shelf)
    make_packed(shelf / "Mixtral-8x7B-AWQ", Shape(n_vocab=64), Form(32))
    return shelf


@pytest.mark.parametrize("line", examples())
def test_the_examples_run(line: str, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With small stand-ins for the files that they read, as a shell runs them."""
    monkeypatch.chdir(tmp_path)
    for path in shelf.iterdir():
        Path(path.name).symlink_to(path)
    written = [Path(str(path)) for name, path in parsed(line).params.items() if name in WRITTEN and path is not None]
    for path in written:
        path.unlink(missing_ok=True)
    program = tmp_path / "bin" / "pymixtral"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.join(COMMAND)} "$@"\n')
    program.chmod(0o755)
    environment = os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", line],
        env=environment,
        stdin=subprocess.DEVNULL,  # where a user types
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    if "--max-shard-size" not in line and "--dry-run" not in line:
        assert all(path.stat().st_size for path in written)


def test_the_commands_of_pages_that_are_not_run_are_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that need a large model or several hosts, those in prose, and the one that installs;
    tests/test_documentation.py runs the others.
    """
    for path in ROOT.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "prompts.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    found = 0
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        text = path.read_text(encoding="utf-8")
        codes = [block.code.replace("\\\n", " ") for block in blocks(text) if block.language == "sh" and not block.runs]
        prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
        lines = re.findall(r"^(?:.*&& )?(pymixtral \w[^\n]*)$", "\n".join(codes), re.MULTILINE)
        lines += re.findall(r"^    (pymixtral \w[^\n]*)$", prose, re.MULTILINE) + re.findall(
            r"`(pymixtral \w[^`]*-[^`]*)`", prose
        )
        for line in lines:
            words = shlex.split(line, comments=True)
            if "--help" not in words:
                parsed(shlex.join(words))
                found += 1
    assert found > 10


# --- Completion ---------------------------------------------------------------------------------------------------


WATCHED = """
import sys
from pymixtral.cli import main
try:
    main()
finally:
    print(sorted({"numpy", "gguf", "tqdm", "MORE"} & set(sys.modules)), file=sys.stderr)
"""


def watched(*arguments: str, env: dict[str, str] | None = None, more: str = "") -> str:
    """What a command prints that imports nothing slow, nor the module `more`."""
    program = [sys.executable, "-c", WATCHED.replace("MORE", more), *arguments]
    done = subprocess.run(program, env=os.environ | (env or {}), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "[]\n")
    return done.stdout


def completed(words: str, more: str = "") -> list[str]:
    """What bash would offer for the last word, which may be empty."""
    position = str(len(words.split(" ")) - 1)
    environment = {"_PYMIXTRAL_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": position}
    return watched(env=environment, more=more).splitlines()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("pymixtral ", [f"plain,{name}" for name in COMMANDS]),
        ("pymixtral p", ["plain,perplexity", "plain,plan", "plain,prune"]),
        ("pymixtral generate --top", ["plain,--top-k", "plain,--top-p", "plain,--top-n-sigma"]),
        ("pymixtral generate --kv-type q", ["plain,q8_0"]),
        ("pymixtral quantize --type q2", ["plain,q2_k"]),
        ("pymixtral plan --params 8", ["plain,8x7b", "plain,8x22b"]),
        ("pymixtral deploy --for 8x22b-q4_k", ["plain,8x22b-q4_k_m", "plain,8x22b-q4_k_s"]),
        ("pymixtral generate -m ", ["file,"]),
        ("pymixtral inspect ", ["file,"]),
    ],
)
def test_the_shell_completes(words: str, offered: list[str]) -> None:
    assert completed(words) == offered


def test_commands_are_completed_without_being_imported() -> None:
    assert completed("pymixtral pl", more="pymixtral.cli.plan") == ["plain,plan"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_completed_and_explained_without_numpy(name: str) -> None:
    assert "plain,--json" in completed(f"pymixtral {name} --")
    assert "Examples:" in watched(name, "--help")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_scripts_and_the_lines_of_the_commands(shell: str) -> None:
    script = watched(env={"_PYMIXTRAL_COMPLETE": f"{shell}_source"})
    assert f"_PYMIXTRAL_COMPLETE={shell}_complete" in script
    word = "1" if shell == "zsh" else "tok"
    offered = watched(
        env={"_PYMIXTRAL_COMPLETE": f"{shell}_complete", "COMP_WORDS": "pymixtral tok", "COMP_CWORD": word}
    )
    assert "tokenize" in offered
    assert "Show the tokens of a text." in offered
