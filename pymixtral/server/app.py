"""The application: all endpoints of a service."""

from __future__ import annotations

import importlib
import pkgutil

from fastapi import FastAPI

from pymixtral.server import api
from pymixtral.server.errors import add_handlers
from pymixtral.server.service import Service


def make_app(service: Service) -> FastAPI:
    """Make the application that serves a model.

    Args:
        service: the model and its limits.

    Returns:
        An ASGI application.
    """
    app = FastAPI(title="pymixtral", docs_url=None, redoc_url=None)
    app.state.service = service
    add_handlers(app)
    for module in pkgutil.iter_modules(api.__path__):
        router = getattr(importlib.import_module(f"{api.__name__}.{module.name}"), "router", None)
        if router is not None:
            app.include_router(router)
    return app
