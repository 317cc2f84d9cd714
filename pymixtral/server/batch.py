"""A file of requests becomes a file of answers, in the form of OpenAI's batches and without HTTP."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pymixtral.arguments import shown
from pymixtral.asynchronous import AsyncMixtral
from pymixtral.bulk.job import Job
from pymixtral.bulk.lines import Line, json_line
from pymixtral.bulk.records import Record
from pymixtral.errors import InvalidArgumentError, NonFiniteError, PymixtralError, UnsupportedError
from pymixtral.mixtral import Mixtral
from pymixtral.server.api.bodies import Body, of_library
from pymixtral.server.api.chat import answer_chat
from pymixtral.server.api.chat_requests import ChatRequest
from pymixtral.server.api.completions import CompletionRequest, complete
from pymixtral.server.api.json_body import parse_json
from pymixtral.server.api.responses import respond
from pymixtral.server.api.responses_requests import ResponseRequest
from pymixtral.server.api.vectors import EmbeddingRequest, ScoreRequest, embed, score
from pymixtral.server.errors import APIError, api_error
from pymixtral.server.service import Service, Work
from pymixtral.server.settings import Settings

_AHEAD = 8
"""Answers for each request in flight that may wait until one before them is complete."""

_CUSTOM_ID = re.compile(r"[^\x00-\x1f\x7f]{1,512}")


@dataclass(frozen=True)
class _Endpoint:
    kind: type[Body]
    answer: Callable[[Service, Any, Work], Awaitable[dict[str, Any]]]


_ENDPOINTS = {
    "/v1/completions": _Endpoint(CompletionRequest, complete),
    "/v1/chat/completions": _Endpoint(ChatRequest, answer_chat),
    "/v1/responses": _Endpoint(ResponseRequest, respond),
    "/v1/embeddings": _Endpoint(EmbeddingRequest, lambda service, body, _: embed(service, body)),
    "/v1/score": _Endpoint(ScoreRequest, lambda service, body, _: score(service, body)),
}

URLS = tuple(_ENDPOINTS)
"""The endpoints that a batch may ask."""


@dataclass(frozen=True)
class _Request(Line):
    id: str
    custom_id: str
    url: str
    body: dict[str, Any]


class Batch(Job[_Request]):
    """A file of requests, and the file that their answers are written into; see Job.

    Each line of the requests is {"custom_id": ..., "method": "POST", "url": ..., "body": {...}}; each
    of the answers {"id", "custom_id", "response": {"status_code", "request_id", "body"}, "error"}. A
    request that is refused has an answer with the status and the body of an error.

    Args:
        model: answers.
        requests: the file of requests.
        output: the file of answers.
        scales: what the model's adapters count, by name; None: 1. A request's `model` picks one.
        force: begin anew, whatever the output holds.

    Raises:
        OutputError: if the output is one of the files that are read, or cannot be written.
    """

    noun = "request"

    def __init__(
        self,
        model: Mixtral,
        requests: Path,
        output: Path,
        *,
        scales: Mapping[str, float] | None = None,
        force: bool = False,
    ) -> None:
        scales = dict(scales or {})
        super().__init__(model, requests, output, force=force, key=f" {sorted(scales.items())}" if scales else "")
        self._service = Service(Settings(scales=scales), AsyncMixtral(model))

    # --- Parts of the job -------------------------------------------------------------------------

    def _parse(self, data: bytes, number: int, index: int, digest: str) -> _Request:
        fields = _fields(data)
        id, custom_id = f"batch_req_{digest}", fields["custom_id"]
        head = json_line({"id": id, "custom_id": custom_id})[:-1]
        return _Request(number, index, head, id, custom_id, fields["url"], fields["body"])

    def _check(self, line: _Request, known: dict[str, int]) -> None:
        if line.custom_id in known:
            raise InvalidArgumentError(
                f"expected another custom_id in each line, found {shown(line.custom_id)} as in line "
                f"{known[line.custom_id]}"
            )
        known[line.custom_id] = line.number

    def _answer_all(self, lines: Iterator[_Request], n_in_flight: int) -> None:
        asyncio.run(self._answer_in_order(lines, n_in_flight))

    # --- Parts ------------------------------------------------------------------------------------

    async def _answer_in_order(self, requests: Iterator[_Request], n_in_flight: int) -> None:
        """Answers that are complete before their turn wait."""
        places = asyncio.Semaphore(n_in_flight)
        tasks: deque[asyncio.Task[Record]] = deque()
        try:
            while True:
                for request in islice(requests, _AHEAD * n_in_flight - len(tasks)):
                    tasks.append(asyncio.create_task(self._record(request, places)))
                if not tasks:
                    break
                self._write(await tasks[0])
                tasks.popleft()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _record(self, request: _Request, places: asyncio.Semaphore) -> Record:
        async with places:
            status, body = await self._answer(request.url, request.body)
        response = {"status_code": status, "request_id": request.id, "body": body}
        return Record(request, {"response": response, "error": None}, failed=status != 200)

    async def _answer(self, url: str, given: Any) -> tuple[int, dict[str, Any]]:
        """The status and the body of an answer."""
        endpoint = _ENDPOINTS[url]
        try:
            body: Any = endpoint.kind.read(given)
            if getattr(body, "stream", None):
                raise APIError(400, "expected no stream in a batch, found one", param="stream", code="invalid_value")
            try:
                return 200, await endpoint.answer(self._service, body, Work(self._service))
            except PymixtralError as error:
                raise of_library(error, body) from error
        except (APIError, NonFiniteError, UnsupportedError) as error:
            told = api_error(error)
            return told.status, told.body


def _fields(data: bytes) -> dict[str, Any]:
    try:
        fields = parse_json(data)
    except APIError as error:
        raise InvalidArgumentError(str(error)) from None
    if not isinstance(fields, dict):
        raise InvalidArgumentError(f"expected an object with custom_id, url and body, found {shown(fields)}")
    for name in fields:
        if name not in ("custom_id", "method", "url", "body"):
            raise InvalidArgumentError(f"expected the fields custom_id, method, url and body, found {shown(name)}")
    id = fields.get("custom_id")
    if not isinstance(id, str) or not _CUSTOM_ID.fullmatch(id):
        raise InvalidArgumentError(f"expected custom_id to be a text of 1 to 512 characters, found {shown(id)}")
    if fields.get("method", "POST") != "POST":
        raise InvalidArgumentError(f"expected the method POST, found {shown(fields['method'])}")
    if fields.get("url") not in URLS:
        raise InvalidArgumentError(f"expected url to be one of {', '.join(URLS)}, found {shown(fields.get('url'))}")
    if not isinstance(fields.get("body"), dict):
        raise InvalidArgumentError(f"expected body to be an object, found {shown(fields.get('body'))}")
    return fields
