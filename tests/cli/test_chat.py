"""`pymixtral chat`: conversations on terminals."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pymixtral import Mixtral
from pymixtral.demo import demo_chat_path
from pymixtral.files.gguf import GGUFFile
from pymixtral.quantize import quantize
from support.adapter_files import write_adapter
from support.chats import CUT, FIRST, LINE, SECOND, answer, shown
from support.checkpoints import Shape, make_checkpoint
from support.command_line import refused, run
from support.conversations import told
from support.ggufs import rewrite
from support.paths import DATA
from support.terminal import Session

HOSTILE = "\x1b[2J\x9b31m\x7f\u202e\u2066"
SHOWN = HOSTILE.encode("unicode_escape").decode()
HINT = "/help lists the commands, Ctrl-D leaves.\r\n"
CTRL_C, CTRL_D = "\x03", "\x04"

Start = Callable[..., Session]


@pytest.fixture(scope="module")
def demo() -> Iterator[Mixtral]:
    with Mixtral(demo_chat_path()) as model:
        yield model


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a conversation in an empty folder, and waits for its prompt."""
    sessions = []

    def begin(*arguments: object) -> Session:
        session = Session("chat", *arguments, cwd=tmp_path)
        sessions.append(session)
        session.until(HINT)
        session.until("> ")
        return session

    yield begin
    for session in sessions:
        session.kill()


def say(session: Session, line: str) -> str:
    """What is shown between a typed line and the next prompt."""
    session.type(line + "\n")
    session.until(line + "\r\n")
    return session.until("\r\n> ").removesuffix("\r\n> ").replace("\r\n", "\n")


def leave(session: Session) -> None:
    session.type(CTRL_D)
    assert session.end() == (0, "\r\n")


def test_a_conversation_is_that_of_the_python_interface(start: Start, demo: Mixtral, tmp_path: Path) -> None:
    session = start(*LINE)
    messages: list[dict[str, Any]] = []
    for question in (FIRST, SECOND, "And then?"):
        messages.append({"role": "user", "content": question})
        found = say(session, question)
        messages.append({"role": "assistant", "content": answer(demo, messages)})
        assert found.replace(CUT + "\n", "") == shown(messages[-1]["content"])
    assert "6 messages" in say(session, "/save talk.json")
    leave(session)
    assert json.loads((tmp_path / "talk.json").read_text(encoding="utf-8")) == messages


def test_the_history_stays_in_the_prefix_cache(start: Start) -> None:
    session = start(*LINE)
    say(session, FIRST)
    say(session, SECOND)
    stats = say(session, "/stats")
    found = re.search(r"conversation: 4 messages\ncontext: (\d+) of 2048 tokens, (\d+) of them from the cache\n", stats)
    assert found
    prompt = re.search(r"^prompt: (\d+) tokens", stats, re.M)
    assert prompt
    assert int(found[2]) > int(prompt[1]) - 25  # all but the new message and the last token of the answer
    assert re.search(r"^generated: \d+ tokens, [\d.]+ tokens/s", stats, re.M)


def test_retry_takes_another_seed_and_edit_another_message(start: Start, demo: Mixtral, tmp_path: Path) -> None:
    session = start(*LINE)
    first, again, third = (say(session, line) for line in (FIRST, "/retry", "/retry"))
    for i, found in enumerate((first, again, third)):
        assert found.replace(CUT + "\n", "") == shown(answer(demo, told(FIRST), seed=5 + i))
    assert len({first, again, third}) == 3
    edited = say(session, f"/edit {SECOND}")
    assert edited.replace(CUT + "\n", "") == shown(answer(demo, told(SECOND)))
    session.type("/edit\n")
    session.until(f"> {SECOND}")  # is typed already
    session.type(" And why?\n")
    session.until("And why?\r\n")
    session.until("\r\n> ")
    say(session, "/save t")
    leave(session)
    messages = told(f"{SECOND} And why?")
    assert json.loads((tmp_path / "t").read_text(encoding="utf-8")) == told(
        messages[0]["content"], answer(demo, messages)
    )


def test_messages_of_several_lines(start: Start, tmp_path: Path) -> None:
    session = start("-n", 1)
    for typed in (["one\\", "two\\", "three"], ['"""', "/help", 'end"""'], ['"""in one line"""'], ['"""a', "b", '"""']):
        for line in typed[:-1]:
            session.type(line + "\n")
            session.until(line + "\r\n")
            session.until(". ")
        say(session, typed[-1])
    say(session, "/save t")
    leave(session)
    messages = json.loads((tmp_path / "t").read_text(encoding="utf-8"))
    assert [message["content"] for message in messages if message["role"] == "user"] == [
        "one\ntwo\nthree",
        "/help\nend",
        "in one line",
        "a\nb",
    ]


def test_ctrl_c_stops_the_answer_and_keeps_what_came(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYMIXTRAL_ISA", "scalar")  # slow enough to be stopped
    session = start("--min-tokens", 5000, "-n", 5000, "--seed", 1)
    session.type(FIRST + "\n")
    session.until(FIRST + "\r\n")
    first = session.until(" ")
    session.type(CTRL_C)
    assert session.until("\r\n> ").endswith("\r\nStopped; /retry answers again.\r\n\r\n> ")
    say(session, "/save t")
    kept = json.loads((tmp_path / "t").read_text(encoding="utf-8"))
    assert [message["role"] for message in kept] == ["user", "assistant"]
    assert kept[1]["content"].startswith(first)
    assert len(kept[1]["content"]) < 2000
    session.type("/retry\n")  # goes on as if the answer had ended by itself
    session.until("/retry\r\n")
    session.until(" ")
    session.type(CTRL_C)
    session.until("\r\n> ")
    session.type("half a line")
    session.until("half a line")
    session.interrupt()
    session.until(HINT)
    session.until("> ")
    session.interrupt()
    session.until(HINT)
    session.until("> ")
    leave(session)


def test_ctrl_c_leaves_a_message_of_several_lines_and_ctrl_d_leaves_there_too(start: Start) -> None:
    session = start("-n", 1)
    session.type('"""\n')
    session.until(". ")
    session.interrupt()
    session.until(HINT)
    session.until("> ")
    session.type('"""\n')
    session.until(". ")
    leave(session)


def test_a_signal_to_end_ends_the_program(start: Start) -> None:
    session = start()
    session.asleep()
    os.kill(session.pid, signal.SIGTERM)
    assert session.end()[0] == 143


def test_system_and_reset(start: Start, demo: Mixtral, tmp_path: Path) -> None:
    session = start(*LINE, "--system", "Be brief.")
    with_system = [{"role": "system", "content": "Be brief."}, *told(FIRST)]
    assert say(session, FIRST).replace(CUT + "\n", "") == shown(answer(demo, with_system))
    assert say(session, "/reset") == "A new conversation."
    assert say(session, FIRST).replace(CUT + "\n", "") == shown(answer(demo, with_system))
    assert say(session, "/system") == "No system text; it was: Be brief."
    assert say(session, "/system") == "No system text."
    assert say(session, "/reset") == "A new conversation."
    assert say(session, FIRST).replace(CUT + "\n", "") == shown(answer(demo, told(FIRST)))
    assert say(session, "/system Talk.") == "System text: Talk."
    say(session, "/save t")
    leave(session)
    assert json.loads((tmp_path / "t").read_text(encoding="utf-8"))[0] == {"role": "system", "content": "Talk."}


def test_save_and_load_go_on_where_it_was(start: Start, demo: Mixtral, tmp_path: Path) -> None:
    session = start(*LINE)
    say(session, FIRST)
    assert say(session, "/save a talk.json") == "Saved 2 messages in a talk.json."
    leave(session)
    again = start(*LINE)
    assert say(again, "/load a talk.json") == "Going on after 2 messages."
    found = say(again, SECOND)
    messages = told(FIRST, answer(demo, told(FIRST)), SECOND)
    assert found.replace(CUT + "\n", "") == shown(answer(demo, messages))
    assert say(again, "/save") == "Saved 4 messages in a talk.json."
    (tmp_path / "other").write_text("mine", encoding="utf-8")
    assert "other" in say(again, "/save other")
    assert (tmp_path / "other").read_text(encoding="utf-8") == "mine"
    assert "expected messages as JSON" in say(again, "/load other")
    assert "expected a file" in say(again, "/load missing")
    assert "expected the name of a file" in say(again, "/load")
    assert "conversation: 4 messages" in say(again, "/stats")
    leave(again)


def test_what_makes_no_sense_is_a_line_and_nothing_is_lost(start: Start) -> None:
    session = start("-n", 1)
    assert "did you mean /retry?" in say(session, "/rety")
    assert "found /quit: Ctrl-D leaves; a message" in say(session, "/quit")
    assert "there are /help, /system" in say(session, "/zzz")
    for line in ("/retry", "/edit x", "/save t"):
        assert re.fullmatch(r"expected [^\n]+", say(session, line))
    assert "/save [FILE]" in say(session, "/help")
    assert "conversation: 0 messages" in say(session, "/stats")
    session.type("  \n")
    session.until("\r\n> ")
    assert "expected a file" in say(session, "/load ~nobody-of-this-name/talk")
    say(session, FIRST)
    assert "conversation: 2 messages" in say(session, "/stats")
    leave(session)


def test_routing_shows_the_experts_of_the_last_answer(start: Start, demo: Mixtral) -> None:
    session = start(*LINE)
    assert "found none yet" in say(session, "/routing")
    say(session, FIRST)
    found = say(session, "/routing").splitlines()
    tokens = demo.chat(told(FIRST), max_tokens=40, seed=5).completion.tokens
    experts = demo.routing([*demo.chat_format().ids(told(FIRST)), *tokens]).experts[-len(tokens) :]
    assert re.fullmatch("expert( +[0-7]){8}", found[0])
    assert len(found) == demo.config.n_layers + 2
    assert max(map(len, found)) < 80
    for i, line in enumerate(found[1:-1]):
        layer, *percents = map(int, re.findall(r"\d+", line))
        answer = experts[:, i].ravel().tolist()
        assert layer == i
        assert percents == [round(100 * answer.count(expert) / len(answer)) for expert in range(8)]
    leave(session)


def test_an_adapter_is_switched_between_answers(start: Start, tmp_path: Path) -> None:
    with Mixtral(demo_chat_path(), n_ctx=256) as model:
        for i, name in enumerate("ab"):
            model.load_adapter(name, write_adapter(tmp_path / f"{name}.gguf", model.config, i))
        chosen: list[Any] = [{"a": 1, "b": 2}, {"b": 0.5}, {}, {"a": 1, "b": -1}]
        expected = [answer(model, told(FIRST), adapter=adapter) for adapter in chosen]

        def written(scales: dict[str, float]) -> str:
            adapters = model.core.factory.adapters
            return f"Answering with {adapters.written(adapters.chosen(scales))}."

        assert "the adapter 'b' of scale -1" in written({"a": 1, "b": -1})
        session = start(*LINE, "--adapter", f"{tmp_path}/a.gguf", "--adapter", f"{tmp_path}/b.gguf:2")
        assert say(session, FIRST).replace(CUT + "\n", "") == shown(expected[0])
        for typed, told_back, text in (
            ("/adapter b:0.5", "Answering with the adapter 'b' of scale 0.5.", expected[1]),
            ("/adapter", "Answering without an adapter; there are a, b.", expected[2]),
            ("/adapter a b:-1", written({"a": 1, "b": -1}), expected[3]),
        ):
            assert say(session, typed) == told_back
            say(session, "/reset")
            assert say(session, FIRST).replace(CUT + "\n", "") == shown(text)
        assert "found 'c': load it; loaded now: 'a', 'b'" in say(session, "/adapter c")
        assert "expected NAME:SCALE with a number" in say(session, "/adapter a:x")
        assert say(session, FIRST).replace(CUT + "\n", "")  # the conversation goes on
        leave(session)
    session = start("-n", 1)
    assert say(session, "/adapter x") == "No adapter is loaded; --adapter loads one at the start."
    leave(session)


def test_a_dense_model_routes_nothing(start: Start, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "hf", Shape(n_experts=0, n_vocab=4096), seed=1)
    shutil.copy(DATA / "tiny-mixtral" / "tokenizer.model", tmp_path / "hf")
    quantize(tmp_path / "hf", tmp_path / "m.gguf", "f16", progress=False)
    session = start("-m", tmp_path / "m.gguf", "--chat-format", "mistral-v1")
    assert say(session, "/routing") == "The model is dense: it has no experts to choose from."
    leave(session)


def test_a_full_context_is_named_with_the_way_out(start: Start) -> None:
    session = start("-c", 64, "--min-tokens", 100, "--seed", 1)
    assert "The context of 64 tokens is full; --context makes it longer, up to 2048." in say(session, FIRST)
    routing = say(session, "/routing")
    assert "Percent of what went to each expert" in routing
    assert say(session, SECOND) == (
        "The conversation is longer than the context of 64 tokens: /reset begins a new one, "
        "--context makes it longer, up to 2048.\n"
    )
    assert say(session, "/routing") == routing  # still of the answer before
    say(session, "/reset")
    assert "longer than" not in say(session, SECOND)
    leave(session)


def test_the_tab_key_completes_commands(start: Start) -> None:
    session = start()
    session.type("/st\t\n")
    session.until("/stats")
    session.until("conversation: 0 messages")
    session.until("> ")
    leave(session)


def test_answers_may_go_into_a_file(tmp_path: Path, demo: Mixtral) -> None:
    """The prompt is shown on standard error then."""
    script = f'exec "$0" "$@" > {tmp_path}/answers'
    session = Session("chat", *LINE, cwd=tmp_path, shell=script)
    try:
        session.until("> ")
        session.type(FIRST + "\n")
        session.until("> ")
        session.type("/edit\n")
        session.until("> ")
        session.type(SECOND + "\n")
        session.until("> ")
        session.type(CTRL_D)
        assert session.end()[0] == 0
    finally:
        session.kill()
    expected = [shown(answer(demo, told(question))) for question in (FIRST, SECOND)]
    assert (tmp_path / "answers").read_text(encoding="utf-8") == "".join(expected)


# --- Text of strangers --------------------------------------------------------------------------------------------


def test_nothing_hostile_reaches_the_terminal(tmp_path: Path) -> None:
    model = tmp_path / f"{HOSTILE}.gguf"
    model.symlink_to(demo_chat_path())
    (tmp_path / f"{HOSTILE}.json").write_text(json.dumps(told(HOSTILE, HOSTILE, f"{HOSTILE}?")), encoding="utf-8")
    (tmp_path / "broken.json").write_text(json.dumps([{"role": HOSTILE}]), encoding="utf-8")
    session = Session("chat", "-m", model, "--system", f"a{HOSTILE}", *LINE, cwd=tmp_path)
    try:
        text = session.until(HINT)
        assert f"{SHOWN}.gguf, format mistral-v1" in text
        session.until("> ")
        for line in ("/system", "/load broken.json", "/save /x", f"/load {SHOWN}.json"):
            text += say(session, line)
        # the name, typed with the key that takes the next one as it is
        session.type("/load " + "".join(f"\x16{c}" if c < " " or c == "\x7f" else c for c in f"{HOSTILE}.json") + "\n")
        session.until("Going on after 3 messages.")
        session.until("> ")
        session.type("/edit\n")
        text += session.until(f"{SHOWN}?")
        session.type("\n")
        session.until("\r\n> ")
        text += say(session, "/stats")
        session.type(CTRL_D)
        assert session.end()[0] == 0
    finally:
        session.kill()
    assert f"it was: a{SHOWN}" in text
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)


def test_an_answer_is_escaped_on_a_terminal_alone(tmp_path: Path, start: Start) -> None:
    with GGUFFile(demo_chat_path()) as file:
        pieces, types = (file.metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type"))
    assert not isinstance(pieces, int | float | str)
    assert not isinstance(types, int | float | str)
    hostile = [
        f"{HOSTILE}{i}" if kind == 1 and i > 2000 else str(piece)
        for i, (piece, kind) in enumerate(zip(pieces, types, strict=True))
    ]
    model = rewrite(demo_chat_path(), tmp_path / "m.gguf", keys={"tokenizer.ggml.tokens": hostile})
    piped = run("chat", "-m", model, "-p", FIRST, *LINE).stdout
    assert HOSTILE in piped
    session = start("-m", model, *LINE)
    assert say(session, FIRST).replace(CUT + "\n", "") == piped.replace(HOSTILE, SHOWN)
    leave(session)


def test_answers_have_the_form_that_is_asked_for(start: Start, demo: Mixtral, tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"legs": {"enum": [2, 4]}}, "required": ["legs"]}
    schema["additionalProperties"] = False
    (tmp_path / "schema.json").write_text(json.dumps(schema), encoding="utf-8")
    result = run("chat", "--json-schema", tmp_path / "schema.json", "--seed", 1, input=f"{FIRST}\n{SECOND}\n")
    first, second = map(json.loads, result.stdout.splitlines())
    assert {first["legs"], second["legs"]} <= {2, 4}
    session = start("--choice", "yes", "--choice", "no", "--seed", 1)
    expected = demo.chat(told(FIRST), choice=["yes", "no"], seed=1).content
    assert say(session, FIRST) == f"{expected}\n"
    assert say(session, "/retry") in ("yes\n", "no\n")
    leave(session)
    ask = ["chat", "-m", demo_chat_path(), "-p", FIRST]
    refused(run(*ask, "--choice", "a", "--regex", "b"), "--regex and --choice")
    refused(run(*ask, "--regex", "("), "expected --regex to be a grammar")
    (tmp_path / "schema.json").write_text('{"type": "hiccup"}', encoding="utf-8")
    refused(run(*ask, "--json-schema", tmp_path / "schema.json"), "--json-schema", "hiccup")
    (tmp_path / "schema.json").write_text("none", encoding="utf-8")
    refused(run(*ask, "--json-schema", tmp_path / "schema.json", "-m", tmp_path / "none"), "no JSON")
