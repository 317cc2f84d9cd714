"""The chat page: files that are read once, and headers that keep the page to itself.

The page is written by hand and built by nothing: index.html, style.css, and modules of which page.js
is the first. It loads nothing from other hosts, sets text as text alone, and talks to the server that
it came from.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files

from fastapi import APIRouter, Request, Response

POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # no text becomes markup, even where the page had a fault
        "trusted-types 'none'",
    ]
)
"""The Content-Security-Policy of the page."""

HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",  # asked for again by its etag, so that a new version is seen at once
}
"""The headers of each of its files."""

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

router = APIRouter(include_in_schema=False)
"""The page at /, and its other files at /page/NAME. Each is a route of its own: no path is made of a request's."""


def _add(path: str, content: bytes, kind: str) -> None:
    headers = {**HEADERS, "etag": f'"{hashlib.sha256(content).hexdigest()[:32]}"'}

    async def give(request: Request) -> Response:
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=kind, headers=headers)

    router.add_api_route(path, give, methods=["GET", "HEAD"])


for _file in files(__name__).iterdir():
    _suffix = _file.name[_file.name.rfind(".") :]
    if _suffix in _TYPES:
        _add("/" if _file.name == "index.html" else f"/page/{_file.name}", _file.read_bytes(), _TYPES[_suffix])
