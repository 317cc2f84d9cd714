"""Endpoints that say what the server is and how it fares."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from pymixtral import __version__
from pymixtral.server.service import Service, TheService

router = APIRouter()

_STATES = {"loading": "Loading model", "draining": "The server ends"}


@router.head("/health", include_in_schema=False)
@router.head("/v1/health", include_in_schema=False)
@router.get("/health", operation_id="health", responses={503: {"description": "It is not ready."}})
@router.get("/v1/health", operation_id="v1_health", responses={503: {"description": "It is not ready."}})
async def health(service: TheService) -> Response:
    """Whether the server is ready for requests: 200, or 503 while it is not."""
    state = service.state
    if state == "ready":
        return JSONResponse({"status": "ok"})
    error = {"code": 503, "message": _STATES[state], "type": "unavailable_error"}
    return JSONResponse({"status": state, "error": error}, 503, {"retry-after": "1"})


@router.head("/livez", include_in_schema=False)
@router.get("/livez", operation_id="livez")
async def livez() -> dict[str, str]:
    """Whether the server answers at all, whatever its model does."""
    return {"status": "ok"}


@router.get("/version", operation_id="version")
async def version() -> dict[str, str]:
    """The version of pymixtral."""
    return {"version": __version__}


@router.get("/metrics", operation_id="metrics", response_class=Response)
async def metrics(request: Request, service: TheService) -> Response:
    """What Prometheus reads."""
    if service.metrics is None:
        _ = service.model  # raises that it is being opened
        raise AssertionError
    text, kind = service.metrics.exposition(request.headers.get("accept", ""))
    return Response(text, headers={"content-type": kind})


@router.get("/v1/models", operation_id="v1_models")
@router.get("/models", operation_id="models")
async def models(service: TheService) -> dict[str, Any]:
    """The list of models: the one that is served, then it with each of its adapters."""
    return {"object": "list", "data": [_model(service), *(adapter_model(service, name) for name in service.adapters)]}


@router.get("/v1/models/{id:path}", operation_id="v1_model", responses={404: {}})
@router.get("/models/{id:path}", operation_id="model", responses={404: {}})
async def model(id: str, service: TheService) -> dict[str, Any]:
    """The model of this name."""
    found = _model(service)
    if id in service.adapters:
        return adapter_model(service, id)
    if id != service.name:
        raise service.unknown_model(id)
    return found


def _model(service: Service) -> dict[str, Any]:
    model = service.model.model
    return {
        "id": service.name,
        "object": "model",
        "created": service.created,
        "owned_by": "pymixtral",
        "max_model_len": model.n_ctx,
        "root": model.path.name,
        "parent": None,
    }


def adapter_model(service: Service, name: str) -> dict[str, Any]:
    """Write the model with an adapter, as vLLM does; `root` is the name of its file, without the folder.

    Args:
        service: the application's.
        name: of an adapter that is loaded.
    """
    source = service.adapters[name].source
    return {**_model(service), "id": name, "root": PurePath(source).name, "parent": service.name}
