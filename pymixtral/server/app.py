"""The application: all endpoints of a service."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from pymixtral import __version__
from pymixtral.server import api, files, state
from pymixtral.server.errors import add_handlers
from pymixtral.server.middleware import Door
from pymixtral.server.service import Service


class _App(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """FastAPI's document of the interface, without the status 422, which errors.py makes 400."""
        if self.openapi_schema is None:
            document = super().openapi()
            for methods in document["paths"].values():
                for operation in methods.values():
                    if operation["responses"].pop("422", None):
                        operation["responses"].setdefault("400", {"description": "The request makes no sense."})
        assert self.openapi_schema is not None
        return self.openapi_schema


def make_app(service: Service) -> FastAPI:
    """Make the application that serves a model.

    Args:
        service: the model and its limits.

    Returns:
        An ASGI application.
    """
    app = _App(title="pymixtral", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.service = service
    add_handlers(app)
    app.include_router(state.router)
    app.include_router(files.router)
    for module in pkgutil.iter_modules(api.__path__):
        router = getattr(importlib.import_module(f"{api.__name__}.{module.name}"), "router", None)
        if router is not None:
            app.include_router(router)
    return with_door(app, service)


def with_door(app: FastAPI, service: Service) -> FastAPI:
    """Have requests pass what all of them pass: names, keys, origins, limits of bodies, the log.

    Args:
        app: the application behind the door.
        service: the limits, and who is told.

    Returns:
        The application.
    """
    app.add_middleware(Door, service=service)
    if service.settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=service.settings.origins,
            allow_methods=["GET", "POST", "OPTIONS"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    return app
