"""Tasks that await the engine: the same results as threads get, and cancellation that reaches it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pymixtral import AsyncMixtral, ClosedError, InvalidArgumentError, Mixtral

PROMPT = "Once upon a time there was a king who had three daughters"


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[AsyncMixtral]:
    async with AsyncMixtral(path, n_ctx=2048, n_threads=2) as model:
        yield model


def run(path: Path, use: Callable[[AsyncMixtral], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        async with opened(path) as model:
            return await asyncio.wait_for(use(model), 120)

    return asyncio.run(main())


async def until_idle(model: AsyncMixtral) -> None:
    while True:
        stats = model.stats()
        if not (stats.waiting or stats.prefilling or stats.decoding):
            return
        await asyncio.sleep(0.001)


def test_tasks_get_what_threads_get(tiny_q8_0: Path) -> None:
    async def use(model: AsyncMixtral) -> None:
        texts = await asyncio.gather(*(model.generate(PROMPT[: 9 + i], max_tokens=20, seed=i) for i in range(6)))
        stream = model.stream(PROMPT, max_tokens=20, seed=1)
        pieces = [piece async for piece in stream]
        sync = model.model
        assert [t.text for t in texts] == [sync.generate(PROMPT[: 9 + i], max_tokens=20, seed=i).text for i in range(6)]
        assert "".join(pieces) == sync.generate(PROMPT, max_tokens=20, seed=1).text
        assert stream.completion
        assert stream.completion.tokens == stream.tokens
        assert (await model.score(PROMPT, [" and", " the"])) == sync.score(PROMPT, [" and", " the"])
        assert ((await model.embed([PROMPT])) == sync.embed([PROMPT])).all()
        assert ((await model.logits([1, 2, 3])) == sync.logits([1, 2, 3])).all()
        many = await model.generate([PROMPT, "The wolf"], n=2, seed=3, max_tokens=5)
        assert [c.text for c in many] == [
            c.text for c in sync.generate([PROMPT, "The wolf"], n=2, seed=3, max_tokens=5)
        ]

    run(tiny_q8_0, use)


@pytest.mark.parametrize("kind", ["generate", "stream", "wait_for"])
def test_a_cancelled_task_cancels_its_request(tiny_q8_0: Path, kind: str) -> None:
    async def use(model: AsyncMixtral) -> None:
        async def read() -> None:
            async for _ in model.stream(PROMPT, ignore_eos=True):
                pass

        endless = model.generate(PROMPT, ignore_eos=True) if kind != "stream" else read()
        if kind == "wait_for":
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(endless, 0.05)
        else:
            task = asyncio.ensure_future(endless)
            while not model.stats().generated_tokens:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await until_idle(model)
        assert model.stats().generated_tokens < 2000

    run(tiny_q8_0, use)


def test_a_stream_that_is_left_ends(tiny_q8_0: Path) -> None:
    async def use(model: AsyncMixtral) -> None:
        async for _ in model.stream(PROMPT, ignore_eos=True):
            break
        gc.collect()
        await until_idle(model)
        stream = model.stream(PROMPT, ignore_eos=True)
        await stream.__anext__()
        await stream.aclose()
        assert [piece async for piece in stream] == []
        await until_idle(model)

    run(tiny_q8_0, use)


def test_a_deadline_gives_the_text_so_far(tiny_q8_0: Path) -> None:
    async def use(model: AsyncMixtral) -> None:
        text = await model.generate(PROMPT, ignore_eos=True, timeout=0.05)
        assert text.finish_reason == "deadline"
        stream = model.stream(PROMPT, ignore_eos=True, timeout=0.05)
        pieces = [piece async for piece in stream]
        assert stream.finish_reason == "deadline"
        assert stream.completion
        assert "".join(pieces) == stream.completion.text

    run(tiny_q8_0, use)


def test_arguments_are_checked_at_the_call(tiny_q8_0: Path) -> None:
    async def use(model: AsyncMixtral) -> None:
        with pytest.raises(InvalidArgumentError, match="temperature"):
            model.stream(PROMPT, temperature=-1)
        with pytest.raises(InvalidArgumentError, match="max_tokens"):
            await model.generate(PROMPT, max_tokens=-1)

    run(tiny_q8_0, use)


def test_a_model_is_shared_by_threads_and_loops(tiny_q8_0: Path) -> None:
    with Mixtral(tiny_q8_0, n_ctx=256) as model:
        expected = model.generate(PROMPT, max_tokens=10, temperature=0).text

        async def one() -> str:
            return (await AsyncMixtral(model).generate(PROMPT, max_tokens=10, temperature=0)).text

        async def main() -> list[str]:
            return await asyncio.gather(*(asyncio.to_thread(asyncio.run, one()) for _ in range(4)))

        assert asyncio.run(main()) == [expected] * 4


def test_a_loop_that_has_ended_harms_nobody(tiny_q8_0: Path) -> None:
    with Mixtral(tiny_q8_0, n_ctx=2048) as model:

        async def leave() -> Any:
            return AsyncMixtral(model).stream(PROMPT, ignore_eos=True)

        left = asyncio.run(leave())  # its loop is closed while the text goes on
        assert model.generate(PROMPT, max_tokens=5).tokens
        while model.stats().decoding:
            pass
        assert model.stats().used_pages == 0
        del left


def test_closing_ends_what_is_awaited(tiny_q8_0: Path) -> None:
    async def main() -> None:
        model = AsyncMixtral(tiny_q8_0, n_ctx=2048)
        task = asyncio.ensure_future(model.generate(PROMPT, ignore_eos=True))
        while not model.stats().generated_tokens:
            await asyncio.sleep(0.001)
        await model.aclose()
        with pytest.raises(ClosedError):
            await task
        with suppress(ClosedError):
            model.stream(PROMPT)
            raise AssertionError

    asyncio.run(main())


def test_processors_run_in_tasks_too(tiny_q8_0: Path) -> None:
    async def use(model: AsyncMixtral) -> None:
        def only(_: Any, logits: np.ndarray[Any, Any]) -> None:
            logits[:] = 0
            logits[300] = 9

        text = await model.generate(PROMPT, max_tokens=4, logits_processor=only, temperature=0)
        assert text.tokens == [300] * 4

    run(tiny_q8_0, use)


def test_several_texts_are_streamed_at_the_same_time(tiny_q8_0: Path) -> None:
    async def use(model: AsyncMixtral) -> None:
        whole = await model.generate(PROMPT, n=3, seed=3, max_tokens=20, logprobs=0)
        before = model.stats().prompt_tokens
        streams = await model.streams(PROMPT * 2, 3, seed=3, max_tokens=20)
        await asyncio.gather(*(read(stream) for stream in streams))
        assert model.stats().prompt_tokens - before < 2 * len(model.model.tokenize(PROMPT * 2))  # computed once
        streams = await model.streams(PROMPT, 3, seed=3, max_tokens=20, logprobs=0)
        texts = await asyncio.gather(*(read(stream) for stream in streams))
        for text, stream, expected in zip(texts, streams, whole.choices, strict=True):
            assert (text, stream.tokens, stream.logprobs) == (expected.text, expected.tokens, expected.logprobs)
        first, second, third = await model.streams(PROMPT, 3, seed=3, max_tokens=20)
        first.cancel()  # the one that computes the prompt
        await second.aclose()
        assert await read(third) == whole.choices[2].text
        del first, second, third
        streams = await model.streams(PROMPT, 2, ignore_eos=True)
        assert await anext(streams[1])
        streams.clear()
        gc.collect()
        await until_idle(model)
        with pytest.raises(InvalidArgumentError, match="expected n to be an integer from 1 to 128"):
            await model.streams(PROMPT, 0)

    async def read(stream: AsyncIterator[str]) -> str:
        return "".join([piece async for piece in stream])

    run(tiny_q8_0, use)


def test_several_answers_are_streamed_at_the_same_time(tiny_q8_0: Path) -> None:
    messages = [{"role": "user", "content": PROMPT}]

    async def use(model: AsyncMixtral) -> None:
        whole = await model.chat(messages, n=2, seed=3, max_tokens=20, chat_format="mistral-v1")
        streams = await model.stream_chats(messages, 2, seed=3, max_tokens=20, chat_format="mistral-v1")
        for stream, expected in zip(streams, whole.choices, strict=True):
            assert "".join([piece async for piece in stream]) == expected.content
            assert stream.answer
            assert stream.answer.completion.tokens == expected.completion.tokens

    run(tiny_q8_0, use)
