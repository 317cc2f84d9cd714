"""A file of requests becomes a file of answers, in the form of OpenAI's batches and without HTTP."""

from __future__ import annotations

import asyncio
import re
import stat
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pymixtral.arguments import integer, shown
from pymixtral.asynchronous import AsyncMixtral
from pymixtral.bulk.prompts import MAX_LINE, Prompt, digest, json_line
from pymixtral.bulk.records import Records
from pymixtral.errors import InvalidArgumentError, NonFiniteError, PymixtralError, UnsupportedError
from pymixtral.files.atomic import check_dest
from pymixtral.files.gguf import GGUFFile
from pymixtral.files.kinds import named
from pymixtral.mixtral import Mixtral
from pymixtral.progress import progress_bar
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


class Batch:
    """A file of requests, and the file that their answers are written into.

    Each line of the requests is {"custom_id": ..., "method": "POST", "url": ..., "body": {...}}; each
    of the answers {"id", "custom_id", "response": {"status_code", "request_id", "body"}, "error"}. A
    request that is refused has an answer with the status and the body of an error.

    A record that the output has is not computed again, so the same call goes on where an earlier one
    ended. Each has a digest of its line, and of the model's name, size, n_ctx, kv_type and
    configuration.

    Args:
        model: answers.
        requests: the file of requests.
        output: the file of answers. It grows a record at a time, in the order of the requests.
        force: begin anew, whatever the output holds.

    Attributes:
        n_requests: requests in the file; 0 before check().
        n_done: requests that have a record in the output.
        n_resumed: those of them that another run has made.
        n_failed: those of them whose answer is an error.
        seconds: time of this run.

    Raises:
        OutputError: if the output is one of the files that are read, or cannot be written.
    """

    def __init__(self, model: Mixtral, requests: Path, output: Path, *, force: bool = False) -> None:
        self._requests, self._output, self._force = requests, output, force
        with GGUFFile(model.path) as file:
            check_dest(output, [requests, *file.paths], force=True)  # all shards
        self._service = Service(Settings(), AsyncMixtral(model))
        self._key = str((model.path.name, model.path.stat().st_size, model.n_ctx, model.kv_type, model.config))
        self.n_requests = self.n_done = self.n_resumed = self.n_failed = 0
        self.seconds = 0.0

    def check(self) -> None:
        """Check all lines, but for their bodies, which are refused one by one.

        Raises:
            InvalidArgumentError: for a line that is no request, and for a custom_id that occurs
                twice; it names the file and the line.
            OSError: if the file cannot be read.
        """
        lines: dict[str, int] = {}
        for request in self._read():
            id = request.options["custom_id"]
            if id in lines:
                raise InvalidArgumentError(
                    f"{named(self._requests)}, line {request.line}: expected another custom_id in each line, found "
                    f"{shown(id)} as in line {lines[id]}"
                )
            lines[id] = request.line
        self.n_requests = len(lines)

    def run(self, n_in_flight: int = 32, *, progress: bool = True) -> None:
        """Compute the answers that the output does not have. An exception, such as KeyboardInterrupt,
        leaves those that are complete.

        Args:
            n_in_flight: how many requests the engine has at a time.
            progress: show a bar where standard error is a terminal.

        Raises:
            InvalidArgumentError: as check(), which comes first.
            OutputError: if the output cannot be written, or holds something else.
            ModelFileError: if the model's file was shortened while in use.
            ClosedError: if the model is closed.
        """
        n_in_flight = integer("n_in_flight", n_in_flight, 1)
        if not self.n_requests:
            self.check()
        begin = time.perf_counter()
        with Records(self._output, force=self._force) as records:
            self.n_resumed, self.n_failed = records.skip(self._read())
            self.n_done = self.n_resumed
            with progress_bar(total=self.n_requests, initial=self.n_done, unit=" requests", shown=progress) as bar:
                try:
                    asyncio.run(self._answer_all(records, n_in_flight, bar))
                finally:
                    self.seconds = time.perf_counter() - begin

    # --- Parts ------------------------------------------------------------------------------------

    def _read(self) -> Iterator[Prompt]:
        """The requests: lines, whose fields are the options of a Prompt."""
        index = number = 0
        with self._requests.open("rb") as file:
            if not stat.S_ISREG(self._requests.stat().st_mode):
                raise InvalidArgumentError(
                    f"{named(self._requests)}: expected a file of requests that can be read twice, found something "
                    "else: save the requests in a file first"
                )
            while data := file.readline(MAX_LINE + 1):
                number += 1
                if data.isspace():
                    continue
                try:
                    fields = _fields(data)
                except (APIError, InvalidArgumentError) as error:
                    raise InvalidArgumentError(f"{named(self._requests)}, line {number}: {error}") from None
                head = {"id": f"batch_req_{digest(self._key, data)}", "custom_id": fields["custom_id"]}
                yield Prompt(number, index, "", fields, json_line(head)[:-1])
                index += 1

    async def _answer_all(self, records: Records, n_in_flight: int, bar: tqdm[Any]) -> None:
        """Writes the records in the order of the requests. Answers that are complete before wait."""
        places = asyncio.Semaphore(n_in_flight)
        requests = islice(self._read(), self.n_done, None)
        tasks: deque[asyncio.Task[tuple[str, bool]]] = deque()
        try:
            while True:
                for request in islice(requests, _AHEAD * n_in_flight - len(tasks)):
                    tasks.append(asyncio.create_task(self._record(request, places)))
                if not tasks:
                    break
                record, failed = await tasks[0]
                tasks.popleft()
                records.append(record)
                self.n_done += 1
                self.n_failed += failed
                bar.update()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _record(self, request: Prompt, places: asyncio.Semaphore) -> tuple[str, bool]:
        async with places:
            status, body = await self._answer(request.options["url"], request.options["body"])
        id = request.head.partition('"id": "')[2].partition('"')[0]
        response = {"status_code": status, "request_id": id, "body": body}
        failed = status != 200
        # Records knows a record that failed by what stands first.
        fields = {"error": None, "response": response} if failed else {"response": response, "error": None}
        return f"{request.head}, {json_line(fields)[1:]}\n", failed

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
    if len(data) > MAX_LINE:
        raise InvalidArgumentError(f"expected a line of at most {MAX_LINE} bytes, found more: cut the request")
    fields = parse_json(data)
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
