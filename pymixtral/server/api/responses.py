"""POST /v1/responses: OpenAI's newer interface, as far as nothing is kept between requests."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from fastapi import Request
from starlette.responses import Response

from pymixtral.chatting import AsyncAnswerStream
from pymixtral.engine.completion import Completion
from pymixtral.server.answering import Chunk
from pymixtral.server.api.answers import Usage, model_name
from pymixtral.server.api.chat import calls_of, events_of
from pymixtral.server.api.responses_requests import ResponseRequest
from pymixtral.server.api.routes import make_router, post, stream, whole
from pymixtral.server.api.tools import ToolPlan
from pymixtral.server.service import Service, TheService, Work
from pymixtral.text.tool_calls import ArgumentsPiece, CallBegins, CallEnds, CallFails, TextPiece

router = make_router()


def _message(text: str, status: str, id: str | None = None) -> dict[str, Any]:
    return {
        "id": id or f"msg_{secrets.token_hex(12)}",
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": [_part(text)],
    }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _call(call_id: str, name: str, arguments: str, status: str) -> dict[str, Any]:
    return {
        "id": f"fc_{secrets.token_hex(12)}",
        "type": "function_call",
        "status": status,
        "call_id": call_id,
        "name": name,
        "arguments": arguments,
    }


class _Object:
    """The object of an answer, in its states.

    Args:
        service: the application's.
        body: the request.
        options: of its chat.
    """

    def __init__(self, service: Service, body: ResponseRequest, options: Mapping[str, Any]) -> None:
        self._fields = {
            "id": f"resp_{secrets.token_hex(12)}",
            "object": "response",
            "created_at": int(time.time()),
            "model": model_name(service, options),
            "error": None,
            "incomplete_details": None,
            **body.echoed(),
        }

    def begun(self) -> dict[str, Any]:
        """Write it before there is an answer."""
        return {**self._fields, "status": "in_progress", "output": [], "usage": None}

    def ended(self, output: list[dict[str, Any]], completion: Completion) -> dict[str, Any]:
        """Write it with its answer.

        Args:
            output: messages and calls.
            completion: what the model wrote.
        """
        complete = _status(completion) == "completed"
        usage = Usage([completion.stats], len(completion.tokens))
        return {
            **self._fields,
            "status": _status(completion),
            "incomplete_details": None if complete else {"reason": "max_output_tokens"},
            "output": output,
            "usage": {
                "input_tokens": usage.prompt,
                "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
                "output_tokens": usage.generated,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage.prompt + usage.generated,
            },
        }


def _status(completion: Completion) -> str:
    """How an answer ended. One is cancelled here after its only call."""
    return "completed" if completion.finish_reason in ("stop", "cancelled") else "incomplete"


async def respond(service: Service, body: ResponseRequest, work: Work) -> dict[str, Any]:
    """Answer whole.

    Args:
        service: the application's.
        body: the request.
        work: is told the text.

    Returns:
        The answer.

    Raises:
        PymixtralError: for what the model refuses.
        APIError: for fields that contradict each other.
    """
    chat = body.chat()
    plan = chat.plan()
    messages, options = chat.arguments(service)
    response = _Object(service, body, options)
    answer = await service.model.chat(messages, **options)
    work.finished(answer.completion)
    content, calls = calls_of(answer, plan)
    status = _status(answer.completion)
    output = [_message(content, status)] if content or not calls else []
    output += [_call(call["id"], **call["function"], status=status) for call in calls]
    return response.ended(output, answer.completion)


class _Items:
    """Writes the events of the items of an answer, which come one after the other."""

    def __init__(self) -> None:
        self.output: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None
        self._text = ""

    def take(self, event: Any) -> list[dict[str, Any]]:
        """Write what an event of the model's answer means.

        Args:
            event: of pymixtral.text.tool_calls.

        Returns:
            Events of the interface, without their numbers.
        """
        if isinstance(event, TextPiece):
            before = [] if self._is_open("message") else self._begin(_message("", "in_progress"))
            self._text += event.text
            return [*before, self._event("output_text.delta", content_index=0, delta=event.text, logprobs=[])]
        if isinstance(event, CallBegins):
            return self.end() + self._begin(_call(event.id, event.name, "", "in_progress"))
        if isinstance(event, ArgumentsPiece):
            self._text += event.text
            return [self._event("function_call_arguments.delta", delta=event.text)]
        if isinstance(event, (CallEnds, CallFails)):
            return self.end("completed" if isinstance(event, CallEnds) else "incomplete")
        return []

    def _is_open(self, kind: str) -> bool:
        return self._open is not None and self._open["type"] == kind

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        assert self._open
        return {
            "type": f"response.{kind}",
            "item_id": self._open["id"],
            "output_index": len(self.output),
            **fields,
        }

    def _begin(self, item: dict[str, Any]) -> list[dict[str, Any]]:
        before = self.end()
        self._open, self._text = item, ""
        if item["type"] == "function_call":
            return [*before, self._item("added", item)]
        begun = {**item, "content": []}
        return [
            *before,
            self._item("added", begun),
            self._event("content_part.added", content_index=0, part=_part("")),
        ]

    def _item(self, what: str, item: dict[str, Any]) -> dict[str, Any]:
        return {"type": f"response.output_item.{what}", "output_index": len(self.output), "item": item}

    def end(self, status: str = "completed") -> list[dict[str, Any]]:
        """End the item that is open, if there is one.

        Args:
            status: how it ended.
        """
        if self._open is None:
            return []
        item, text = self._open, self._text
        if item["type"] == "message":
            item = _message(text, status, item["id"])
            events = [
                self._event("output_text.done", content_index=0, text=text, logprobs=[]),
                self._event("content_part.done", content_index=0, part=_part(text)),
            ]
        else:
            item = {**item, "arguments": text, "status": status}
            events = [self._event("function_call_arguments.done", name=item["name"], arguments=text)]
        events.append(self._item("done", item))
        self.output.append(item)
        self._open = None
        return events


async def respond_events(service: Service, body: ResponseRequest, work: Work) -> AsyncGenerator[Chunk, None]:
    """Answer piece by piece.

    Args:
        service: the application's.
        body: the request.
        work: is told the text.

    Returns:
        The events, numbered.

    Raises:
        PymixtralError: for what the model refuses.
        APIError: for fields that contradict each other.
    """
    chat = body.chat()
    plan = chat.plan()
    messages, options = chat.arguments(service)
    (answer,) = await service.model.stream_chats(messages, 1, **options)
    return _events_of(answer, plan, _Object(service, body, options), work)


async def _events_of(
    answer: AsyncAnswerStream, plan: ToolPlan, response: _Object, work: Work
) -> AsyncGenerator[Chunk, None]:
    items, number = _Items(), 0
    try:
        for kind in ("created", "in_progress"):
            yield {"type": f"response.{kind}", "sequence_number": number, "response": response.begun()}
            number += 1
        async for event in events_of(answer, plan):
            for told in items.take(event):
                yield {**told, "sequence_number": number}
                number += 1
        completion = answer.generation.completion
        assert completion
        work.finished(completion)
        status = _status(completion)
        last = items.end(status)
        if not items.output:
            last = [*items.take(TextPiece("")), *items.end(status)]
        for told in last:
            yield {**told, "sequence_number": number}
            number += 1
        yield {
            "type": f"response.{status}",
            "sequence_number": number,
            "response": response.ended(items.output, completion),
        }
    finally:
        answer.cancel()


@post(router, "/v1/responses", "/responses", sse=True)
async def responses(body: ResponseRequest, request: Request, service: TheService) -> Response:
    """Answer, as OpenAI's newer interface does.

    Args:
        body: the request.
        request: its connection.
        service: the application's.
    """
    service.check_model(body.model)
    if body.stream:
        return stream(request, service, body, 1, lambda work: respond_events(service, body, work))
    return await whole(request, service, body, 1, lambda work: respond(service, body, work))
