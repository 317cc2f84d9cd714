"""Fields of requests: used, refused by name, or in the table of those without effect."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pymixtral import ContextLengthError, InvalidArgumentError, NonFiniteError, UnsupportedError
from pymixtral.server.api.adapters import LoadRequest, UnloadRequest
from pymixtral.server.api.bodies import Body, of_library
from pymixtral.server.api.chat_requests import ChatRequest
from pymixtral.server.api.completions import CompletionRequest
from pymixtral.server.api.fields import IGNORED, REFUSED
from pymixtral.server.api.json_body import parse_json
from pymixtral.server.api.responses_requests import ResponseRequest
from pymixtral.server.api.tokenization import DetokenizeRequest, TemplateRequest, TokenizeRequest
from pymixtral.server.api.vectors import EmbeddingRequest, ScoreRequest
from pymixtral.server.errors import APIError

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}]}
BODIES: dict[type[Body], dict[str, Any]] = {
    CompletionRequest: {"prompt": "a"},
    ChatRequest: CHAT,
    ResponseRequest: {"input": "a"},
    EmbeddingRequest: {"input": "a"},
    ScoreRequest: {"context": "a", "continuations": ["b"]},
    TokenizeRequest: {"prompt": "a"},
    DetokenizeRequest: {"tokens": [1]},
    TemplateRequest: CHAT,
    LoadRequest: {"lora_name": "a", "lora_path": "a.gguf"},
    UnloadRequest: {"lora_name": "a"},
}
TOOL = {"type": "function", "function": {"name": "f"}}


def wrong(kind: type[Body], **body: Any) -> dict[str, Any]:
    with pytest.raises(APIError) as caught:
        kind.read(body)
    assert caught.value.status == 400
    error: dict[str, Any] = caught.value.body["error"]
    return error


@pytest.mark.parametrize("kind", BODIES)
def test_no_field_is_of_two_kinds(kind: type[Body]) -> None:
    assert set(kind.ignored) <= set(IGNORED)
    assert set(kind.refused) <= set(REFUSED)
    names = [*kind.ignored, *kind.refused, *kind.model_fields]
    assert len(names) == len(set(names))


def test_the_tables_have_no_field_that_no_request_has() -> None:
    accepted = {name for kind in BODIES for name in kind.ignored} | {"include_obfuscation"}
    assert accepted == set(IGNORED)
    assert {name for kind in BODIES for name in kind.refused} == set(REFUSED)


@pytest.mark.parametrize("kind", BODIES)
def test_unknown_fields_are_refused_by_name(kind: type[Body]) -> None:
    kind.read(BODIES[kind])
    error = wrong(kind, **BODIES[kind], nonsense=None)
    assert (error["param"], error["code"]) == ("nonsense", "unknown_parameter")


@pytest.mark.parametrize("name", CompletionRequest.refused)
def test_refused_fields_may_be_null(name: str) -> None:
    CompletionRequest.read({"prompt": "a", name: None})
    error = wrong(CompletionRequest, prompt="a", **{name: "x"})
    assert (error["param"], error["code"]) == (name, "unsupported_parameter")
    assert REFUSED[name] in error["message"]


@pytest.mark.parametrize("name", ChatRequest.ignored)
def test_ignored_fields_may_have_any_value(name: str) -> None:
    assert ChatRequest.read({**CHAT, name: {"a": [1]}}) == ChatRequest.read(CHAT)


@pytest.mark.parametrize(
    ("body", "param", "wanted"),
    [
        ({}, "prompt", "expected prompt, found none"),
        ({"prompt": 3}, "prompt", "to be text or a list, found 3"),
        ({"prompt": []}, "prompt", "to be text or a list of the length 1 or more, found []"),
        ({"prompt": [1, "a"]}, "prompt[1]", "to be an integer or a list, found 'a'"),
        ({"prompt": [[1], []]}, "prompt[1]", "a list of the length 1 or more"),
        ({"prompt": [-1]}, "prompt[0]", "greater than or equal to 0"),
        ({"prompt": "a", "temperature": "hot"}, "temperature", "to be a number, found 'hot'"),
        ({"prompt": "a", "temperature": True}, "temperature", "a number"),
        ({"prompt": "a", "n": 0}, "n", "greater than or equal to 1"),
        ({"prompt": "a", "n": 1.5}, "n", "an integer"),
        ({"prompt": "a", "echo": "yes"}, "echo", "true or false"),
        ({"prompt": "a", "logprobs": 21}, "logprobs", "less than or equal to 20"),
        ({"prompt": "a", "stop": [""]}, "stop[0]", "to be a text of the length 1 or more, found ''"),
        ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias.x", "pattern"),
        ({"prompt": "a", "logit_bias": {"1": 101}}, "logit_bias.1", "less than or equal to 100"),
        ({"prompt": "a", "stream_options": {"x": 1}}, "stream_options.x", "that stream_options has"),
        ({"prompt": "a", "request_id": "a\nb"}, "request_id", "pattern"),
        (
            {"prompt": "a", "structured_outputs": {"choice": []}},
            "structured_outputs.choice",
            "a list of the length 1 or more",
        ),
        (
            {"prompt": "a", "response_format": {"type": "xml"}},
            "response_format",
            "an object whose type is one of 'text', 'json_object'",
        ),
        ({"prompt": "a", "response_format": {}}, "response_format", "an object with a type"),
        (
            {"prompt": "a", "response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
            "found none",
        ),
    ],
)
def test_the_field_that_is_wrong_is_named(body: dict[str, Any], param: str, wanted: str) -> None:
    error = wrong(CompletionRequest, **body)
    assert error["param"] == param
    assert wanted in error["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "king", "content": "a"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": "a", "mood": "bad"}]}, "messages[0].mood"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
        ),
        ({**CHAT, "tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({**CHAT, "modalities": ["audio"]}, "modalities[0]"),
    ],
)
def test_the_place_in_a_conversation_is_named(body: dict[str, Any], param: str) -> None:
    assert wrong(ChatRequest, **body)["param"] == param


MANY: Any = [None] * 5000


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (CompletionRequest, {"prompt": MANY}),
        (CompletionRequest, {"prompt": [MANY]}),
        (CompletionRequest, {"prompt": "a", "allowed_token_ids": MANY}),
        (ChatRequest, {"messages": [{"role": "user", "content": [{str(i): 0 for i in range(100)}] * 50}] * 50}),
        (ChatRequest, {**CHAT, "tools": [{str(i): 0 for i in range(500)}] * 100}),
        (ResponseRequest, {"input": [{str(i): 0 for i in range(500)}] * 100}),
        (EmbeddingRequest, {"input": MANY}),
        (ScoreRequest, {"context": MANY, "continuations": ["a"]}),
        (DetokenizeRequest, {"tokens": MANY}),
    ],
)
def test_the_first_errors_end_the_check(kind: type[Body], body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(body)
    assert caught.value.error_count() < 2000


def test_integers_may_be_written_as_floats() -> None:
    body = CompletionRequest.read(parse_json(b'{"prompt": [1.0, 2e0], "max_tokens": 3.0, "seed": -1.0}'))
    assert (body.prompt, body.max_tokens, body.seed) == ([1, 2], 3, -1)


def test_messages_of_answers_may_come_back_with_their_empty_fields() -> None:
    answered = {"role": "assistant", "content": "b", "refusal": None, "annotations": [], "audio": None, "x": {}}
    body = ChatRequest.read({"messages": [*CHAT["messages"], answered, {"role": "user", "content": "c"}]})
    assert body.messages[1].plain() == {"role": "assistant", "content": "b"}


ERRORS = [
    (ContextLengthError("expected prompt of", 9, 4), "context_length_exceeded", "prompt"),
    (InvalidArgumentError("expected token ids from 0 to 9 in logit_bias, found 10"), "invalid_value", "logit_bias"),
    (InvalidArgumentError("expected json_schema to be a grammar"), "invalid_value", "response_format"),
    (InvalidArgumentError("expected min_tokens"), "invalid_value", None),
]


@pytest.mark.parametrize(("error", "code", "param"), ERRORS)
def test_errors_of_the_library_name_the_field(error: Exception, code: str, param: str | None) -> None:
    form = {"type": "json_object"}
    told = of_library(error, CompletionRequest.read({"prompt": "a", "logit_bias": {}, "response_format": form}))
    assert isinstance(told, APIError)
    assert (told.status, told.body["error"]["code"], told.body["error"]["param"]) == (400, code, param)
    if code == "context_length_exceeded":
        assert (told.body["error"]["n_prompt_tokens"], told.body["error"]["n_ctx"]) == (9, 4)


def test_errors_of_the_server_stay_what_they_are() -> None:
    body = ChatRequest.read({**CHAT, "tools": [TOOL]})
    broken, missing = NonFiniteError("x"), UnsupportedError("install llguidance")
    assert of_library(broken, body) is broken
    assert of_library(missing, body) is missing
    told = of_library(UnsupportedError("expected no tools, found some"), body)
    assert isinstance(told, APIError)
    assert told.body["error"]["param"] == "tools"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-5, 5) | st.sampled_from(["a", "text", "function", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "text", "role", "name", "schema", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(
    st.sampled_from([*BODIES]),
    st.dictionaries(
        st.sampled_from(sorted({name for kind in BODIES for name in (*kind.model_fields, *kind.refused, "x")})),
        json_values,
        max_size=5,
    ),
)
def test_any_object_is_a_request_or_a_400(kind: type[Body], data: dict[str, Any]) -> None:
    refusal = None
    try:
        kind.read(data)
    except APIError as error:
        refusal = error
    if refusal is not None:
        assert refusal.status == 400
        json.dumps(refusal.body)
        assert refusal.body["error"]["message"].startswith("expected ")


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (CompletionRequest, {"prompt": [1.5] * 1_000_000}),
        (CompletionRequest, {"prompt": "a", "allowed_token_ids": ["a"] * (1 << 18)}),
        (EmbeddingRequest, {"input": [-1] * 1_000_000}),
        (ScoreRequest, {"context": [-1] * 1_000_000, "continuations": ["a"]}),
        (DetokenizeRequest, {"tokens": [None] * 1_000_000}),
        (ChatRequest, {"messages": [{"role": "user", "content": [1] * 1024}] * 4096}),
        (ResponseRequest, {"input": [{"role": "user", "content": [1] * 1024}] * 4096}),
    ],
)
def test_a_million_wrong_items_are_not_a_million_errors(kind: type[Body], body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(kind.prepared(body))
    assert caught.value.error_count() < 10_000
