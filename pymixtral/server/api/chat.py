"""POST /v1/chat/completions: answers in conversations."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from fastapi import Request
from starlette.responses import Response

from pymixtral.chatting import Answer, AsyncAnswerStream
from pymixtral.engine.completion import Completion
from pymixtral.mixtral import Mixtral
from pymixtral.server.answering import Chunk
from pymixtral.server.api.answers import Usage, chunks_of, ending, head, new_id
from pymixtral.server.api.chat_requests import ChatRequest
from pymixtral.server.api.routes import make_router, post, stream, whole
from pymixtral.server.api.routing import RoutingWriter
from pymixtral.server.api.token_texts import TokenTexts
from pymixtral.server.api.tools import ForcedCalls, ToolPlan, call_of
from pymixtral.server.service import Service, TheService, Work
from pymixtral.text.tool_calls import ArgumentsPiece, CallBegins, CallEnds, Event, TextPiece

router = make_router()


def calls_of(answer: Answer, plan: ToolPlan) -> tuple[str, list[dict[str, Any]]]:
    """Find the text and the calls of an answer.

    Args:
        answer: the model's.
        plan: what the request wants of tools.

    Returns:
        Its text, and its calls as OpenAI's interface has them.
    """
    if plan.forced:
        reader = ForcedCalls(plan)
        reader.push(answer.completion.text)
        reader.finish()
        return reader.content, reader.calls
    calls = answer.tool_calls if plan.parallel else answer.tool_calls[:1]
    return answer.content, [call_of(call.id, call.name, call.arguments) for call in calls]


async def events_of(answer: AsyncAnswerStream, plan: ToolPlan) -> AsyncIterator[Event]:
    """Read an answer as pieces of text and of calls.

    Args:
        answer: the model's.
        plan: what the request wants of tools. If it wants one call at most, the answer ends with it.

    Yields:
        The events.
    """
    if not plan.forced:
        async for event in answer.events():
            yield event
            if isinstance(event, CallEnds) and not plan.parallel:
                answer.cancel()
                async for _ in answer.events():
                    pass
        return
    reader = ForcedCalls(plan)
    async for text in answer.generation:
        for event in reader.push(text):
            yield event
    for event in reader.finish():
        yield event


class _Writer:
    """Writes the answers to a request.

    Args:
        model: has the vocabulary.
        body: the request.

    Attributes:
        names: writes tokens.

    Raises:
        APIError: for fields that contradict each other.
    """

    def __init__(self, model: Mixtral, body: ChatRequest) -> None:
        body.check()
        self._model, self._body, self._plan = model, body, body.plan()
        self.names = TokenTexts(model, body.return_tokens_as_token_ids)

    def choice(self, index: int, answer: Answer) -> dict[str, Any]:
        """Write a whole answer.

        Args:
            index: its number among the choices.
            answer: the model's.

        Returns:
            The choice.
        """
        body, completion = self._body, answer.completion
        content, calls = calls_of(answer, self._plan)
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if calls:
            message |= {"content": content or None, "tool_calls": calls}
        choice: dict[str, Any] = {
            "index": index,
            "message": message,
            "logprobs": self.names.of_chat(completion.logprobs or []) if body.logprobs else None,
            **self._ending(completion, bool(calls)),
        }
        if body.return_token_ids:
            choice["token_ids"] = completion.tokens
        return choice | RoutingWriter(self._model, body.return_routing).field(completion.routing)

    async def choices(self, index: int, answer: AsyncAnswerStream, work: Work) -> AsyncIterator[dict[str, Any]]:
        """Write an answer piece by piece.

        Args:
            index: its number among the choices.
            answer: the model's.
            work: is told the end.

        Yields:
            Choices, the first with the role, the last with finish_reason; each with the number of
            tokens so far as "n".
        """
        body, generation = self._body, answer.generation
        routing = RoutingWriter(self._model, body.return_routing)
        n_tokens = n_calls = 0

        def choice_of(delta: dict[str, Any]) -> dict[str, Any]:
            nonlocal n_tokens
            choice: dict[str, Any] = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
            ids = generation.tokens[n_tokens:]
            if body.logprobs and ids:
                choice["logprobs"] = self.names.of_chat(generation.logprobs[n_tokens:])
            if body.return_token_ids:
                choice["token_ids"] = ids
            n_tokens += len(ids)
            if body.return_routing:
                choice |= routing.field(generation.routing)
            return {**choice, "n": n_tokens}

        yield choice_of({"role": "assistant", "content": None})
        async for event in events_of(answer, self._plan):
            if isinstance(event, TextPiece):
                yield choice_of({"content": event.text})
            elif isinstance(event, CallBegins):
                n_calls += 1
                yield choice_of({"tool_calls": [{"index": event.index, **call_of(event.id, event.name)}]})
            elif isinstance(event, ArgumentsPiece):
                yield choice_of({"tool_calls": [{"index": event.index, "function": {"arguments": event.text}}]})
            else:
                n_calls -= not isinstance(event, CallEnds)
        completion = generation.completion
        assert completion
        work.finished(completion)
        yield choice_of({}) | self._ending(completion, n_calls > 0)

    def _ending(self, completion: Completion, called: bool) -> dict[str, Any]:
        """Why an answer ended. OpenAI says "stop" where a request names the function."""
        end = ending(completion)
        if called and end["finish_reason"] == "stop":
            end["finish_reason"] = "stop" if self._plan.name is not None else "tool_calls"
        elif called and not self._plan.forced:
            end = {"finish_reason": "tool_calls", "stop_reason": None}
        return end


async def answer_chat(service: Service, body: ChatRequest, work: Work) -> dict[str, Any]:
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
    model = service.model
    writer = _Writer(model.model, body)
    messages, options = body.arguments(service)
    answer = head(service, options, new_id("chatcmpl", body.request_id), "chat.completion")
    result = await model.chat(messages, n=body.n or 1, **options)
    for one in result.choices:
        work.finished(one.completion)
    answer["choices"] = [writer.choice(i, one) for i, one in enumerate(result.choices)]
    n_generated = sum(len(one.completion.tokens) for one in result.choices)
    answer["usage"] = Usage([result.completion.stats], n_generated).plain()
    if body.prompt_logprobs is not None:
        answer["prompt_logprobs"] = writer.names.of_prompt(result.completion.prompt_logprobs or [])
    if body.return_token_ids:
        answer["prompt_token_ids"] = await body.awaited_ids(model.model)
    return answer


async def answer_chat_chunks(service: Service, body: ChatRequest, work: Work) -> AsyncGenerator[Chunk, None]:
    """Answer piece by piece.

    Args:
        service: the application's.
        body: the request.
        work: is told the texts.

    Returns:
        The chunks.

    Raises:
        PymixtralError: for what the model refuses.
        APIError: for fields that contradict each other.
    """
    model = service.model
    writer = _Writer(model.model, body)
    messages, options = body.arguments(service)
    streams = await model.stream_chats(messages, body.n or 1, **options)
    answer = head(service, options, new_id("chatcmpl", body.request_id), "chat.completion.chunk")
    first = {"prompt_token_ids": await body.awaited_ids(model.model)} if body.return_token_ids else {}
    choices = [writer.choices(i, one, work) for i, one in enumerate(streams)]
    return chunks_of(answer, [streams], choices, body.stream_options, first)


@post(router, "/v1/chat/completions", "/chat/completions", sse=True)
async def chat_completions(body: ChatRequest, request: Request, service: TheService) -> Response:
    """Answer in a conversation.

    Args:
        body: the request.
        request: its connection.
        service: the application's.
    """
    service.check_model(body.model)
    n = body.n or 1
    if body.stream:
        return stream(request, service, body, n, lambda work: answer_chat_chunks(service, body, work))
    return await whole(request, service, body, n, lambda work: answer_chat(service, body, work))
