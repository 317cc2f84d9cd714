"""What all answers that hold texts have in common: head, usage, the end of a text."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing
from importlib.metadata import version
from typing import Any, Protocol, TypeVar

from pymixtral.engine.completion import Completion, Stats
from pymixtral.server.answering import Chunk, next_of
from pymixtral.server.api.sampling import StreamOptions
from pymixtral.server.service import Service

T = TypeVar("T")


def new_id(prefix: str, request_id: str | None = None) -> str:
    """Make the id of an answer.

    Args:
        prefix: what kind of answer it is.
        request_id: the client's own; None: it has none.
    """
    return f"{prefix}-{request_id or secrets.token_hex(12)}"


def model_name(service: Service, options: Mapping[str, Any]) -> str:
    """Name the model of an answer.

    Args:
        service: the application's.
        options: of the request, with the adapters that it chose.

    Returns:
        The adapter's name where it chose one; else the model's own.
    """
    names = list(options["adapter"])
    return names[0] if len(names) == 1 else service.name


def head(service: Service, options: Mapping[str, Any], id: str, kind: str) -> dict[str, Any]:
    """Make the fields that an answer, and all chunks of a stream, begin with.

    Args:
        service: the application's.
        options: of the request, with the adapter that it chose.
        id: the answer's.
        kind: the value of `object`.
    """
    return {
        "id": id,
        "object": kind,
        "created": int(time.time()),
        "model": model_name(service, options),
        "system_fingerprint": f"pymixtral-{version('pymixtral')}",
    }


def ending(completion: Completion) -> dict[str, Any]:
    """Say why a text ended. OpenAI has no word for a full context and a deadline: `stop_reason` says so.

    Args:
        completion: the text.
    """
    if completion.finish_reason == "stop":
        return {"finish_reason": "stop", "stop_reason": completion.stop_reason}
    reason = None if completion.finish_reason == "length" else completion.finish_reason
    return {"finish_reason": "length", "stop_reason": reason}


class Usage:
    """Counts the tokens of an answer.

    Args:
        prompts: what the engine says of each prompt; of several texts of one, the first's.
        n_generated: tokens of all texts.
    """

    def __init__(self, prompts: Iterable[Stats], n_generated: int) -> None:
        prompts = list(prompts)
        self.prompt = sum(stats.prompt_tokens for stats in prompts)
        self.cached = sum(stats.cached_tokens for stats in prompts)
        self.generated = n_generated

    def plain(self) -> dict[str, Any]:
        """Say it as chat and completions do."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.generated,
            "total_tokens": self.prompt + self.generated,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


async def merged(iterators: Sequence[AsyncIterator[T]]) -> AsyncGenerator[T, None]:
    """Read several iterators at the same time.

    Args:
        iterators: asynchronous generators.

    Yields:
        Whatever comes first.

    Raises:
        Exception: the first of any of them; the others are ended.
    """
    if len(iterators) == 1:  # without a task for each value
        async for value in iterators[0]:
            yield value
        return
    waiting = {asyncio.ensure_future(next_of(one)): one for one in iterators}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            order = {task: i for i, task in enumerate(waiting)}
            for task in sorted(done, key=order.__getitem__):
                one = waiting.pop(task)
                try:
                    value = task.result()
                except StopAsyncIteration:
                    continue
                yield value
                waiting[asyncio.ensure_future(next_of(one))] = one
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


class Written(Protocol):
    """A text that the engine writes, and whoever reads it."""

    @property
    def stats(self) -> Stats:
        """The work and the time so far."""

    def cancel(self) -> None:
        """End it soon."""


async def chunks_of(
    answer: dict[str, Any],
    texts: Sequence[Sequence[Written]],
    choices: Sequence[AsyncIterator[dict[str, Any]]],
    options: StreamOptions | None,
    first: Mapping[str, Any] | None = None,
) -> AsyncGenerator[Chunk, None]:
    """Write the chunks of a stream. Its texts end with it.

    Args:
        answer: the fields that each chunk begins with.
        texts: those of each prompt.
        choices: an asynchronous generator for each text. It gives the choices of its chunks, each
            with the number of tokens so far as "n".
        options: what the stream tells beside the texts.
        first: more fields of the first chunk.

    Yields:
        The chunks.

    Raises:
        PymixtralError: for what ends a text too early.
    """
    generated: dict[int, int] = {}
    more = dict(first or {})

    def usage() -> dict[str, Any]:
        return Usage([of_prompt[0].stats for of_prompt in texts], sum(generated.values())).plain()

    try:
        async with aclosing(merged(choices)) as found:
            async for choice in found:
                generated[choice["index"]] = choice.pop("n")
                chunk, more = {**answer, "choices": [choice], **more}, {}
                if options and options.continuous_usage_stats:
                    chunk["usage"] = usage()
                yield chunk
    finally:
        for of_prompt in texts:
            for text in of_prompt:
                text.cancel()
    if options and options.include_usage:
        yield {**answer, "choices": [], "usage": usage()}
    yield "[DONE]"
