"""`pymixtral chat` in pipes: each line is a message, each answer a text or a line of JSON."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pymixtral import Mixtral
from pymixtral.demo import demo_chat_path
from support.chats import CUT, FIRST, LINE, SECOND, answer, shown
from support.command_line import COMMAND, DEMO_NOTE, refused, run
from support.conversations import told


@pytest.fixture(scope="module")
def demo() -> Iterator[Mixtral]:
    with Mixtral(demo_chat_path()) as model:
        yield model


def test_each_line_of_a_pipe_is_a_message(demo: Mixtral) -> None:
    result = run("chat", *LINE, input=f"{FIRST}\n\n  \n{SECOND}\r\n/help")
    one = answer(demo, told(FIRST))
    two = answer(demo, told(FIRST, one, SECOND))
    three = answer(demo, told(FIRST, one, SECOND, two, "/help"))
    assert (result.exit_code, result.stdout) == (0, "".join(map(shown, (one, two, three))))
    assert result.stderr.replace(CUT + "\n", "") == DEMO_NOTE


def test_each_answer_is_a_line_of_json(demo: Mixtral) -> None:
    result = run("chat", *LINE, "--json", input=f"{FIRST}\n{SECOND}\n")
    first, second = map(json.loads, result.stdout.splitlines())
    expected = demo.chat(told(FIRST), max_tokens=40, seed=5)
    assert (first["content"], first["finish_reason"]) == (expected.content, expected.finish_reason)
    assert second["content"] == answer(demo, told(FIRST, first["content"], SECOND))
    assert second["stats"]["cached_tokens"] > first["stats"]["prompt_tokens"]


def test_an_answer_comes_before_the_next_line_is_read() -> None:
    command = [*COMMAND, "chat", "--json", "-n", "9"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        for _ in range(3):
            process.stdin.write(FIRST + "\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["content"]
        process.stdin.close()
        assert process.wait(60) == 0


def test_one_message_and_one_answer(demo: Mixtral, tmp_path: Path) -> None:
    text = f"{FIRST}\n{SECOND}"
    (tmp_path / "text").write_text(text + "\n", encoding="utf-8")
    system = [{"role": "system", "content": "Be brief."}]
    for given_text in (["-p", text], ["-f", tmp_path / "text"]):
        result = run("chat", *LINE, "--system", "Be brief.", *given_text)
        assert (result.exit_code, result.stdout) == (0, shown(answer(demo, [*system, *told(text)])))


def test_ctrl_c_in_a_pipe_ends_the_program() -> None:
    command = [*COMMAND, "chat", "-p", FIRST, "--min-tokens", "5000", "-n", "5000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        first = process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(60) == 130
        assert first
        assert rest.endswith("\n")


def test_what_is_refused(tiny_q8_0: Path) -> None:
    refused(run("chat", "-m", tiny_q8_0, "-p", "a"), "chat format", "mistral-v1")
    refused(run("chat", "-p", "a", "-f", __file__), "found both")
    refused(run("chat", "-p", "a", "--system", "caf\udce9"), "UTF-8")
    refused(run("chat", "--chat-format", "x", "-p", "a"), "mistral-v1")
    refused(run("chat", "-m", demo_chat_path(), input=b"caf\xe9\n"), "0xe9", "line 1")
    refused(run("chat", "-m", demo_chat_path(), "-c", "16", "-p", "a " * 99), "--context")
    assert run("chat", "-m", demo_chat_path(), input="").stdout == ""
    done = subprocess.run(["bash", "-c", '"$@" <&-', "bash", *COMMAND, "chat"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no message" in done.stderr
