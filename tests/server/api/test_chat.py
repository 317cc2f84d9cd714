"""POST /v1/chat/completions gives what Mixtral.chat() gives, whole and in pieces."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from support.api_servers import Served

PATH = "/v1/chat/completions"
USER = [{"role": "user", "content": "Who are you?"}]
OPENAI: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "penalty_window": 0}


def text_of(chunks: list[Any], index: int = 0) -> str:
    pieces = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(piece["delta"].get("content") or "" for piece in pieces)


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({}, {}),
        ({"max_tokens": 9}, {"max_tokens": 9}),
        ({"max_tokens": 90, "max_completion_tokens": 7}, {"max_tokens": 7}),
        ({"stop": ["wolf", " the"]}, {"stop": ["wolf", " the"]}),
        ({"temperature": 0, "top_k": 5}, {"temperature": 0, "top_k": 5}),
        ({"response_format": {"type": "text"}}, {}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["a", "b"]}}}},
            {"json_schema": {"enum": ["a", "b"]}},
        ),
        ({"response_format": {"type": "json_object"}, "max_tokens": 20}, {"json_object": True, "max_tokens": 20}),
        ({"n": 3}, {"n": 3}),
    ],
)
def test_the_answer_is_that_of_a_call_in_process(chat: Served, fields: Any, options: Any) -> None:
    body = {"seed": 4, "max_tokens": 40} | fields
    expected = chat.model.chat(USER, **OPENAI | {"seed": 4, "max_tokens": 40} | options)
    answer = chat.ok(PATH, messages=USER, **body)
    ChatCompletion.model_validate(answer, strict=True)
    assert [choice["message"]["content"] for choice in answer["choices"]] == [one.content for one in expected.choices]
    assert [choice["finish_reason"] for choice in answer["choices"]] == [one.finish_reason for one in expected.choices]
    assert answer["usage"]["completion_tokens"] == sum(len(one.completion.tokens) for one in expected.choices)
    chunks = chat.chunks(PATH, messages=USER, **body)
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True)
    for i, one in enumerate(expected.choices):
        mine = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == i]
        assert mine[0]["delta"] == {"role": "assistant", "content": None}
        assert all("role" not in choice["delta"] for choice in mine[1:])
        assert (mine[-1]["delta"], mine[-1]["finish_reason"]) == ({}, one.finish_reason)
        assert all(choice["finish_reason"] is None for choice in mine[:-1])
        assert text_of(chunks, i) == one.content
    assert len({(chunk["id"], chunk["created"]) for chunk in chunks}) == 1


def test_logprobs_are_those_of_the_model_to_the_last_digit(chat: Served) -> None:
    expected = chat.model.chat(USER, seed=4, max_tokens=12, logprobs=2, **OPENAI).completion.logprobs
    assert expected
    body = {"messages": USER, "seed": 4, "max_tokens": 12, "logprobs": True, "top_logprobs": 2}
    content = chat.ok(PATH, **body)["choices"][0]["logprobs"]["content"]
    assert [entry["logprob"] for entry in content] == [token.logprob for token in expected]
    for entry, token in zip(content, expected, strict=True):
        assert [likely["logprob"] for likely in entry["top_logprobs"]] == [logprob for _, logprob in token.top]
        assert entry["bytes"] == (list(chat.model.token_bytes(token.id)) or None)
    chunks = chat.chunks(PATH, **body)
    pieces = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [entry for piece in pieces if piece for entry in piece["content"]] == content
    plain = chat.ok(PATH, messages=USER, seed=4, max_tokens=12, logprobs=True)
    assert [entry["top_logprobs"] for entry in plain["choices"][0]["logprobs"]["content"]] == [[]] * len(content)


def test_an_answer_is_continued(chat: Served) -> None:
    begun = [*USER, {"role": "assistant", "content": "Once upon a"}]
    expected = chat.model.chat(begun, continue_final=True, seed=1, max_tokens=8, **OPENAI)
    for more in ({"continue_final_message": True}, {"continue_final_message": True, "add_generation_prompt": False}):
        answer = chat.ok(PATH, messages=begun, seed=1, max_tokens=8, **more)
        assert answer["choices"][0]["message"]["content"] == expected.content
    prefixed = [*USER, begun[1] | {"prefix": True}]
    assert chat.ok(PATH, messages=prefixed, seed=1, max_tokens=8)["choices"][0]["message"]["content"] == (
        expected.content
    )


def test_parts_of_text_are_one_text(chat: Served) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "Who"}, {"type": "text", "text": "are you?"}]}]
    expected = chat.model.chat(parts, seed=1, max_tokens=5, **OPENAI)
    assert chat.ok(PATH, messages=parts, seed=1, max_tokens=5)["choices"][0]["message"]["content"] == expected.content


def test_ids_of_prompt_and_answer_and_the_clients_own_id(chat: Served) -> None:
    expected = chat.model.chat(USER, seed=1, max_tokens=6, **OPENAI).completion
    body = {"messages": USER, "seed": 1, "max_tokens": 6, "return_token_ids": True, "request_id": "my-1"}
    answer = chat.ok(PATH, **body)
    ids = chat.model.chat_format().ids(USER)
    assert (answer["prompt_token_ids"], answer["choices"][0]["token_ids"]) == (ids, expected.tokens)
    assert answer["id"] == "chatcmpl-my-1"
    chunks = chat.chunks(PATH, **body)
    assert chunks[0]["prompt_token_ids"] == ids
    assert [id for chunk in chunks for id in chunk["choices"][0]["token_ids"]] == expected.tokens
    assert chat.ok("/v1/chat/completions/input_tokens", messages=USER)["input_tokens"] == len(ids)


def test_the_prompts_logprobs(chat: Served) -> None:
    expected = chat.model.chat(USER, max_tokens=1, prompt_logprobs=1).completion.prompt_logprobs
    answer = chat.ok(PATH, messages=USER, max_tokens=1, prompt_logprobs=1)
    for entry, token in zip(answer["prompt_logprobs"], expected or [], strict=True):
        assert token is None or entry[str(token.id)]["logprob"] == token.logprob


def test_usage_ends_a_stream_that_asks_for_it(chat: Served) -> None:
    chunks = chat.chunks(PATH, messages=USER, max_tokens=5, seed=1, stream_options={"include_usage": True})
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == chat.ok(PATH, messages=USER, max_tokens=5, seed=1)["usage"] | {
        "prompt_tokens_details": chunks[-1]["usage"]["prompt_tokens_details"]
    }


def test_the_experts_come_with_the_answer(chat: Served) -> None:
    body = {"messages": USER, "seed": 1, "max_tokens": 5, "return_routing": True}
    whole = chat.ok(PATH, **body)["choices"][0]["routing"]
    pieces = [chunk["choices"][0].get("routing") for chunk in chat.chunks(PATH, **body)]
    assert [id for piece in pieces if piece for id in piece["tokens"]] == whole["tokens"]
    assert whole["n_prompt"] == len(chat.model.chat_format().ids(USER))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"chat_template": "{{ messages }}"}, "chat_template"),
        ({"chat_template_kwargs": {"x": 1}}, "chat_template_kwargs"),
        ({"add_generation_prompt": True, "continue_final_message": True}, "continue_final_message"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        ({"continue_final_message": True}, "messages[0].role"),
        ({"messages": [*USER, {"role": "assistant", "content": "x"}]}, "messages[1]"),
        ({"messages": [*USER, {"role": "tool", "content": "x"}]}, "messages[1]"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"response_format": {"type": "json_object", "schema": {"type": "king"}}}, "response_format"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_refused_names_its_field(chat: Served, fields: Any, param: str, stream: bool) -> None:
    if stream and param == "stream_options":
        return
    assert chat.refused(PATH, **{"messages": USER, "stream": stream, **fields})["param"] == param


@pytest.mark.parametrize("stream", [False, True])
def test_a_conversation_that_is_too_long_is_a_400_with_both_numbers(chat: Served, stream: bool) -> None:
    error = chat.refused(PATH, messages=[{"role": "user", "content": "word " * 3000}], stream=stream)
    assert (error["code"], error["param"], error["n_ctx"]) == (
        "context_length_exceeded",
        "messages",
        chat.model.n_ctx,
    )
    assert error["n_prompt_tokens"] > error["n_ctx"]


def test_a_model_without_a_chat_format_says_so(story: Served) -> None:
    status, answer = story.post(PATH, {"messages": USER})
    assert status in (400, 501)
    assert "format" in answer["error"]["message"]
