"""Routes that read bodies with limits, and answer whole or as a stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.responses import Response

from pymixtral.errors import PymixtralError
from pymixtral.server import answering
from pymixtral.server.api.bodies import Body, invalid, of_library
from pymixtral.server.api.json_body import parse_json
from pymixtral.server.service import Service, Work

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}

_STATUSES = {
    400: "The request is wrong; `param` names the field.",
    401: "A key is missing or wrong.",
    403: "The operator does not allow it.",
    404: "There is no such model or path.",
    405: "The path has another method.",
    408: "The body did not come in time, or the time that the request gives itself is over.",
    413: "The body is too large.",
    415: "The body is not application/json.",
    429: "Too many requests wait; Retry-After says how long to wait.",
    500: "The server has failed.",
    501: "The server or its model does not offer this.",
    503: "The model is being opened, or the server is about to end.",
    504: "The time for the request is over.",
}

RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"description": meaning, "content": {"application/json": {"schema": _ERROR}}}
    for status, meaning in _STATUSES.items()
}
"""What every endpoint may answer."""


class JSONRoute(APIRoute):
    """A route whose body is JSON, read by parse_json() and checked as its Body says."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Make what answers a request; see FastAPI."""
        handle = super().get_route_handler()
        kind = self.body_field.field_info.annotation if self.body_field else None

        async def read_and_handle(request: Request) -> Response:
            if not (isinstance(kind, type) and issubclass(kind, Body)):
                return await handle(request)
            data = kind.prepared(parse_json(await request.body()))
            request._json = data  # what request.json() gives
            try:
                return await handle(request)
            except RequestValidationError as error:
                raise invalid(error.errors(), data) from None

        return read_and_handle


def make_router() -> APIRouter:
    """Make an empty router for endpoints of the interface."""
    return APIRouter(route_class=JSONRoute, responses=RESPONSES)


def post(router: APIRouter, *paths: str, sse: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a decorator that lets a function answer POST at one or several paths.

    Args:
        router: of the function's module.
        *paths: the first is the one that is documented.
        sse: whether it may answer with server-sent events.
    """
    ok: dict[str, Any] = {"content": {"application/json": {"schema": {"type": "object"}}}}
    if sse:
        ok["content"]["text/event-stream"] = {}

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        for i, path in enumerate(paths):
            router.add_api_route(
                path,
                function,
                methods=["POST"],
                response_model=None,
                include_in_schema=i == 0,
                responses={200: {"description": "The answer.", **ok}},
                description=(function.__doc__ or "").partition("Args:")[0].strip(),
            )
        return function

    return add


async def whole(
    request: Request, service: Service, body: Body, n: int, work: Callable[[Work], Awaitable[dict[str, Any]]]
) -> Response:
    """Answer with an object, once it is complete.

    Args:
        request: the request.
        service: the application's.
        body: the request's.
        n: texts that it asks for.
        work: computes the answer.

    Returns:
        The response.

    Raises:
        APIError: for what is wrong with the request, and while nobody can be served.
    """

    async def admitted() -> dict[str, Any]:
        async with service.admission(n, _most_tokens(body)) as place:
            return await work(place)

    try:
        return JSONResponse(await answering.whole(request, admitted()))
    except PymixtralError as error:
        raise of_library(error, body) from error


def stream(
    request: Request,
    service: Service,
    body: Body,
    n: int,
    work: Callable[[Work], Awaitable[AsyncGenerator[answering.Chunk, None]]],
) -> Response:
    """Answer with a stream of events.

    Args:
        request: the request.
        service: the application's.
        body: the request's.
        n: texts that it asks for.
        work: begins the answer, and returns an asynchronous generator of its chunks.

    Returns:
        The response.
    """

    async def admitted() -> AsyncIterator[answering.Chunk]:
        async with service.admission(n, _most_tokens(body)) as place:
            try:
                async with aclosing(await work(place)) as chunks:
                    async for chunk in chunks:
                        yield chunk
            except PymixtralError as error:
                raise of_library(error, body) from error

    return answering.events(request, service, admitted())


def _most_tokens(body: Body) -> int | None:
    """The most tokens that a request asks for, whatever its endpoint calls them; None: no limit."""
    names = ("max_completion_tokens", "max_tokens", "max_output_tokens")
    return next((value for name in names if (value := getattr(body, name, None)) is not None), None)
