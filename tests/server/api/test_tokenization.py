"""Tokens over HTTP are those of Mixtral.tokenize(), in both dialects."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.responses import JSONResponse

from pymixtral.server.api import tokenization
from pymixtral.server.api.tokenization import _json
from support.api_servers import Served

USER = [{"role": "user", "content": "Who are you?"}]
TEXTS = ["", "Once upon a time", " \u4f60\u597d \U0001f600", "</s> is text", "a\n\nb"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("path", ["/tokenize", "/v1/tokenize"])
def test_both_dialects(chat: Served, path: str, text: str) -> None:
    model = chat.model
    assert chat.ok(path, prompt=text) == {
        "count": len(model.tokenize(text)),
        "max_model_len": model.n_ctx,
        "tokens": model.tokenize(text),
    }
    assert chat.ok(path, prompt=text, add_special_tokens=False)["tokens"] == model.tokenize(text, False)
    # llama.cpp's defaults
    assert chat.ok(path, content=text)["tokens"] == model.tokenize(text, False, parse_special=True)
    plain = chat.ok(path, content=text, add_special=True, parse_special=False)
    assert plain["tokens"] == model.tokenize(text)
    strings = chat.ok(path, prompt=text, return_token_strs=True)["token_strs"]
    assert strings == [model.token_piece(id) for id in model.tokenize(text)]


@pytest.mark.parametrize("text", TEXTS)
def test_texts_come_back(chat: Served, text: str) -> None:
    ids = chat.model.tokenize(text)
    for path in ("/detokenize", "/v1/detokenize"):
        assert chat.ok(path, tokens=ids) == {"prompt": text, "content": text}


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_pieces_are_texts_or_bytes(chat: Served, text: str) -> None:
    pieces = chat.ok("/tokenize", content=text, parse_special=False, with_pieces=True)["tokens"]
    data = b"".join(
        piece["piece"].encode() if isinstance(piece["piece"], str) else bytes(piece["piece"]) for piece in pieces
    )
    assert data.decode().removeprefix(" ") == text.removeprefix(" ") or data.decode() == " " + text
    assert [piece["id"] for piece in pieces] == chat.model.tokenize(text, False)


def test_no_answer_is_made_on_the_event_loop(chat: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    loops: list[bool] = []

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            with contextlib.suppress(RuntimeError):  # there is none in this thread
                asyncio.get_running_loop()
                loops.append(True)
            loops.append(False)
            return function(*arguments)

        return call

    for name in ("pieces_of", "spelled", "_json", "JSONResponse"):
        monkeypatch.setattr(tokenization, name, watched(getattr(tokenization, name)))
    chat.ok("/tokenize", content="a", with_pieces=True)
    chat.ok("/apply-template", messages=USER)
    chat.ok("/detokenize", tokens=[5])
    chat.ok("/v1/chat/completions/input_tokens", messages=USER)
    assert loops == [False] * 6


def test_conversations(chat: Served) -> None:
    ids = chat.model.chat_format().ids(USER)
    assert chat.ok("/tokenize", messages=USER)["tokens"] == ids
    for path in ("/apply-template", "/v1/apply-template"):
        assert chat.ok(path, messages=USER) == {"prompt": "<s>[INST] Who are you? [/INST]", "tokens": ids}
    answered = [*USER, {"role": "assistant", "content": "A king."}, *USER]
    prompt = chat.ok("/apply-template", messages=answered)["prompt"]
    assert prompt == "<s>[INST] Who are you? [/INST] A king.</s>[INST] Who are you? [/INST]"
    continued = chat.ok("/apply-template", messages=answered[:2], continue_final_message=True)["prompt"]
    assert continued == "<s>[INST] Who are you? [/INST] A king."


def test_the_tokenizer_describes_itself(chat: Served) -> None:
    for path in ("/tokenizer_info", "/v1/tokenizer_info"):
        info = chat.get(path)
        assert (info["bos_token"], info["eos_token"], info["add_bos_token"]) == ("<s>", "</s>", True)
        assert info["chat_template"] == chat.model.chat_template
        assert info["model_max_length"] == chat.model.n_ctx


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "content": "b"}, "content"),
        ("/tokenize", {"prompt": "a", "parse_special": True}, "parse_special"),
        ("/tokenize", {"content": "a", "add_special_tokens": True}, "add_special_tokens"),
        ("/tokenize", {"prompt": "a", "tools": []}, "tools"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": USER, "chat_template": "x"}, "chat_template"),
        ("/detokenize", {"tokens": [99999]}, "tokens"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
        ("/apply-template", {"messages": [{"role": "assistant", "content": "a"}]}, "messages[0]"),
    ],
)
def test_what_is_refused_names_its_field(chat: Served, path: str, body: Any, param: str) -> None:
    assert chat.refused(path, **body)["param"] == param


@pytest.mark.parametrize("n", [0, 1, 999, 1000, 1001, 2500])
def test_long_answers_are_written_in_parts(n: int) -> None:
    answer = {"count": n, "tokens": [{"id": i, "piece": '\u263a"'} for i in range(n)], "token_strs": ["a"] * n}
    assert _json(answer).encode() == JSONResponse(answer).body
