"""`pymixtral generate --prompts`: a process that is killed, interrupted, or given something wrong."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from pymixtral import Mixtral
from support.command_line import COMMAND, refused, run
from support.terminal import in_terminal

N = 300


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Prompts that take a second or two."""
    path = tmp_path / "prompts.jsonl"
    lines = [{"prompt": f"Once upon a time {i}", "id": i, "seed": i, "max_tokens": 5 + i % 30} for i in range(N)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def line(model: Path, prompts: Path, *more: object) -> list[object]:
    return ["generate", "-m", model, "--prompts", prompts, "-o", prompts.with_name("texts.jsonl"), "-c", 128, *more]


def read(prompts: Path) -> list[dict[str, Any]]:
    """The records, without what depends on the moment."""
    records = [json.loads(text) for text in prompts.with_name("texts.jsonl").read_text(encoding="utf-8").splitlines()]
    for record in records:
        record.get("usage", {}).pop("cached_tokens", None)
    return records


def started(arguments: list[object], prompts: Path, n_bytes: int) -> subprocess.Popen[str]:
    """A process that has written some bytes of its texts."""
    command = [*COMMAND, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    output = prompts.with_name("texts.jsonl")
    deadline = time.monotonic() + 60
    while not (output.exists() and output.stat().st_size >= n_bytes):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return process


def test_texts_of_many_prompts(tiny_q8_0: Path, prompts: Path) -> None:
    result = run(*line(tiny_q8_0, prompts, "--temperature", 0.5, "--ignore-eos", "-n", 7))
    assert (result.exit_code, result.stderr) == (0, "")
    first, second = result.stdout.splitlines()
    assert first == f"{prompts.with_name('texts.jsonl')}: {N} prompts"
    n_tokens = sum(5 + i % 30 for i in range(N))
    assert re.fullmatch(rf"generated: {n_tokens} tokens in [\d.]+ s, [\d.]+ tokens/s", second)
    records = read(prompts)
    with Mixtral(tiny_q8_0, n_ctx=128) as model:
        for i in (0, 17, N - 1):
            expected = model.generate(
                f"Once upon a time {i}", seed=i, max_tokens=5 + i % 30, temperature=0.5, ignore_eos=True
            )
            assert (records[i]["id"], records[i]["text"]) == (i, expected.text)


def test_a_program_that_was_killed_goes_on_with_the_same_texts(tiny_q8_0: Path, prompts: Path) -> None:
    output = prompts.with_name("texts.jsonl")
    arguments = line(tiny_q8_0, prompts)
    assert run(*arguments).exit_code == 0
    expected = read(prompts)
    output.unlink()
    n_before = 0
    for n_bytes in (1, 20_000, 50_000):
        process = started(arguments, prompts, n_bytes)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        data = output.read_bytes()
        assert n_before <= data.count(b"\n") < N
        n_before = data.count(b"\n")
        with output.open("ab") as file:  # a record that was written in part
            if data.endswith(b"\n"):
                file.write(json.dumps(expected[n_before], ensure_ascii=False).encode()[:30])
    result = run(*arguments)
    assert result.exit_code == 0
    assert f": {N} prompts, {n_before} of them from before\n" in result.stdout
    assert read(prompts) == expected


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_an_interrupt_says_how_many_are_done_and_how_to_go_on(
    tiny_q8_0: Path, prompts: Path, number: signal.Signals
) -> None:
    arguments = line(tiny_q8_0, prompts, "--temperature", 0)
    process = started(arguments, prompts, 10_000)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (128 + number, "")
    n_done = len(read(prompts))
    assert 0 < n_done < N
    if number is signal.SIGINT:
        assert err == f"{n_done} of {N} prompts are done; the same command goes on from there.\n"
    else:
        assert err == ""
    found = json.loads(run(*arguments, "--json").stdout)
    assert (found["prompts"], found["done"], found["resumed"], found["failed"]) == (N, N, n_done, 0)
    assert list(found) == ["output", "prompts", "done", "resumed", "failed", "generated_tokens", "seconds"]
    assert len(read(prompts)) == N


def test_a_prompt_that_is_too_long_is_an_error_in_its_record(tiny_q8_0: Path, prompts: Path) -> None:
    prompts.write_text(json.dumps({"prompt": "a " * 500}) + '\n{"prompt": "b", "max_tokens": 2}\n')
    for before in ("", ", 2 of them from before"):
        result = run(*line(tiny_q8_0, prompts))
        assert result.exit_code == 1
        first, *_, last = result.stdout.splitlines()
        assert first == f"{prompts.with_name('texts.jsonl')}: 2 prompts{before}"
        assert last == "without a text: 1 of them, whose records say why"
    failed, fine = read(prompts)
    assert failed["error"]["type"] == "ContextLengthError"
    assert fine["finish_reason"] == "length"


def test_a_wrong_line_is_named_in_the_words_of_the_file(tiny_q8_0: Path, prompts: Path) -> None:
    prompts.write_text('{"prompt": "a"}\n{"prompt": "a", "max_tokens": -1}\n')
    refused(run(*line(tiny_q8_0, prompts)), f"{prompts}, line 2: expected max_tokens to be an integer of at least 0")
    prompts.write_text('{"prompt": "a"}\n{"prompt": "a"')
    refused(run(*line(tiny_q8_0, prompts)), f"{prompts}, line 2: expected a JSON object in one line")
    assert not prompts.with_name("texts.jsonl").exists()
    refused(run(*line(tiny_q8_0, prompts, "--logit-bias", "4096=1")), "in --logit-bias, found 4096")


def test_a_file_of_something_else_is_kept_and_replaced_with_force(tiny_q8_0: Path, prompts: Path) -> None:
    prompts.write_text('{"prompt": "a", "max_tokens": 2}\n')
    output = prompts.with_name("texts.jsonl")
    output.write_text("my notes")
    refused(run(*line(tiny_q8_0, prompts)), f"{output}, line 1: ", "replace it with --force")
    assert output.read_text() == "my notes"
    assert run(*line(tiny_q8_0, prompts, "--force")).exit_code == 0
    refused(run(*line(tiny_q8_0, prompts, "--seed", 1)), "choose another name, or replace it with --force")
    for place in (prompts, tiny_q8_0):
        refused(run("generate", "-m", tiny_q8_0, "--prompts", prompts, "-o", place, "--force"), "file of its own")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompts", __file__], "expected a file for the texts of --prompts, found none: name one with -o"),
        (["--prompts", __file__, "-o", "x", "-p", "a"], "expected --prompts or -p, found both"),
        (["--prompts", __file__, "-o", "x", "-f", __file__], "expected --prompts or -f, found both"),
        (["-p", "a", "-o", "x"], "expected -o with --prompts"),
        (["-p", "a", "--force"], "expected --force with --prompts"),
        (["-p", "a", "--ray"], "expected --ray with --prompts"),
        (["-p", "a", "--logprobs", "3"], "expected --logprobs with --json or --prompts"),
        (["-p", "a", "--prompt-logprobs", "3"], "expected --prompt-logprobs with --json or --prompts"),
        (["--prompts", "missing.jsonl", "-o", "x"], "missing.jsonl"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments: list[str], words: str) -> None:
    refused(run("generate", *arguments), words)


def test_a_bar_shows_how_many_are_done_and_the_speed(tiny_q8_0: Path, prompts: Path) -> None:
    prompts.write_text("".join(f'{{"prompt": "Once {i}", "max_tokens": 100}}\n' for i in range(N)))
    code, shown = in_terminal(*line(tiny_q8_0, prompts, "--ignore-eos"))
    assert code == 0
    assert re.search(rf"\d+/{N} \[", shown)
    assert re.search(r"[\d.]+ tokens/s\]", shown)
    assert f"{N}/{N} [" in shown
