"""Conversations as programs hold them: what comes back, what ends a stream, and what wrong calls are told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

from pymixtral import Answer, AsyncMixtral, InvalidArgumentError, Mixtral, demo_chat_path

ASKED = [{"role": "user", "content": "Who was the king?"}]
BEGUN = [*ASKED, {"role": "assistant", "content": "The king was"}]


@pytest.fixture(scope="module")
def model() -> Iterator[Mixtral]:
    with Mixtral(demo_chat_path(), n_ctx=512, n_threads=2) as model:
        yield model


# --- What comes back ----------------------------------------------------------------------------------------------


def test_a_continued_message_comes_back_whole(model: Mixtral) -> None:
    answer = model.chat(BEGUN, continue_final=True, max_tokens=6, temperature=0, n=2)
    for choice in answer.choices:
        assert choice.content
        assert choice.message == {"role": "assistant", "content": "The king was" + choice.content}
    parts = [{"type": "text", "text": text} for text in ("He lived.", "The king was")]
    prefixed = [*ASKED, {"role": "assistant", "content": parts, "prefix": True}]
    assert model.chat(prefixed, max_tokens=6).message["content"].startswith("He lived.\n\nThe king was")
    stream = model.stream_chat(BEGUN, continue_final=True, max_tokens=6, temperature=0)
    assert "".join(stream) == answer.content
    assert stream.answer
    assert stream.answer.message == answer.message


def test_an_answer_alone_is_its_message(model: Mixtral) -> None:
    answer = model.chat(ASKED, max_tokens=6, temperature=0)
    assert answer.message == {"role": "assistant", "content": answer.content}


def test_a_stream_tells_what_it_read(model: Mixtral) -> None:
    answer = model.chat(ASKED, max_tokens=6, temperature=0)
    stream = model.stream_chat(ASKED, max_tokens=6, temperature=0)
    assert (stream.finish_reason, stream.tokens) == (None, [])
    assert "".join(stream) == answer.content
    assert (stream.finish_reason, stream.tokens) == (answer.finish_reason, answer.completion.tokens)
    assert stream.stats.generated_tokens == len(stream.tokens)


def test_a_format_says_what_it_is(model: Mixtral) -> None:
    assert repr(model.chat_format("mistral-v1")) == "<MistralText 'mistral-v1'>"


# --- What ends a stream -------------------------------------------------------------------------------------------


ENDLESS: Any = {"ignore_eos": True, "context_shift": 0}


def wait_until_idle(model: Mixtral) -> None:
    end = time.monotonic() + 60
    while (stats := model.stats()).waiting or stats.prefilling or stats.decoding:
        assert time.monotonic() < end, "the text is still written"
        time.sleep(0.01)


@pytest.mark.parametrize("name", ["stream", "stream_chat"])
def test_the_end_of_a_with_block_ends_a_text_that_a_variable_holds(model: Mixtral, name: str) -> None:
    with getattr(model, name)("The king" if name == "stream" else ASKED, **ENDLESS) as stream:
        for _ in stream:
            break
    assert next(stream, None) is None
    wait_until_idle(model)


@pytest.mark.parametrize("name", ["stream", "stream_chat"])
def test_the_end_of_an_async_with_block_ends_a_text_that_a_variable_holds(model: Mixtral, name: str) -> None:
    async def main() -> None:
        tasks = AsyncMixtral(model)
        async with getattr(tasks, name)("The king" if name == "stream" else ASKED, **ENDLESS) as stream:
            async for _ in stream:
                break
        assert [piece async for piece in stream] == []
        wait_until_idle(model)

    asyncio.run(asyncio.wait_for(main(), 120))


def test_the_end_of_a_with_block_leaves_a_whole_text_as_it_is(model: Mixtral) -> None:
    with model.stream("The king", max_tokens=4, ignore_eos=True) as stream:
        text = "".join(stream)
    assert stream.completion
    assert (stream.completion.text, stream.finish_reason) == (text, "length")


# --- What wrong calls are told ------------------------------------------------------------------------------------


def refusal(function: Any, *args: Any, **options: Any) -> str:
    with pytest.raises(InvalidArgumentError) as error:
        function(*args, **options)
    return str(error.value)


def test_an_unknown_option_names_the_function_that_was_called(model: Mixtral) -> None:
    lists = "pymixtral.Options lists the options"
    advice = f"put instructions in a system message; {lists}"
    assert refusal(model.chat, ASKED, system="Be brief.") == (
        f"expected an argument of chat(), found 'system': {advice}"
    )
    assert refusal(model.stream_chat, ASKED, system="Be brief.") == (
        f"expected an argument of stream_chat(), found 'system': {advice}"
    )
    assert refusal(model.chat, ASKED, tool=[]) == "expected an argument of chat(), found 'tool': did you mean 'tools'?"
    assert refusal(model.generate, "a", colour=1) == f"expected an argument of generate(), found 'colour': {lists}"
    assert refusal(model.stream, "a", colour=1) == f"expected an argument of stream(), found 'colour': {lists}"


def test_an_unknown_argument_of_a_model_is_answered_with_the_nearest() -> None:
    for opened in (Mixtral, AsyncMixtral):
        found = refusal(opened, demo_chat_path(), n_contex=9)
        assert found == "expected an argument of Mixtral(), found 'n_contex': did you mean 'n_ctx'?"
        assert refusal(opened, zzz=9).endswith(", lock, prefault")


def test_prompts_of_the_wrong_kind_are_told_whose_they_are(model: Mixtral) -> None:
    texts = refusal(model.stream, ["a", "b"])
    assert texts.endswith("found a list of texts: generate() takes several prompts, stream() one")
    for function in (model.generate, model.stream):
        assert refusal(function, ASKED).endswith("found messages: chat() and stream_chat() take them")


def test_an_answer_is_no_message(model: Mixtral) -> None:
    answer = model.chat(ASKED, max_tokens=1)
    assert isinstance(answer, Answer)
    messages: list[Any] = [*ASKED, answer, *ASKED]
    for function in (model.chat, model.stream_chat):
        assert refusal(function, messages) == (
            "expected messages[1] to be a message, found an Answer: pass its .message"
        )
