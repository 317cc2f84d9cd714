"""The command line: help, notes and refusals in the same process, signals and exit codes in real ones."""

from __future__ import annotations

import errno
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pymixtral
from pymixtral import Mixtral, ops
from pymixtral.cli import _COMMANDS as COMMANDS
from pymixtral.cli.model import note_control_names
from support.command_line import COMMAND, SUMMARY, refused, run
from support.terminal import Session, in_terminal

PROMPT = "Once upon a time there was a king"


@pytest.fixture(scope="module")
def engine(tiny_q8_0: Path) -> Iterator[Mixtral]:
    with Mixtral(tiny_q8_0) as engine:
        yield engine


# --- Help ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_has_examples_and_a_line_for_each_command(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 0
    assert "Examples:\n  " in result.output
    lines = [line.split(maxsplit=1) for line in result.output.splitlines()]
    assert all([name, text] in lines for name, (_, text) in COMMANDS.items())


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_has_examples_and_80_columns(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"Examples:\n    pymixtral {command}" in result.output
    for line in result.output.splitlines():
        assert len(line) <= 80, line
        assert line.isprintable()


def test_version() -> None:
    assert run("--version").output == f"pymixtral, version {pymixtral.__version__}\n"


def test_the_help_imports_nothing_slow() -> None:
    code = "import sys, pymixtral.cli as c\ntry: c.main(['--help'])\n"
    code += "finally: print(sorted({'numpy', 'gguf', 'click'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.endswith("['click']\n")


# --- Notes --------------------------------------------------------------------------------------------------------


def test_names_of_control_tokens_are_tokens_with_special_alone(tiny_q8_0: Path, engine: Mixtral) -> None:
    prompt = "<s>Once</s> upon <s>"
    for parse_special in (False, True):
        special = ["--special"] if parse_special else []
        ids = engine.tokenize(prompt, parse_special=parse_special)
        result = run("tokenize", "-m", tiny_q8_0, "-p", prompt, "--ids", *special)
        assert result.stdout == " ".join(map(str, ids)) + "\n"
        note = "" if parse_special else "Note: <s>, </s> are ordinary text; --special makes them tokens.\n"
        assert result.stderr == f"{note}{len(ids)} tokens\n"
        text = engine.generate(prompt, max_tokens=9, temperature=0, parse_special=parse_special).text
        result = run("generate", "-m", tiny_q8_0, "-p", prompt, "-n", 9, "--temperature", 0, *special)
        assert (result.stdout, result.stderr[: len(note)]) == (text + "\n", note)
        assert f"prompt: {len(ids)} tokens" in result.stderr
    one = run("tokenize", "-m", tiny_q8_0, "-p", "a</s>")
    assert "Note: </s> is ordinary text; --special makes it a token.\n" in one.stderr
    assert engine.control_names("a</s><s></s>") == ["</s>", "<s>"]


def test_many_names_of_control_tokens_are_one_short_note(capsys: pytest.CaptureFixture[str]) -> None:
    note_control_names([f"<{i}>" for i in range(50)])
    assert (
        capsys.readouterr().err == "Note: <0>, <1>, <2> and 47 more are ordinary text; --special makes them tokens.\n"
    )


def test_more_threads_than_cpus_are_named(
    tiny_q8_0: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "thread_limits", lambda: ops.Threads(8, 4, 4, 1.5))
    note = (
        "Note: 3 threads share the 2 CPUs that this process may use, which costs speed; "
        "without -t there are 1 (the cgroup's quota of 1.5 CPUs, rounded down).\n"
    )
    for line in (
        ["generate", "-m", tiny_q8_0, "-p", "a", "-n", 0],
        ["quantize", tiny_checkpoint, "--dry-run"],
        ["plan", tiny_q8_0],
    ):
        assert note in run(*line, "-t", 3).stderr
        assert "Note" not in run(*line, "-t", 2).stderr


# --- Wrong input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "\n"])
def test_an_empty_pipe_is_no_prompt(tiny_q8_0: Path, text: str) -> None:
    refused(run("generate", "-m", tiny_q8_0, input=text), "standard input, found none: -p '' begins from nothing")
    assert run("generate", "-m", tiny_q8_0, "-p", "", "-n", 1, input=text).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["unknown"], "unknown"),
        (["--unknown"], "--unknown"),
        (["generate", "--unknown"], "generate --help"),
        (["generate", "-n", "-1", "-p", "a"], "-n"),
        (["generate", "-n", "x", "-p", "a"], "-n"),
        (["generate", "-t", "0", "-p", "a"], "-t"),
        (["generate", "-c", "0", "-p", "a"], "-c"),
        (["generate", "--kv-type", "q4_0", "-p", "a"], "q4_0"),
        (["generate", "-p", "a", "extra"], "extra"),
        (["generate", "-f", "missing.txt"], "missing.txt"),
        (["generate", "-f", "."], "directory"),
        (["generate", "-p", "a", "-f", __file__], "found both"),
        (["generate", "-m", "missing.gguf", "-p", "a"], "missing.gguf"),
        (["generate", "-m", ".", "-p", "a"], "found a directory"),
        (["generate", "-m", __file__, "-p", "a"], "GGUF"),
    ],
)
def test_wrong_command_lines_are_refused_in_one_line(arguments: list[str], word: str) -> None:
    refused(run(*arguments), word)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--temperature", "-1"),
        ("--temperature", "nan"),
        ("--top-p", "2"),
        ("--top-k", "-1"),
        ("--seed", "-1"),
        ("--stop", ""),
        ("-c", "9999"),
    ],
)
def test_parameters_out_of_range_are_refused_in_one_line(tiny_q8_0: Path, option: str, value: str) -> None:
    refused(run("generate", "-m", tiny_q8_0, "-p", "a", option, value), "expected")


def test_prompts_that_are_not_utf8_are_refused_in_one_line(tiny_q8_0: Path, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait")
    refused(run("generate", "-m", tiny_q8_0, "-f", tmp_path / "latin.txt"), "0xe9 at offset 3", "latin.txt")
    refused(run("generate", "-m", tiny_q8_0, input=b"\xff"), "0xff at offset 0", "standard input")
    process = subprocess.run([*COMMAND, "generate", "-m", tiny_q8_0, "-p", b"caf\xe9"], capture_output=True, text=True)
    assert (process.returncode, process.stdout) == (2, "")
    assert re.fullmatch(r"Error: [^\n]*UTF-8[^\n]*\n", process.stderr)


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(tiny_q8_0: Path) -> None:
    refused(run("generate", "-m", tiny_q8_0, "-c", 8, "-p", PROMPT * 3), "at most 8 tokens")
    refused(run("generate", "-m", tiny_q8_0, input=b"Once upon a time. " * 100_000), "at most 2048 tokens")


# --- Processes ----------------------------------------------------------------------------------------------------


def start(*arguments: object, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*COMMAND, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def test_pieces_arrive_as_they_come_and_ctrl_c_keeps_them(endless: Path) -> None:
    process = start("generate", "-m", endless, "-c", 1 << 16, "-p", PROMPT, "--seed", 1)
    assert process.stdout is not None
    first = b""
    while len(first) < 40:  # several tokens, long before the end
        first += os.read(process.stdout.fileno(), 40)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)  # it would write for minutes
    assert process.returncode == 130
    assert (first + out).endswith(b"\n")
    line = err.decode().removesuffix("\n")
    assert line.endswith(" (interrupted)")
    match = SUMMARY.fullmatch(line.removesuffix(" (interrupted)"))
    assert match is not None
    assert int(match[2]) > 0


def shown_by(*arguments: object) -> str:
    """What a command shows on a terminal that is its stderr."""
    code, shown = in_terminal(*arguments)
    assert code == 0
    return shown


def test_long_work_shows_a_bar_in_a_terminal(endless: Path, tmp_path: Path) -> None:
    text = tmp_path / "long.txt"
    text.write_text("a " * 3000)
    shown = shown_by("generate", "-m", endless, "-f", text, "-n", 1)
    assert re.search(r"\rprompt: +\d+%.*3\.00k", shown)
    assert re.search(r"\r +\rprompt: 3002 tokens", shown)  # the bar has gone
    assert "prompt: 100%" not in shown_by("generate", "-m", endless, "-p", "a", "-n", 1)
    assert "1/1 [" in shown_by("bench", "--prompt-tokens", 4, "-n", 1, "-r", 1)
    assert "100%" in shown_by("perplexity", "-m", endless, "-f", text)


def test_ctrl_c_ends_a_long_prompt(endless: Path, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("a " * 20_000)
    line = ["generate", "-m", endless, "-c", 1 << 16, "-t", 1, "-f", tmp_path / "long.txt"]
    session = Session(*line, shell=f'exec "$0" "$@" > {tmp_path}/out')
    try:
        session.until("/20.0k")  # the bar of the prompt
        session.type("\x03")
        code, shown = session.end()
    finally:
        session.kill()
    assert (code, (tmp_path / "out").read_bytes()) == (130, b"\n")
    assert "prompt: 20002 tokens; nothing generated (interrupted)\r\n" in shown


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_signals_leave_no_unfinished_file(endless: Path, tmp_path: Path, number: signal.Signals) -> None:
    process = start(
        "perplexity", "-m", endless, "-c", 8192, "-t", 1, "--save-base", tmp_path / "b", stdin=subprocess.PIPE
    )
    assert process.stdin is not None
    process.stdin.write(b"a " * 20_000)
    process.stdin.close()
    process.stdin = None
    deadline = time.monotonic() + 30
    while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [path.name[0] for path in tmp_path.iterdir()] == ["."]
    process.send_signal(number)
    out, _ = process.communicate(timeout=20)
    assert (process.returncode, out) == (128 + number, b"")
    assert list(tmp_path.iterdir()) == []


def test_commands_run_by_a_program_leave_its_signals_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert run("--version").exit_code == 0
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_reader_that_leaves_is_no_error(endless: Path) -> None:
    process = start("generate", "-m", endless, "-c", 1 << 16, "-p", PROMPT)
    assert process.stdout is not None
    os.read(process.stdout.fileno(), 1)
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.wait(10)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_one_line(tiny_q8_0: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        process = subprocess.run(
            [*COMMAND, "generate", "-m", tiny_q8_0, "-p", PROMPT, "-n", "5"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert process.returncode == 2
    assert re.fullmatch(rf"Error: [^\n]*{re.escape(os.strerror(errno.ENOSPC))}[^\n]*\n", process.stderr)


def test_in_a_terminal_without_a_prompt_it_says_what_to_do(tiny_q8_0: Path) -> None:
    master, slave = pty.openpty()
    try:
        process = subprocess.run(
            [*COMMAND, "generate", "-m", tiny_q8_0], stdin=slave, capture_output=True, text=True, timeout=20
        )
    finally:
        os.close(master)
        os.close(slave)
    assert (process.returncode, process.stdout) == (2, "")
    assert re.fullmatch(r"Error: no text[^\n]*-p TEXT[^\n]*\n", process.stderr)


@pytest.mark.parametrize("command", [["generate"], ["tokenize"], ["perplexity"], ["calibrate", "-o", "x.gguf"]])
def test_a_text_is_not_read_from_a_device(command: list[str]) -> None:
    """It might never end."""
    result = run(*command, "-f", "/dev/zero")
    assert result.exit_code != 0
    assert "/dev/zero: expected a text, found a device" in result.stderr or "/dev/zero" in str(result.exception)
