"""OpenAI's own client: every answer is of its types, and every stream is read by it."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from openai import OpenAI
from openai.types import Completion, CreateEmbeddingResponse, Model
from openai.types.chat import ChatCompletion
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from pymixtral import AsyncMixtral, Mixtral
from support.api_servers import Served

USER: Any = [{"role": "user", "content": "Who are you?"}]
OPENAI: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "penalty_window": 0}
WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]},
}


@pytest.fixture(scope="module")
def client(chat: Served) -> Iterator[OpenAI]:
    with OpenAI(base_url=chat.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


def valid(answer: BaseModel, kind: type[BaseModel]) -> None:
    kind.model_validate(answer.to_dict(), strict=True)  # type: ignore[attr-defined]


def test_completions(client: OpenAI, chat: Served) -> None:
    expected = chat.model.generate("Once upon", seed=1, max_tokens=9, **OPENAI)
    answer = client.completions.create(model="x", prompt="Once upon", seed=1, max_tokens=9, logprobs=2)
    valid(answer, Completion)
    assert answer.choices[0].text == expected.text
    echoed = client.completions.create(model="x", prompt="Once upon", max_tokens=0, logprobs=1, echo=True)
    assert echoed.choices[0].text == "Once upon"
    stream = client.completions.create(model="x", prompt="Once upon", seed=1, max_tokens=9, stream=True)
    pieces = list(stream)
    for piece in pieces[-1:]:  # the type of the others says that an unfinished text has a reason of its end, too
        valid(piece, Completion)
    assert "".join(piece.choices[0].text for piece in pieces) == expected.text


def test_chat(client: OpenAI, chat: Served) -> None:
    expected = chat.model.chat(USER, seed=1, max_tokens=9, **OPENAI)
    answer = client.chat.completions.create(model="x", messages=USER, seed=1, max_tokens=9, logprobs=True)
    valid(answer, ChatCompletion)
    assert answer.choices[0].message.content == expected.content
    assert answer.model == chat.service.name
    talk: Any = [*USER, answer.choices[0].message, *USER]  # an answer goes back as it is
    assert client.chat.completions.create(model="x", messages=talk, max_tokens=1).usage
    stream = client.chat.completions.create(
        model="x", messages=USER, seed=1, max_tokens=9, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == expected.content
    assert chunks[-1].usage
    assert chunks[-1].usage.completion_tokens == 9


def test_the_clients_own_reader_of_streams_puts_calls_together(client: OpenAI) -> None:
    tool: Any = {"type": "function", "function": {key: WEATHER[key] for key in ("name", "parameters")}}
    with client.chat.completions.stream(
        model="x", messages=USER, tools=[tool], tool_choice="required", parallel_tool_calls=False, seed=1
    ) as stream:
        answer = stream.get_final_completion()
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.function.name == "get_weather"
    assert answer.choices[0].finish_reason == "tool_calls"


def test_parsed_answers(client: OpenAI) -> None:
    class Side(BaseModel):
        left: bool

    answer = client.chat.completions.parse(model="x", messages=USER, response_format=Side, max_tokens=40)
    assert isinstance(answer.choices[0].message.parsed, Side)


def test_responses(client: OpenAI, chat: Served) -> None:
    expected = chat.model.chat(USER, seed=1, max_tokens=9, **OPENAI)
    more: Any = {"extra_body": {"seed": 1}}
    answer = client.responses.create(model="x", input="Who are you?", max_output_tokens=9, **more)
    valid(answer, Response)
    assert answer.output_text == expected.content
    assert (answer.status, answer.incomplete_details and answer.incomplete_details.reason) == (
        "incomplete",
        "max_output_tokens",
    )
    assert answer.usage
    assert answer.usage.output_tokens == 9
    back: Any = [*USER, *[item.to_dict() for item in answer.output], *USER]
    valid(client.responses.create(model="x", input=back, max_output_tokens=3, instructions="Be brief."), Response)


def test_events_of_responses_come_in_order(client: OpenAI) -> None:
    more: Any = {"extra_body": {"seed": 1}}
    events = list(client.responses.create(model="x", input="Who are you?", max_output_tokens=5, stream=True, **more))
    for event in events:
        TypeAdapter(ResponseStreamEvent).validate_python(event.to_dict(), strict=True)
    kinds = [event.type.removeprefix("response.") for event in events]
    n = kinds.count("output_text.delta")
    assert n > 1
    assert kinds == [
        *("created", "in_progress", "output_item.added", "content_part.added", *["output_text.delta"] * n),
        *("output_text.done", "content_part.done", "output_item.done", "incomplete"),
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas: Any = [event for event in events if event.type == "response.output_text.delta"]
    last: Any = events[-1]
    assert "".join(event.delta for event in deltas) == last.response.output_text


def test_calls_in_responses(client: OpenAI) -> None:
    body: Any = {"model": "x", "input": "Who are you?", "tools": [WEATHER], "parallel_tool_calls": False}
    body |= {"tool_choice": {"type": "function", "name": "get_weather"}, "extra_body": {"seed": 1}}
    answer = client.responses.create(**body)
    valid(answer, Response)
    (call,) = answer.output
    assert call.type == "function_call"
    assert (call.name, answer.status) == ("get_weather", "completed")
    events = list(client.responses.create(**body, stream=True))
    for event in events:
        TypeAdapter(ResponseStreamEvent).validate_python(event.to_dict(), strict=True)
    kinds = [event.type.removeprefix("response.") for event in events]
    n = kinds.count("function_call_arguments.delta")
    assert kinds == [
        *("created", "in_progress", "output_item.added", *["function_call_arguments.delta"] * n),
        *("function_call_arguments.done", "output_item.done", "completed"),
    ]
    last: Any = events[-1]
    assert last.response.output[0].arguments == call.arguments


def test_structured_responses(client: OpenAI) -> None:
    format: Any = {"format": {"type": "json_schema", "name": "x", "schema": {"enum": ["a", "b"]}}}
    answer = client.responses.create(model="x", input="Who are you?", text=format)
    assert answer.output_text in ('"a"', '"b"')
    assert answer.text
    assert answer.status == "completed"


def test_embeddings(client: OpenAI, chat: Served) -> None:
    texts = ["Who are you?", "The wolf"]
    expected = chat.model.embed(texts, normalize=True)
    answer = client.embeddings.create(model="x", input=texts)  # as base64
    valid(answer, CreateEmbeddingResponse)
    plain = client.embeddings.create(
        model="x", input=[chat.model.tokenize(text) for text in texts], encoding_format="float"
    )
    for vector, one, other in zip(expected, answer.data, plain.data, strict=True):
        assert (np.asarray(one.embedding, np.float32) == vector).all()
        assert (np.asarray(other.embedding, np.float32) == vector).all()
    (row,) = chat.ok("/v1/embeddings", input="The wolf", encoding_format="base64")["data"]
    assert (np.frombuffer(base64.b64decode(row["embedding"]), "<f4") == expected[1]).all()


def test_the_text_that_is_wrong_is_named(chat: Served) -> None:
    assert chat.refused("/v1/embeddings", input=[[300], [99999]])["param"] == "input[1]"
    assert chat.refused("/v1/embeddings", input=["a", ""])["param"] == "input[1]"
    answered = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert chat.refused("/v1/responses", input=answered)["param"] == "input[1]"


def test_models(client: OpenAI, chat: Served) -> None:
    (model,) = client.models.list().data
    valid(model, Model)
    assert model.id == chat.service.name


def test_errors_are_of_the_clients_classes(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="x", messages=USER, temperature=-1)
    assert (caught.value.param, caught.value.code) == ("temperature", "invalid_value")
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="x", prompt="a " * 5000, stream=True)
    assert caught.value.code == "context_length_exceeded"


def test_an_error_in_the_middle_of_a_stream_is_raised(
    client: OpenAI, chat: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_prompt = len(chat.model.chat_format().ids(USER))

    def broken(ids: Any, _: Any) -> None:
        if len(ids) > n_prompt + 3:
            raise RuntimeError("broken")

    streams = AsyncMixtral.stream_chats
    monkeypatch.setattr(
        AsyncMixtral,
        "stream_chats",
        lambda self, messages, n, **options: streams(self, messages, n, logits_processor=broken, **options),
    )
    stream = client.chat.completions.create(model="x", messages=USER, stream=True, seed=1, max_tokens=50)
    assert next(stream).choices
    with pytest.raises(openai.APIError):
        list(stream)


def test_scores_are_those_in_process(chat: Served) -> None:
    expected = chat.model.score("Once upon", [" a time", " the"])
    answer = chat.ok("/v1/score", context="Once upon", continuations=[" a time", " the"])
    for row, one in zip(answer["data"], expected, strict=True):
        assert (row["logprob"], row["token_logprobs"], row["greedy"]) == (one.logprob, one.tokens, one.greedy)
    ids = chat.model.tokenize("Once upon")
    other = chat.model.score(ids, [[300], [301, 302]])
    answer = chat.ok("/v1/score", context=ids, continuations=[[300], [301, 302]])
    assert [row["logprob"] for row in answer["data"]] == [one.logprob for one in other]
    assert chat.refused("/v1/score", context="a", continuations=[[99999]])["param"] == "continuations[0]"
    assert chat.refused("/v1/score", context="a", continuations=[])["param"] == "continuations"
    status, answer = chat.post("/v1/score", {"context": "a", "continuations": ["b"], "timeout": 0})
    assert (status, answer["error"]["code"]) == (408, "deadline")


def test_the_demo_is_what_is_served(chat: Served) -> None:
    assert isinstance(chat.model, Mixtral)
    assert chat.get("/v1/models")["data"][0]["id"] == "tiny-mixtral-instruct-q4_k_m"
