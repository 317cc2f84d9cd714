"""Errors as OpenAI's interface has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from pymixtral.errors import (
    CanceledError,
    ClosedError,
    ContextLengthError,
    DeadlineError,
    HostLostError,
    InvalidArgumentError,
    PymixtralError,
    UnsupportedError,
)

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    499: "cancelled_error",
    501: "not_supported_error",
    503: "unavailable_error",
    504: "timeout_error",
}

_NO_RETRY = {"x-should-retry": "false"}
"""Tells OpenAI's clients, which try again after each status from 500 on, that it is of no use."""


class APIError(Exception):
    """An error that a client is told.

    Args:
        status: of HTTP.
        message: one sentence for the reader.
        type: the kind of error; None: that of the status.
        param: the field of the request that is wrong.
        code: a word for programs.
        headers: more headers of the answer.
        **more: more fields of the error.

    Attributes:
        status: of HTTP.
        headers: more headers of the answer.
        body: what the answer holds.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str | None = None,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        kind = type or _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code, **more}}


def api_error(error: BaseException) -> APIError:
    """Say an error of whatever kind as the client is told it.

    Args:
        error: any exception. Of one that nobody expected, the client learns nothing.

    Returns:
        The error to answer with.
    """
    if isinstance(error, APIError):
        return error
    if isinstance(error, RequestValidationError):
        return _of_validation(error)
    if isinstance(error, HTTPException):
        return APIError(error.status_code, _of_routing(error), headers=error.headers)
    message = str(error)
    if isinstance(error, ContextLengthError):
        return APIError(400, message, code="context_length_exceeded")
    if isinstance(error, InvalidArgumentError):
        return APIError(400, message, code="invalid_value")
    if isinstance(error, UnsupportedError):
        return APIError(501, message, code="not_supported", headers=_NO_RETRY)
    if isinstance(error, DeadlineError):
        return APIError(504, message, code="deadline", headers=_NO_RETRY)
    if isinstance(error, CanceledError):
        return APIError(499, message, code="cancelled")
    if isinstance(error, ClosedError):
        return APIError(503, message, code="closed")
    if isinstance(error, HostLostError):
        return APIError(503, message, code="host_lost")
    if isinstance(error, PymixtralError):
        return APIError(500, message, headers=_NO_RETRY)
    return APIError(500, "expected an answer, found a fault of the server: its log has more", headers=_NO_RETRY)


def _of_routing(error: HTTPException) -> str:
    if error.status_code == 404:
        return "expected an endpoint of this server, found another path: /openapi.json lists the endpoints"
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow") or (error.headers or {}).get("allow") or "another one"
        return f"expected the method {allowed} for this path, found one that it does not have: use that"
    return str(error.detail)


def _of_validation(error: RequestValidationError) -> APIError:
    first = error.errors()[0]
    where = [str(part) for part in first.get("loc", ()) if part not in ("body", "query", "path")]
    param = ".".join(where) or None
    code = "unknown_parameter" if first.get("type") == "extra_forbidden" else "invalid_value"
    at = f"{param}: " if param else ""
    return APIError(400, f"{at}{first.get('msg', 'expected another value')}", param=param, code=code)


def answer(error: BaseException) -> JSONResponse:
    """Make the answer to a request that failed.

    Args:
        error: any exception.
    """
    told = api_error(error)
    return JSONResponse(told.body, told.status, told.headers)


async def _handle(_: Request, error: Exception) -> JSONResponse:
    return answer(error)


def add_handlers(app: FastAPI) -> None:
    """Let an application answer errors in this form.

    Args:
        app: the application.
    """
    for kind in (APIError, PymixtralError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _handle)
