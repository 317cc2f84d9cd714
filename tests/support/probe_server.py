"""`pymixtral` with endpoints for tests: texts without an end, silence, floods and faults.

The environment variable PROBE_SETTINGS has limits as JSON, in the place of Settings' own, and
PROBE_HOLD a file: the model is not opened before it exists.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response

from pymixtral import Mixtral
from pymixtral.cli import serve as command
from pymixtral.server import app, settings
from pymixtral.server.answering import events, whole
from pymixtral.server.service import Service, TheService

router = APIRouter(prefix="/probe")


async def _options(request: Request, service: Service) -> dict[str, Any]:
    """The body: options of generate(); without max_tokens the text has no end."""
    body: dict[str, Any] = await request.json()
    return {"ignore_eos": True, "context_shift": 64, "timeout": service.timeout(), **body}


@router.post("/whole")
async def whole_text(request: Request, service: TheService) -> dict[str, Any]:
    options = await _options(request, service)
    async with service.admission(options.get("n", 1), options.get("max_tokens")) as work:
        completion = await whole(request, service.model.generate(**options))
        for choice in completion.choices:
            work.finished(choice)
        return {"text": completion.text, "finish_reason": completion.finish_reason}


@router.post("/stream")
async def stream(request: Request, service: TheService) -> Response:
    options = await _options(request, service)

    async def chunks() -> AsyncIterator[dict[str, Any] | str]:
        async with service.admission() as work:
            generation = service.model.stream(**options)
            async for piece in generation:
                yield {"text": piece}
            assert generation.completion
            work.finished(generation.completion)
            yield {"finish_reason": generation.finish_reason}
            yield "[DONE]"

    return events(request, service, chunks())


@router.get("/silence")
async def silence(request: Request, service: TheService) -> Response:
    async def chunks() -> AsyncIterator[str]:
        await asyncio.Event().wait()
        yield ""

    return events(request, service, chunks())


@router.get("/flood")
async def flood(request: Request, service: TheService) -> Response:
    async def chunks() -> AsyncIterator[str]:
        async with service.admission():
            while True:
                yield "x" * 100_000
                await asyncio.sleep(0)

    return events(request, service, chunks())


@router.get("/fault")
async def fault(late: bool, request: Request, service: TheService) -> Response:
    async def chunks() -> AsyncIterator[str]:
        yield "first"
        raise RuntimeError("the secret of the stream")

    if late:
        return events(request, service, chunks())
    raise RuntimeError("the secret of the house")


def _make_app(service: Service, make: Any = app.make_app) -> FastAPI:
    made: FastAPI = make(service)
    made.include_router(router)
    return made


def _opened(*args: Any, open_model: Any = command.opened, **options: Any) -> Mixtral:
    while not Path(os.environ["PROBE_HOLD"]).exists():
        time.sleep(0.01)
    model: Mixtral = open_model(*args, **options)
    return model


if __name__ == "__main__":
    from pymixtral.__main__ import main

    app.make_app = _make_app
    limits = json.loads(os.environ.get("PROBE_SETTINGS", "{}"))
    settings.Settings = partial(settings.Settings, **limits)  # type: ignore[assignment,misc]
    if "PROBE_HOLD" in os.environ:
        command.opened = _opened
    main()
