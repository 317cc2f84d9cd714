"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter: adapters while the server runs, as vLLM has them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, NoReturn

from fastapi import Request
from pydantic import Field
from starlette.responses import JSONResponse, Response

from pymixtral.arguments import shown
from pymixtral.errors import AdapterError, ModelFileError, NativeError
from pymixtral.server.adapter_folder import adapter_path, told
from pymixtral.server.answering import whole
from pymixtral.server.api.bodies import Body
from pymixtral.server.api.routes import make_router, post
from pymixtral.server.errors import APIError
from pymixtral.server.service import Service, TheService
from pymixtral.server.state import adapter_model

router = make_router()

_Name = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$")]


class LoadRequest(Body):
    """What /v1/load_lora_adapter takes."""

    lora_name: _Name
    lora_path: Annotated[str, Field(min_length=1, max_length=4096)]
    load_inplace: bool | None = None


class UnloadRequest(Body):
    """What /v1/unload_lora_adapter takes."""

    ignored = ("lora_int_id",)

    lora_name: _Name


async def load(service: Service, body: LoadRequest) -> Response:
    """Load an adapter of the operator's folder.

    Args:
        service: the application's.
        body: the request.

    Returns:
        The model that it makes.

    Raises:
        APIError: where that is not allowed, and for a name or a path that is not right.
        PymixtralError: for what the model refuses.
    """
    async with service.adapting:
        folder, model, name = _allowed(service), service.model, body.lora_name
        if name == service.name or (name in model.adapters and not body.load_inplace):
            advice = "" if name == service.name else ": unload it, or set load_inplace"
            _refuse("lora_name", f"a name that no model has, found {shown(name)}{advice}")
        if name not in model.adapters and len(model.adapters) >= service.settings.max_adapters:
            _refuse("lora_name", f"at most {service.settings.max_adapters} adapters, found one more: unload another")
        path = adapter_path(folder, body.lora_path)
        if path is None:
            _refuse("lora_path", f"an adapter in the server's folder, found {shown(body.lora_path)}: put it there")
        try:
            await model.load_adapter(name, path, replace=True)
        except (AdapterError, ModelFileError, NativeError) as error:
            message = told(error, folder, path, body.lora_path)
            if isinstance(error, NativeError):
                raise NativeError(message) from error
            raise APIError(400, message, param="lora_path", code="invalid_value") from error
        service.scales.pop(name, None)
        return JSONResponse(adapter_model(service, name))


async def unload(service: Service, body: UnloadRequest) -> Response:
    """Unload an adapter. Answers that it writes go on.

    Args:
        service: the application's.
        body: the request.

    Returns:
        The name that is gone.

    Raises:
        APIError: where that is not allowed, and for another name.
    """
    async with service.adapting:
        _allowed(service)
        if body.lora_name not in service.model.adapters:
            loaded = ", ".join(map(shown, list(service.adapters)[:20])) or "none"
            raise APIError(
                404,
                f"expected lora_name to be an adapter's, found {shown(body.lora_name)}: loaded now: {loaded}",
                param="lora_name",
                code="model_not_found",
            )
        service.model.unload_adapter(body.lora_name)
        service.scales.pop(body.lora_name, None)
        return JSONResponse({"id": body.lora_name, "object": "model", "deleted": True})


def _allowed(service: Service) -> Path:
    """The operator's folder.

    Raises:
        APIError: if there is none.
    """
    if service.settings.adapter_folder is None:
        raise APIError(
            403,
            "expected a server whose adapters may change, found another one: its operator may allow it, for one folder",
            code="not_allowed",
        )
    return service.settings.adapter_folder


def _refuse(param: str, what: str) -> NoReturn:
    raise APIError(400, f"expected {param} to be {what}", param=param, code="invalid_value")


async def _to_its_end(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """Does all of it, also where the client leaves: nothing is half loaded while another request looks."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(_read)
    return await whole(request, asyncio.shield(task))


def _read(task: asyncio.Future[Response]) -> None:
    if not task.cancelled():
        task.exception()  # nobody may be left who asks


@post(router, "/v1/load_lora_adapter", "/load_lora_adapter")
async def load_lora_adapter(body: LoadRequest, request: Request, service: TheService) -> Response:
    """Load a low-rank adapter of the operator's folder: a model of its own, by the name that is given.

    Args:
        body: the request.
        request: its connection.
        service: the application's.
    """
    return await _to_its_end(request, load(service, body))


@post(router, "/v1/unload_lora_adapter", "/unload_lora_adapter")
async def unload_lora_adapter(body: UnloadRequest, request: Request, service: TheService) -> Response:
    """Unload a low-rank adapter. Answers that are being written with it go on.

    Args:
        body: the request.
        request: its connection.
        service: the application's.
    """
    return await _to_its_end(request, unload(service, body))
