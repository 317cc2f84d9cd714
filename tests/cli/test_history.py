"""The messages of a conversation: saved, loaded, taken back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pymixtral import InvalidArgumentError, OutputError
from pymixtral.cli.history import History
from support.conversations import told

CONTENT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_is_saved_is_loaded(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    history = History(data.draw(CONTENT))
    for _ in range(data.draw(st.integers(1, 4))):
        history.ask(data.draw(CONTENT))
        history.answer(data.draw(CONTENT))
    path = tmp_path_factory.mktemp("talk") / "talk.json"
    for _ in range(2):  # its own file is replaced
        history.save(path)
    again = History("other")
    again.load(path)
    assert again.messages == history.messages
    assert again.question == history.question
    again.save()
    with pytest.raises(OutputError):
        History("x").save(path)
    again.reset()
    assert again.messages == ([{"role": "system", "content": history.system}] if history.system else [])


def test_a_message_without_an_answer_is_replaced_and_answered_again() -> None:
    history = History()
    for change in (history.take_back, history.save, lambda: history.ask("caf\udce9"), lambda: History("\ud800")):
        with pytest.raises(InvalidArgumentError, match="expected"):
            change()
    history.ask("a")
    history.answer("")
    assert history.messages == told("a")
    history.ask("b")
    history.answer("c")
    history.take_back()
    assert history.messages == told("b")
    history.system = "s"
    history.system = "t"
    assert [m["content"] for m in history.messages] == ["t", "b"]
    history.system = ""
    assert history.messages == told("b")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "JSON"),
        (b"\xff", "JSON"),
        (b"[" * 100_000, "JSON"),
        (b"{}", "list of messages"),
        (b"[]", "list of messages"),
        (b'["a"]', "messages[0]"),
        (b'[{"role": "user", "content": null}]', "messages[0].content"),
        (b'[{"role": "user", "content": "\\ud800"}]', "Unicode"),
        (b'[{"role": "user", "content": [{"type": "image_url"}]}]', "'text'"),
        (
            json.dumps(
                [
                    *told("a"),
                    {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f"}}]},
                    {"role": "tool", "content": "1", "tool_call_id": "1"},
                ]
            ).encode(),
            "calls of tools",
        ),
    ],
)
def test_a_file_that_is_no_conversation_is_refused(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "talk"
    path.write_bytes(content)
    history = History("s")
    history.ask("a")
    with pytest.raises(InvalidArgumentError) as error:
        history.load(path)
    assert words in str(error.value)
    assert str(path) in str(error.value)
    assert [m["content"] for m in history.messages] == ["s", "a"]
    assert history.path is None


def test_a_conversation_with_parts_and_another_name_of_the_system_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "talk"
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    path.write_text(json.dumps([{"role": "developer", "content": "s"}, {"role": "user", "content": parts}]))
    history = History()
    history.load(path)
    assert (history.system, history.question) == ("s", "a\n\nb")
