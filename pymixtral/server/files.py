"""The page: files that are read once, and headers that keep it to itself.

The page is written by hand and built by nothing: index.html, style.css, and modules of which page.js
is the first. It loads nothing from other hosts, sets text as text alone, and talks to the server that
it came from.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from fastapi import APIRouter, Request, Response

router = APIRouter(include_in_schema=False)

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
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",  # asked for again by its etag, so that a new version is seen at once
}
"""The headers of each file."""

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

_FOLDER = Path(__file__).parent / "page"

FILES = {
    "/": "index.html",
    "/index.html": "index.html",
    "/favicon.ico": "icon.svg",
    **{f"/page/{path.name}": path.name for path in sorted(_FOLDER.iterdir()) if path.suffix in _TYPES},
}
"""Paths and their files. No part of a request becomes the name of a file: these are all that there are."""


def _add(path: str, file: Path) -> None:
    content, kind = file.read_bytes(), _TYPES[file.suffix]
    headers = {**HEADERS, "content-type": kind, "etag": f'"{sha256(content).hexdigest()[:32]}"'}

    async def give(request: Request) -> Response:
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers)

    router.add_api_route(path, give, methods=["GET", "HEAD"])


for _path, _name in FILES.items():
    _add(_path, _FOLDER / _name)
