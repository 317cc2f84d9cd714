"""POST /v1/completions: the texts that follow prompts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import Request
from pydantic import Field
from starlette.responses import Response

from pymixtral.engine.completion import Completion
from pymixtral.engine.stream import AsyncGeneration
from pymixtral.mixtral import Mixtral
from pymixtral.server.answering import Chunk
from pymixtral.server.api.answers import Usage, chunks_of, ending, head, new_id
from pymixtral.server.api.bodies import Text, TokenIds
from pymixtral.server.api.routes import make_router, post, stream, whole
from pymixtral.server.api.routing import RoutingWriter
from pymixtral.server.api.sampling import Several, WritingBody
from pymixtral.server.api.token_texts import Offsets, TokenTexts
from pymixtral.server.errors import APIError
from pymixtral.server.service import Service, TheService, Work

router = make_router()

MAX_PROMPTS = 1024
"""Prompts of one request."""

MAX_CHOICES = 2048
"""Texts of one request: to make so many takes half a second."""


class CompletionRequest(WritingBody):
    """What /v1/completions takes."""

    ignored = (
        *("user", "metadata", "store", "service_tier", "prompt_cache_key", "safety_identifier", "cache_prompt"),
        *("skip_special_tokens", "spaces_between_special_tokens"),
    )
    refused = (
        *("suffix", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "grammar"),
        *("use_beam_search", "length_penalty", "prompt_embeds", "logits_processors", "lora"),
    )

    prompt: (
        Text
        | TokenIds
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)]
    )
    max_tokens: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    best_of: Several | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: Literal[-1] | Annotated[int, Field(ge=1, lt=1 << 31)] | None = None

    @property
    def n_texts(self) -> int:
        """How many texts are generated."""
        n_prompts = len(self.prompt) if isinstance(self.prompt, list) and not _is_ids(self.prompt) else 1
        return n_prompts * max(self.n or 1, self.best_of or 1)

    def check(self) -> None:
        """Refuse fields that contradict each other.

        Raises:
            APIError: for the first of them.
        """
        n = self.n or 1
        if self.best_of is not None and self.best_of < n:
            _refuse("best_of", f"best_of of at least n, which is {n}, found {self.best_of}")
        if self.n_texts > MAX_CHOICES:
            what = "n" if self.best_of is None else "best_of"
            _refuse(what, f"{what} to make at most {MAX_CHOICES} texts of all prompts, found {self.n_texts}: ask twice")
        if self.stream:
            if self.best_of is not None and self.best_of > n:
                _refuse("best_of", "best_of of n in a stream, found more: nobody knows the best before the end")
            if self.prompt_logprobs is not None:
                _refuse("prompt_logprobs", "no prompt_logprobs in a stream, found some: ask for a whole answer")
            if self.echo and self.logprobs is not None:
                _refuse("echo", "no echo with logprobs in a stream, found both: ask for a whole answer")
        elif self.stream_options is not None:
            _refuse("stream_options", "stream_options in a stream alone, found some without: set stream")

    async def prompts(self, model: Mixtral) -> list[str | list[int]]:
        """Make the prompts that the model is given.

        Args:
            model: has the tokenizer, and the context that prompts are cut to.
        """
        given: Any = self.prompt
        prompts: list[str | list[int]] = [given] if isinstance(given, str) or _is_ids(given) else given
        add_bos = self.add_special_tokens is not False
        if add_bos and self.truncate_prompt_tokens is None:
            return prompts
        most = model.n_ctx - 1 if self.truncate_prompt_tokens == -1 else self.truncate_prompt_tokens
        cut: list[str | list[int]] = []
        for prompt in prompts:
            ids = await asyncio.to_thread(model.tokenize, prompt, add_bos) if isinstance(prompt, str) else prompt
            cut.append(ids if most is None else ids[-most:])
        return cut

    def options(self, service: Service) -> dict[str, Any]:
        """Turn the fields into options of Mixtral.generate().

        Args:
            service: the application's.

        Raises:
            APIError: for fields that contradict each other.
        """
        options = self.common_options(service)
        options["max_tokens"] = 16 if self.max_tokens is None else self.max_tokens
        if self.logprobs is not None:
            options["logprobs"] = self.logprobs
            if self.echo:
                options["prompt_logprobs"] = max(self.logprobs, self.prompt_logprobs or 0)
        if self.reads_alone and "prompt_logprobs" in options:
            options["max_tokens"] = 1  # without any, nothing is computed
        return options

    @property
    def reads_alone(self) -> bool:
        """Whether no token is wanted."""
        return self.max_tokens == 0


def _is_ids(prompt: Any) -> bool:
    return isinstance(prompt, list) and isinstance(prompt[0], int)


def _refuse(param: str, what: str) -> None:
    raise APIError(400, f"expected {what}", param=param, code="invalid_value")


class _Writer:
    """Writes the choices of one request.

    Args:
        model: has the vocabulary.
        body: the request.
        prompt: one of its prompts.
    """

    def __init__(self, model: Mixtral, body: CompletionRequest, prompt: str | list[int]) -> None:
        self._model, self._body = model, body
        self._names = TokenTexts(model, body.return_tokens_as_token_ids)
        wants_ids = body.return_token_ids or (body.echo and body.logprobs is not None)
        self.ids = (model.tokenize(prompt) if isinstance(prompt, str) else prompt) if wants_ids else []
        self.echoed = ""
        if body.echo:
            self.echoed = prompt if isinstance(prompt, str) else model.detokenize(prompt)
        has_text = bool(prompt) if isinstance(prompt, str) else any(map(model.token_bytes, prompt))
        self._begins_text = bool(body.echo) or not has_text

    def choice(self, index: int, completion: Completion) -> dict[str, Any]:
        """Write a whole text.

        Args:
            index: its number.
            completion: the text.
        """
        body, text = self._body, self.echoed + completion.text
        choice: dict[str, Any] = {"index": index, "text": text, "logprobs": None, **ending(completion)}
        if body.logprobs is not None:
            ids, tokens = list(completion.tokens), list[Any](completion.logprobs or [])
            if body.echo:
                ids, tokens = self.ids + ids, [self._cut(one) for one in completion.prompt_logprobs or []] + tokens
            offsets = Offsets(self._model, self._begins_text)
            choice["logprobs"] = self._names.of_completion(tokens, ids, [offsets.take(id) for id in ids])
        if body.prompt_logprobs is not None:
            choice["prompt_logprobs"] = self._names.of_prompt(completion.prompt_logprobs or [])
        if body.return_token_ids:
            choice |= {"prompt_token_ids": self.ids, "token_ids": completion.tokens}
        return choice | RoutingWriter(self._model, body.return_routing).field(completion.routing)

    def _cut(self, token: Any) -> Any:
        """The log-probability of a prompt's token, with as many likely ones as `logprobs` says."""
        return token and type(token)(token.id, token.logprob, token.top[: self._body.logprobs])

    async def choices(self, index: int, generation: AsyncGeneration, work: Work) -> AsyncIterator[dict[str, Any]]:
        """Write a text piece by piece.

        Args:
            index: its number.
            generation: the text.
            work: is told the end.

        Yields:
            Choices, the last with finish_reason; each with the number of tokens so far as "n".
        """
        body = self._body
        offsets = Offsets(self._model, self._begins_text, len(self.echoed))
        routing = RoutingWriter(self._model, body.return_routing)
        n = 0
        first: dict[str, Any] = {"prompt_token_ids": self.ids} if body.return_token_ids else {}
        if body.echo:
            yield {"index": index, "text": self.echoed, "logprobs": None, "finish_reason": None, **first, "n": 0}
            first = {}
        while True:
            text = await anext(generation, None)
            choice: dict[str, Any] = {"index": index, "text": text or "", "logprobs": None, "finish_reason": None}
            choice |= first
            ids, first = generation.tokens[n:], {}
            if body.logprobs is not None and (ids or text):
                logprobs = generation.logprobs[n:]
                choice["logprobs"] = self._names.of_completion(logprobs, ids, [offsets.take(id) for id in ids])
            if body.return_token_ids:
                choice["token_ids"] = ids
            n += len(ids)
            if body.return_routing:
                choice |= routing.field(generation.routing)
            if text is None:
                completion = generation.completion
                assert completion
                work.finished(completion)
                yield {**choice, **ending(completion), "n": n}
                return
            yield {**choice, "n": n}


async def _writers(model: Mixtral, body: CompletionRequest, prompts: Sequence[str | list[int]]) -> list[_Writer]:
    """One for each prompt, made in a thread: they may want the tokens of the prompts."""
    return await asyncio.to_thread(lambda: [_Writer(model, body, prompt) for prompt in prompts])


def _unwritten(completion: Completion) -> Completion:
    others = tuple(_unwritten(other) for other in completion.others)
    logprobs: list[Any] | None = None if completion.logprobs is None else []
    return replace(
        completion, text="", tokens=[], finish_reason="length", stop_reason=None, logprobs=logprobs, others=others
    )


async def complete(service: Service, body: CompletionRequest, work: Work) -> dict[str, Any]:
    """Answer whole.

    Args:
        service: the application's.
        body: the request.
        work: is told the texts.

    Returns:
        The answer.

    Raises:
        PymixtralError: for what the model refuses.
        APIError: for fields that contradict each other.
    """
    body.check()
    model = service.model
    prompts: Any = await body.prompts(model.model)
    options = body.options(service)
    answer = head(service, options, new_id("cmpl", body.request_id), "text_completion")
    results: Any = await model.generate(prompts, n=body.n or 1, best_of=body.best_of, **options)
    if body.reads_alone:
        results = [_unwritten(result) for result in results]
    choices: list[dict[str, Any]] = []
    for writer, result in zip(await _writers(model.model, body, prompts), results, strict=True):
        for completion in result.choices:
            work.finished(completion)
            choices.append(writer.choice(len(choices), completion))
    n_generated = sum(len(completion.tokens) for result in results for completion in result.choices)
    return {**answer, "choices": choices, "usage": Usage([result.stats for result in results], n_generated).plain()}


async def complete_chunks(service: Service, body: CompletionRequest, work: Work) -> AsyncGenerator[Chunk, None]:
    """Answer piece by piece.

    Args:
        service: the application's.
        body: the request.
        work: is told the texts.

    Returns:
        The chunks.

    Raises:
        PymixtralError: for what the model refuses.
    """
    model, n = service.model, body.n or 1
    prompts = await body.prompts(model.model)
    options: Any = body.options(service)
    streams = [await model.streams(prompt, n, **options) for prompt in prompts]
    writers = await _writers(model.model, body, prompts)
    choices = [
        writer.choices(i * n + j, text, work)
        for i, (writer, texts) in enumerate(zip(writers, streams, strict=True))
        for j, text in enumerate(texts)
    ]
    answer = head(service, options, new_id("cmpl", body.request_id), "text_completion")
    return chunks_of(answer, streams, choices, body.stream_options)


@post(router, "/v1/completions", "/completions", sse=True)
async def completions(body: CompletionRequest, request: Request, service: TheService) -> Response:
    """Write the texts that follow prompts.

    Args:
        body: the request.
        request: its connection.
        service: the application's.
    """
    service.check_model(body.model)
    body.check()  # before the queue counts its texts
    if body.stream:
        return stream(request, service, body, body.n_texts, lambda work: complete_chunks(service, body, work))
    return await whole(request, service, body, body.n_texts, lambda work: complete(service, body, work))
