"""Answers of models: whole, streamed, awaited, with the calls of tools in them."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pymixtral import (
    Answer,
    AsyncMixtral,
    ClosedError,
    ContextLengthError,
    InvalidArgumentError,
    Mixtral,
    UnsupportedError,
)
from pymixtral.arrays import F32, I32
from pymixtral.demo import demo_chat_path
from pymixtral.quantize import quantize
from pymixtral.text.tool_calls import ArgumentsPiece, CallBegins, CallEnds, CallFails, Event, TextPiece
from support.checkpoints import Shape, make_checkpoint
from support.conversations import DATA, MODELS

USER = [{"role": "user", "content": "Who are you?"}]
SECOND = {"role": "user", "content": "And what did the wolf say?"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
CALLS = '[{"name": "get_weather", "arguments": {"city": "Paris"}}, {"name": "f", "arguments": {}}]'
BROKEN = '[{"name": "get_weather", "arguments": {"city": Paris'


@pytest.fixture(scope="module")
def demo() -> Iterator[Mixtral]:
    with Mixtral(demo_chat_path(), n_threads=2) as model:
        yield model


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mixtral]:
    """A model of random weights with the vocabulary of Mixtral 8x22B Instruct, which has tokens for tools."""
    place = tmp_path_factory.mktemp("caller")
    make_checkpoint(place / "checkpoint", Shape(hidden=32, ffn=32, n_layers=1, n_heads=2, n_vocab=32768), seed=1)
    shutil.copy(DATA / MODELS["v3"], place / "checkpoint" / "tokenizer.model")
    quantize(place / "checkpoint", place / "model.gguf", "q8_0", progress=False)
    with Mixtral(place / "model.gguf", n_threads=1) as model:
        yield model


def forced(model: Mixtral, *parts: str | int) -> Callable[[I32, F32], None]:
    """A logits processor that lets the model write texts and tokens, and end then."""
    ids: list[int] = []
    for part in parts:
        ids += [part] if isinstance(part, int) else model.tokenize(part, add_bos=False)
    ids += sorted(model.eos_ids)[:1]
    begins: list[int] = []

    def force(so_far: I32, logits: F32) -> None:
        if not begins:
            begins.append(len(so_far))
        logits[:] = -np.inf
        logits[ids[len(so_far) - begins[0]]] = 0

    return force


def marker(model: Mixtral) -> int:
    (id,) = model.tokenize("[TOOL_CALLS]", add_bos=False, parse_special=True)
    return id


def without_ids(calls: Any) -> list[tuple[str, str]]:
    return [(call.name, call.arguments) for call in calls]


# --- Text ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"max_tokens": 9}, {"stop": ["wolf", " the"]}, {"stop": "</s>", "temperature": 0}]
)
def test_an_answer_is_the_same_whole_streamed_and_awaited(demo: Mixtral, options: dict[str, Any]) -> None:
    options = {"seed": 4, "max_tokens": 80} | options
    whole = demo.chat(USER, **options)
    stream = demo.stream_chat(USER, **options)
    assert stream.answer is None
    pieces = list(stream)

    async def awaited() -> tuple[Answer, list[str]]:
        model = AsyncMixtral(demo)
        return await model.chat(USER, **options), [piece async for piece in model.stream_chat(USER, **options)]

    assert whole.content
    assert len(pieces) > 1
    streamed = stream.answer
    assert streamed
    other, other_pieces = asyncio.run(awaited())
    for answer, text in ((whole, str(whole)), (streamed, "".join(pieces)), (other, "".join(other_pieces))):
        assert text == whole.content == answer.content
        assert answer.completion.tokens == whole.completion.tokens
        assert (answer.finish_reason, answer.tool_calls) == (whole.completion.finish_reason, ())
        assert answer.message == {"role": "assistant", "content": whole.content}


def test_an_answer_is_what_follows_the_ids_of_its_format(demo: Mixtral) -> None:
    ids = demo.chat_format().ids(USER)
    assert demo.chat(USER, max_tokens=30, seed=2).completion.tokens == demo.generate(ids, max_tokens=30, seed=2).tokens
    own = demo.chat_format("template").ids(USER)
    answer = demo.chat(USER, max_tokens=30, seed=2, chat_format="template", template_variables={"x": 1})
    assert answer.completion.tokens == demo.generate(own, max_tokens=30, seed=2).tokens
    with pytest.raises(UnsupportedError, match="variables"):
        demo.chat(USER, template_variables={"x": 1})


def test_the_second_turn_computes_only_what_is_new() -> None:
    with Mixtral(demo_chat_path(), n_threads=2) as model:
        first = model.chat(USER, seed=1, max_tokens=60)
        assert first.completion.stats.cached_tokens == 0
        talk = [*USER, first.message, SECOND]
        second = model.chat(talk, seed=1, max_tokens=10)
        kept = first.completion.stats.prompt_tokens + first.completion.stats.generated_tokens
        assert second.completion.stats.cached_tokens >= kept - 1  # the last one was drawn and not computed
        model.forget()
        assert model.chat(talk, seed=1, max_tokens=10).content == second.content  # with the same bits


def test_stop_strings_end_an_answer_and_are_none_of_it(demo: Mixtral) -> None:
    whole = demo.chat(USER, seed=4, max_tokens=80).content
    word = whole.split()[6]
    cut = demo.chat(USER, seed=4, max_tokens=80, stop=[word])
    assert cut.content == whole[: whole.index(word)]
    assert (cut.finish_reason, cut.completion.stop_reason) == ("stop", word)


def test_several_answers(demo: Mixtral) -> None:
    answers = demo.chat(USER, n=3, seed=4, max_tokens=20).choices
    assert len({answer.content for answer in answers}) == 3
    assert answers[0].content == demo.chat(USER, seed=4, max_tokens=20).content
    assert all(not answer.others for answer in answers[1:])
    assert all(answer.completion.others == () for answer in answers)
    best = demo.chat(USER, n=1, best_of=3, seed=4, max_tokens=20)
    assert best.content in {answer.content for answer in answers}
    assert best.others == ()


def test_an_answer_is_continued(demo: Mixtral) -> None:
    begun = {"role": "assistant", "content": "Once upon a"}
    for messages, options in (([*USER, begun], {"continue_final": True}), ([*USER, begun | {"prefix": True}], {})):
        answer = demo.chat(messages, seed=1, max_tokens=10, temperature=0, **options)
        assert answer.content.startswith(" ")  # the space belongs to the text that goes on
        assert "".join(demo.stream_chat(messages, seed=1, max_tokens=10, temperature=0, **options)) == answer.content
    with pytest.raises(InvalidArgumentError, match="continue"):
        demo.chat([*USER, begun])


def test_a_stream_is_cancelled_or_closed_midway(demo: Mixtral) -> None:
    stream = demo.stream_chat(USER, min_tokens=5000)
    begun = next(stream)
    stream.cancel()
    rest = "".join(stream)
    assert stream.answer
    assert (stream.answer.content, stream.answer.finish_reason) == (begun + rest, "cancelled")


def test_what_makes_no_sense_is_refused_before_anything_is_computed(demo: Mixtral, tiny_q8_0: Path) -> None:
    for call in (demo.chat, demo.stream_chat):
        with pytest.raises(InvalidArgumentError, match=r"messages\[0\]"):
            call([{"role": "user", "content": 1}])
        with pytest.raises(ContextLengthError):
            call([{"role": "user", "content": "word " * 3000}])
        with pytest.raises(UnsupportedError, match="no tools"):
            call(USER, tools=TOOLS)
        with pytest.raises(InvalidArgumentError, match="max_token"):
            call(USER, max_token=3)
        with pytest.raises(InvalidArgumentError, match="chat format"):
            call(USER, chat_format="mistral-v9")
    with Mixtral(tiny_q8_0) as model:
        with pytest.raises(UnsupportedError, match="name the format"):
            model.chat(USER)
        assert model.chat(USER, chat_format="mistral-v1", max_tokens=3).content
    with pytest.raises(ClosedError):
        model.chat(USER, chat_format="mistral-v1")
    with pytest.raises(ClosedError):
        model.stream_chat(USER, chat_format="mistral-v1")


@pytest.mark.parametrize("wrong", [None, 5, "text", {"role": "user"}, object()])
def test_what_is_no_list_of_messages_is_refused(demo: Mixtral, wrong: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="expected messages to be a list of messages"):
        demo.chat(wrong)


@pytest.mark.parametrize("wrong", [5, "text", [1]])
def test_what_is_no_mapping_of_variables_is_refused(demo: Mixtral, wrong: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="expected template_variables to be a mapping"):
        demo.chat([{"role": "user", "content": "a"}], template_variables=wrong)


def test_an_exception_in_a_processor_reaches_its_caller(demo: Mixtral) -> None:
    def fail(_: I32, __: F32) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        demo.chat(USER, logits_processor=fail)
    with pytest.raises(ZeroDivisionError):
        list(demo.stream_chat(USER, logits_processor=fail))


# --- Calls of tools -----------------------------------------------------------------------------------------------


def test_calls_are_found_whole_streamed_and_awaited(caller: Mixtral) -> None:
    def options() -> dict[str, Any]:
        return {"tools": TOOLS, "logits_processor": forced(caller, "Let me see.", marker(caller), CALLS)}

    whole = caller.chat(USER, **options())
    stream = caller.stream_chat(USER, **options())
    events = list(stream.events())
    texts = caller.stream_chat(USER, **options())

    async def awaited() -> tuple[Answer, list[Event]]:
        model = AsyncMixtral(caller)
        return await model.chat(USER, **options()), [
            event async for event in model.stream_chat(USER, **options()).events()
        ]

    other, other_events = asyncio.run(awaited())
    expected = [("get_weather", '{"city": "Paris"}'), ("f", "{}")]
    assert stream.answer
    for answer in (whole, stream.answer, other):
        assert (answer.content, answer.finish_reason) == ("Let me see.", "tool_calls")
        assert without_ids(answer.tool_calls) == expected
        assert answer.completion.finish_reason == "stop"
    assert "".join(texts) == "Let me see."
    assert without_ids(texts.tool_calls) == expected
    for found in (events, other_events):
        assert "".join(event.text for event in found if isinstance(event, TextPiece)) == "Let me see."
        assert [event.name for event in found if isinstance(event, CallBegins)] == ["get_weather", "f"]
        assert without_ids(event.call for event in found if isinstance(event, CallEnds)) == expected
        pieces = [event.text for event in found if isinstance(event, ArgumentsPiece) and event.index == 0]
        assert "".join(pieces) == expected[0][1]
        assert len(pieces) > 1  # they come while they are written
    assert caller.chat_format().name == "mistral-v3"


def test_a_conversation_goes_on_after_a_call(caller: Mixtral) -> None:
    answer = caller.chat(USER, tools=TOOLS, logits_processor=forced(caller, marker(caller), CALLS))
    calls = answer.message["tool_calls"]
    assert [json.loads(call["function"]["arguments"]) for call in calls] == [{"city": "Paris"}, {}]
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "22"} for call in calls]
    after = caller.chat([*USER, answer.message, *results], tools=TOOLS, logits_processor=forced(caller, "Warm."))
    assert (after.content, after.tool_calls, after.finish_reason) == ("Warm.", (), "stop")


def test_what_is_no_call_is_text(caller: Mixtral) -> None:
    for text, options in ((BROKEN, {"tools": TOOLS}), (CALLS, {}), (CALLS, {"tools": []})):
        answer = caller.chat(USER, logits_processor=forced(caller, marker(caller), text), **options)
        assert (answer.tool_calls, answer.finish_reason) == ((), "stop")
        assert text in answer.content
    spelled = caller.chat(USER, tools=TOOLS, logits_processor=forced(caller, f"[TOOL_CALLS]{CALLS}"))
    assert spelled.tool_calls == ()  # only the token begins a call
    stream = caller.stream_chat(USER, tools=TOOLS, logits_processor=forced(caller, marker(caller), BROKEN))
    assert any(isinstance(event, CallFails) for event in stream.events())


def test_a_call_that_is_cut_is_no_call(caller: Mixtral) -> None:
    answer = caller.chat(USER, tools=TOOLS, max_tokens=8, logits_processor=forced(caller, marker(caller), CALLS))
    assert (answer.tool_calls, answer.finish_reason) == ((), "length")
    assert answer.content


def test_each_of_several_answers_has_its_own_calls(caller: Mixtral) -> None:
    first, second = caller.chat(
        USER, tools=TOOLS, n=2, logits_processor=forced(caller, marker(caller), CALLS), seed=1
    ).choices
    assert without_ids(first.tool_calls) == without_ids(second.tool_calls)
    assert not {call.id for call in first.tool_calls} & {call.id for call in second.tool_calls}


def test_a_task_that_is_cancelled_cancels_its_answer(demo: Mixtral) -> None:
    async def use() -> None:
        model = AsyncMixtral(demo)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(model.chat(USER, min_tokens=5000), 0.05)
        while model.stats().decoding:
            await asyncio.sleep(0.001)

    asyncio.run(use())
