"""What all endpoints have in common: bodies, names of models, paths, and the document of all of it."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from pymixtral import Mixtral
from support.api_servers import Served, serving

USER = [{"role": "user", "content": "Who are you?"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "a", "max_tokens": 1},
    "/v1/chat/completions": {"messages": USER, "max_tokens": 1},
    "/v1/responses": {"input": "a", "max_output_tokens": 1},
    "/v1/embeddings": {"input": "a"},
    "/v1/score": {"context": "a", "continuations": ["b"]},
    "/v1/tokenize": {"prompt": "a"},
    "/v1/detokenize": {"tokens": [300]},
    "/v1/apply-template": {"messages": USER},
    "/v1/chat/completions/input_tokens": {"messages": USER},
}


@pytest.mark.parametrize("path", BODIES)
def test_paths_are_there_with_v1_and_without(chat: Served, path: str) -> None:
    for one in (path, path.removeprefix("/v1")):
        chat.ok(one, **BODIES[path])
        chat.ok(one, **BODIES[path], model="gpt-4o")


@pytest.mark.parametrize("path", BODIES)
def test_another_model_is_refused_if_the_settings_say_so(path: str) -> None:
    with Mixtral(n_threads=1, n_ctx=128) as model, serving(model, any_model=False, name="mine") as served:
        status, answer = served.post(path, {**BODIES[path], "model": "other"})
        assert (status, answer["error"]["code"], answer["error"]["param"]) == (404, "model_not_found", "model")
        if "messages" not in BODIES[path] and "responses" not in path:
            served.ok(path, **BODIES[path], model="mine")


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("data", "headers", "status", "code"),
    [
        (b"", {}, 400, "invalid_json"),
        (b"{", {}, 400, "invalid_json"),
        (b"[" * 100_000, {}, 400, "invalid_json"),
        (b'{"prompt": "\xff"}', {}, 400, "invalid_json"),
        (b"[]", {}, 400, "invalid_value"),
        (b"null", {}, 400, None),
        (b'{"prompt": "a"}', {"content-type": "text/plain"}, 415, None),
        (b"a=b", {"content-type": "application/x-www-form-urlencoded"}, 415, None),
    ],
)
def test_bodies_that_are_none(
    chat: Served, path: str, data: bytes, headers: dict[str, str], status: int, code: str | None
) -> None:
    found, answer = chat.post(path, data, **headers)
    assert found == status
    assert set(answer["error"]) >= {"message", "type", "param", "code"}
    assert code is None or answer["error"]["code"] == code


def test_the_content_type_may_name_a_charset(chat: Served) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert chat.post("/v1/tokenize", {"prompt": "a"}, **headers)[0] == 200


def test_the_document_has_every_endpoint_and_what_it_may_answer(chat: Served) -> None:
    document = chat.get("/openapi.json")
    for path in BODIES:
        operation = document["paths"][path]["post"]
        assert {"200", "400", "415", "429", "503"} <= set(operation["responses"])
        assert "422" not in operation["responses"]
        schema = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        kind = document["components"]["schemas"][schema.rpartition("/")[2]]
        assert kind["additionalProperties"] is False
        assert set(BODIES[path]) <= set(kind["properties"])
    fields = document["components"]["schemas"]["CompletionRequest"]["properties"]
    assert fields["suffix"]["type"] == "null"
    assert "no accounts" in fields["user"]["description"]
    (number, _) = fields["top_p"]["anyOf"]
    assert (number["minimum"], number["maximum"]) == (0, 1)
    ids = next(one for one in fields["prompt"]["anyOf"] if one.get("items", {}).get("type") == "integer")
    assert (ids["minItems"], ids["items"]["minimum"]) == (1, 0)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/responses"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_a_client_that_leaves_ends_its_texts(chat: Served, path: str, stream: bool, n: int) -> None:
    body: dict[str, Any] = {**BODIES[path], "stream": stream, "temperature": 1}
    if path == "/v1/responses":
        long = {"type": "array", "items": {"const": 1}, "minItems": 800}
        body |= {"max_output_tokens": 1900, "text": {"format": {"type": "json_schema", "schema": long}}}
    else:
        body |= {"max_tokens": 1900, "ignore_eos": True, "n": n}
    data = json.dumps(body).encode()
    fields = f"host: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n"
    head = f"POST {path} HTTP/1.1\r\n{fields}\r\n"
    host, port = chat.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + data)
        if stream:
            assert connection.recv(1000)
        else:
            until(lambda: chat.service.n_admitted > 0)
    until(lambda: chat.service.n_admitted == 0)
    until(lambda: not (chat.model.stats().decoding or chat.model.stats().prefilling or chat.model.stats().waiting))


def until(true: Callable[[], bool]) -> None:
    """Waits for something that happens in another thread."""
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)
