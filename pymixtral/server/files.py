"""The page: a few files of this package, and nothing else."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Response

from pymixtral.server.errors import APIError

router = APIRouter(include_in_schema=False)

_FOLDER = Path(__file__).parent / "page"

_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/index.html": ("index.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/favicon.ico": ("favicon.ico", "image/x-icon"),
    "/favicon.svg": ("favicon.svg", "image/svg+xml"),
}
"""No part of a request becomes the name of a file: these are all that there are."""

_HEADERS = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def _add(path: str, name: str, kind: str) -> None:
    async def file() -> Response:
        try:
            content = (_FOLDER / name).read_bytes()
        except OSError:
            raise APIError(404, f"expected the file {name} of the page, found none") from None
        return Response(content, headers={**_HEADERS, "content-type": kind})

    router.add_api_route(path, file, methods=["GET", "HEAD"])


for _path, (_name, _kind) in _FILES.items():
    _add(_path, _name, _kind)
