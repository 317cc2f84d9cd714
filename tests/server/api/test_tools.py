"""Calls of tools: those that a model writes by itself, and those that a request insists on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from pymixtral import AsyncMixtral, Mixtral
from pymixtral.arrays import F32, I32
from pymixtral.chatting import Answer, AsyncAnswerStream
from pymixtral.quantize import quantize
from pymixtral.server.api.tools import AllowedTools, ForcedCalls, NamedTool, Tool, ToolPlan, tool_plan
from pymixtral.server.errors import APIError
from support.api_servers import Served, serving
from support.checkpoints import Shape, make_checkpoint
from support.conversations import DATA, MODELS

PATH = "/v1/chat/completions"
USER = [{"role": "user", "content": "How is the weather?"}]


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": [*properties]}
    return {"type": "function", "function": {"name": name, "description": "Does it.", "parameters": parameters}}


WEATHER = tool("get_weather", city={"enum": ["Paris", "Rome"]})
CLOCK = tool("clock")
CALL = {"name": "clock", "arguments": "{}"}
REFERS = {
    "type": "function",
    "function": {
        "name": "walk",
        "parameters": {
            "type": "object",
            "properties": {"to": {"$ref": "#/$defs/side"}},
            "required": ["to"],
            "$defs": {"side": {"enum": ["left", "right"]}},
        },
    },
}


def joined(chunks: list[Any]) -> tuple[str, list[dict[str, str]], str]:
    """The text, the calls and the reason of the end of a stream."""
    text, calls, reason = "", [], None
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True)
        for choice in chunk["choices"]:
            text += choice["delta"].get("content") or ""
            for delta in choice["delta"].get("tool_calls", []):
                if delta["index"] == len(calls):
                    assert delta["type"] == "function"
                    calls.append({"id": delta["id"], "name": delta["function"]["name"], "arguments": ""})
                calls[delta["index"]]["arguments"] += delta["function"]["arguments"]
            reason = choice["finish_reason"]
    assert reason
    return text, calls, reason


def calls_of(answer: Any) -> tuple[str, list[tuple[str, str]], str]:
    ChatCompletion.model_validate(answer, strict=True)
    message = answer["choices"][0]["message"]
    calls = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", [])]
    return message["content"] or "", calls, answer["choices"][0]["finish_reason"]


# --- Calls that a request insists on ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_a_named_function_is_called(chat: Served, seed: int) -> None:
    choice = {"type": "function", "function": {"name": "get_weather"}}
    body = {"messages": USER, "tools": [WEATHER, CLOCK], "tool_choice": choice, "seed": seed}
    text, ((name, arguments),), reason = calls_of(chat.ok(PATH, **body))
    assert (text, name, reason) == ("", "get_weather", "stop")
    jsonschema.validate(json.loads(arguments), WEATHER["function"]["parameters"])
    text, (call,), reason = joined(chat.chunks(PATH, **body))
    assert (text, call["name"], call["arguments"], reason) == ("", "get_weather", arguments, "stop")


@pytest.mark.parametrize("seed", range(3))
def test_some_function_is_called_if_one_is_required(chat: Served, seed: int) -> None:
    body = {"messages": USER, "tools": [WEATHER, CLOCK, REFERS], "tool_choice": "required", "seed": seed}
    body["parallel_tool_calls"] = False
    text, ((name, arguments),), reason = calls_of(chat.ok(PATH, **body))
    assert (text, reason) == ("", "tool_calls")
    schemas = {one["function"]["name"]: one["function"]["parameters"] for one in (WEATHER, CLOCK, REFERS)}
    jsonschema.validate(json.loads(arguments), schemas[name])
    text, (call,), reason = joined(chat.chunks(PATH, **body))
    assert (text, call["name"], call["arguments"], reason) == ("", name, arguments, "tool_calls")


def test_allowed_tools_are_those_that_are_called(chat: Served) -> None:
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "walk"}}]}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    body = {"messages": USER, "tools": [WEATHER, REFERS], "tool_choice": choice, "parallel_tool_calls": False}
    _, ((name, arguments),), _ = calls_of(chat.ok(PATH, **body, seed=1))
    assert name == "walk"
    assert json.loads(arguments)["to"] in ("left", "right")


def test_a_call_that_is_cut_short_stays_a_call(chat: Served) -> None:
    choice = {"type": "function", "function": {"name": "get_weather"}}
    body = {"messages": USER, "tools": [WEATHER], "tool_choice": choice, "seed": 1, "max_tokens": 3}
    _, ((name, arguments),), reason = calls_of(chat.ok(PATH, **body))
    assert (name, reason) == ("get_weather", "length")
    assert '{"city":"Paris"}'.startswith(arguments) or '{"city":"Rome"}'.startswith(arguments)
    _, (call,), reason = joined(chat.chunks(PATH, **body))
    assert (call["arguments"], reason) == (arguments, "length")


def test_the_model_reads_of_the_functions_in_a_system_message(chat: Served) -> None:
    body = {"messages": USER, "tools": [WEATHER], "tool_choice": "required"}
    n = chat.ok("/v1/chat/completions/input_tokens", messages=USER)["input_tokens"]
    assert chat.ok("/v1/chat/completions/input_tokens", **body)["input_tokens"] > n + 20
    system = {"role": "system", "content": "Be brief."}
    with_system = chat.ok("/v1/chat/completions/input_tokens", **body | {"messages": [system, *USER]})
    assert with_system["input_tokens"] > n + 20
    none = chat.ok("/v1/chat/completions/input_tokens", **body | {"tool_choice": "none"})
    assert none["input_tokens"] == n


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [WEATHER]}, "tools"),  # this format has no place for them
        (
            {"messages": [*USER, {"role": "assistant", "tool_calls": [{"function": CALL}]}, *USER]},
            "messages",
        ),
        ({"tools": [WEATHER, WEATHER], "tool_choice": "required"}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        (
            {"tools": [WEATHER], "tool_choice": "required", "response_format": {"type": "json_object"}},
            "response_format",
        ),
        (
            {"tools": [WEATHER], "tool_choice": "required", "structured_outputs": {"regex": "a"}},
            "structured_outputs",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_refused_names_its_field(chat: Served, fields: Any, param: str, stream: bool) -> None:
    assert chat.refused(PATH, **{"messages": USER, "stream": stream, **fields})["param"] == param


# --- The plan and the reader --------------------------------------------------------------------------------------

TOOLS = [Tool.model_validate(one) for one in (WEATHER, CLOCK)]


def test_the_plan_of_each_choice() -> None:
    assert tool_plan(None, None, None) == tool_plan(TOOLS, "none", None) == ToolPlan()
    assert tool_plan(TOOLS, None, None) == tool_plan(TOOLS, "auto", True) == ToolPlan(TOOLS)
    assert tool_plan(TOOLS, "required", False) == ToolPlan(TOOLS, True, None, False)
    named = NamedTool.model_validate({"type": "function", "function": {"name": "clock"}})
    assert tool_plan(TOOLS, named, None) == ToolPlan(TOOLS[1:], True, "clock")
    allowed = {"mode": "auto", "tools": [named.model_dump()]}
    choice = AllowedTools.model_validate({"type": "allowed_tools", "allowed_tools": allowed})
    assert tool_plan(TOOLS, choice, None) == ToolPlan(TOOLS[1:])
    with pytest.raises(APIError):
        tool_plan(TOOLS[:1], named, None)


json_objects = st.dictionaries(st.text(max_size=4), st.integers() | st.text(max_size=4), max_size=3)


@given(st.lists(st.tuples(st.sampled_from(["clock", "get_weather"]), json_objects), min_size=1, max_size=3), st.data())
def test_forced_calls_are_read_whatever_the_pieces(calls: list[tuple[str, Any]], data: st.DataObject) -> None:
    text = json.dumps([{"name": name, "arguments": arguments} for name, arguments in calls])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    reader = ForcedCalls(ToolPlan(TOOLS, True))
    for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        reader.push(text[begin:end])
    assert reader.finish() == []
    found = [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in reader.calls]
    assert (found, reader.content) == (calls, "")


@given(st.integers(0, 60))
def test_forced_calls_may_break_off_anywhere(n: int) -> None:
    text = '[{"name": "clock", "arguments": {"a": [1, "}"]}}, {"name": "f", "arguments": {}}]'[:n]
    reader = ForcedCalls(ToolPlan(TOOLS, True))
    reader.push(text)
    reader.finish()
    assert bool(reader.content) == (bool(text) and not reader.calls)
    assert all(call["function"]["arguments"] in text for call in reader.calls)


# --- Calls that a model writes by itself --------------------------------------------------------------------------


class Told(AsyncMixtral):
    """A model that writes what it is told: parts of texts and tokens.

    Attributes:
        parts: what it writes next.
    """

    parts: tuple[str | int, ...] = ()

    def _force(self) -> Callable[[I32, F32], None]:
        ids: list[int] = []
        for part in self.parts:
            ids += [part] if isinstance(part, int) else self.model.tokenize(part, add_bos=False)
        ids += sorted(self.model.eos_ids)[:1]
        begins: list[int] = []

        def force(so_far: I32, logits: F32) -> None:
            begins[:] = begins or [len(so_far)]
            logits[:] = -np.inf
            logits[ids[len(so_far) - begins[0]]] = 0

        return force

    async def chat(self, messages: Any, **options: Any) -> Answer:
        return await super().chat(messages, logits_processor=self._force(), **options)

    async def stream_chats(self, messages: Any, n: int, **options: Any) -> list[AsyncAnswerStream]:
        return await super().stream_chats(messages, n, logits_processor=self._force(), **options)


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Told, int]]:
    """A model with the vocabulary of Mixtral 8x22B Instruct, which has tokens for tools; and its token of calls."""
    place = tmp_path_factory.mktemp("caller")
    make_checkpoint(place / "checkpoint", Shape(hidden=32, ffn=32, n_layers=1, n_heads=2, n_vocab=32768), seed=1)
    shutil.copy(DATA / MODELS["v3"], place / "checkpoint" / "tokenizer.model")
    quantize(place / "checkpoint", place / "model.gguf", "q8_0", progress=False)
    with Mixtral(place / "model.gguf", n_threads=1) as model:
        told = Told(model)
        (mark,) = model.tokenize("[TOOL_CALLS]", add_bos=False, parse_special=True)
        with serving(told) as served:
            yield served, told, mark


def test_a_model_with_tokens_for_tools_calls_by_itself(caller: tuple[Served, Told, int]) -> None:
    served, told, mark = caller
    told.parts = (
        mark,
        ' [{"name": "get_weather", "arguments": {"city": "Paris"}}, {"name": "clock", "arguments": {}}]',
    )
    body = {"messages": USER, "tools": [WEATHER, CLOCK]}
    answer = served.ok(PATH, **body)
    assert calls_of(answer) == ("", [("get_weather", '{"city": "Paris"}'), ("clock", "{}")], "tool_calls")
    assert answer["choices"][0]["message"]["content"] is None
    text, calls, reason = joined(served.chunks(PATH, **body))
    assert (text, [(call["name"], call["arguments"]) for call in calls], reason) == calls_of(answer)
    assert all(len(call["id"]) == 9 for call in calls)
    one = body | {"parallel_tool_calls": False}
    assert calls_of(served.ok(PATH, **one))[1:] == ([("get_weather", '{"city": "Paris"}')], "tool_calls")
    text, calls, reason = joined(served.chunks(PATH, **one))
    assert ([(call["name"], call["arguments"]) for call in calls], reason) == (
        [("get_weather", '{"city": "Paris"}')],
        "tool_calls",
    )


def test_the_result_of_a_call_goes_back(caller: tuple[Served, Told, int]) -> None:
    served, told, mark = caller
    told.parts = (mark, '[{"name": "clock", "arguments": {}}]')
    message = served.ok(PATH, messages=USER, tools=[CLOCK])["choices"][0]["message"]
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "noon"}
    told.parts = ("It is noon.",)
    answer = served.ok(PATH, messages=[*USER, message, result], tools=[CLOCK])
    assert calls_of(answer) == ("It is noon.", [], "stop")


def test_what_is_no_call_is_text(caller: tuple[Served, Told, int]) -> None:
    served, told, mark = caller
    for parts in (("Fine weather.",), (mark, '[{"name": "clock", "arguments": [')):
        told.parts = parts
        text, calls, reason = calls_of(served.ok(PATH, messages=USER, tools=[CLOCK]))
        assert (calls, reason) == ([], "stop")
        chunks = served.chunks(PATH, messages=USER, tools=[CLOCK])
        assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == text
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
