"""The files of the page, and the headers that they are given."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from fastapi import FastAPI

from pymixtral.server import files
from pymixtral.server.access import PUBLIC

FOLDER = Path(files.__file__).parent / "page"


@pytest.fixture(scope="module")
def app() -> FastAPI:
    app = FastAPI()
    app.include_router(files.router)
    return app


def get(app: FastAPI, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of a request."""
    sent = []

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    given = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b""}
    asyncio.run(app({**scope, "headers": given, "http_version": "1.1"}, receive, send))
    start, *bodies = sent
    told = {name.decode(): value.decode() for name, value in start["headers"]}
    return start["status"], told, b"".join(body.get("body", b"") for body in bodies)


def names() -> list[str]:
    return sorted(path.name for path in FOLDER.iterdir() if path.suffix in (".html", ".css", ".js", ".svg"))


@pytest.mark.parametrize("name", names())
def test_each_file_is_served_as_it_is_with_the_policy(app: FastAPI, name: str) -> None:
    status, headers, body = get(app, "/" if name == "index.html" else f"/page/{name}")
    assert (status, body) == (200, (FOLDER / name).read_bytes())
    for header, value in files.HEADERS.items():
        assert headers[header] == value
    kind = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
    assert headers["content-type"].startswith(kind[Path(name).suffix])


def test_policy_allows_this_server_alone() -> None:
    allowed = dict(rule.split(" ", 1) for rule in files.POLICY.split("; "))
    assert allowed["default-src"] == "'none'"
    assert {value for name, value in allowed.items() if name.endswith("-src")} == {"'none'", "'self'"}
    assert "unsafe" not in files.POLICY


def test_unchanged_file_is_not_sent_again(app: FastAPI) -> None:
    _, headers, _ = get(app, "/page/page.js")
    status, again, body = get(app, "/page/page.js", if_none_match=headers["etag"])
    assert (status, body, again["etag"]) == (304, b"", headers["etag"])
    assert again["content-security-policy"] == files.POLICY
    assert get(app, "/page/page.js", if_none_match='"other"')[0] == 200


@pytest.mark.parametrize("path", ["/page/", "/page/index.htm", "/page/../app.py", "/page/%2e%2e/app.py", "/page/x"])
def test_nothing_else_is_served(app: FastAPI, path: str) -> None:
    assert get(app, path)[0] == 404


def test_page_needs_no_key() -> None:
    assert {"/", *(f"/page/{name}" for name in names())} <= PUBLIC


def test_head(app: FastAPI) -> None:
    assert get(app, "/", method="HEAD")[0] == 200
    assert get(app, "/", method="POST")[0] == 405


def test_page_loads_nothing_from_elsewhere_and_has_no_inline_code() -> None:
    html = (FOLDER / "index.html").read_text()
    assert re.findall(r'(?:src|href)="([^"#][^"]*)"', html)
    for place in re.findall(r'(?:src|href)="([^"#][^"]*)"', html):
        assert (FOLDER / place.removeprefix("page/")).is_file(), place
    assert not re.search(r"\sstyle=|\son\w+=|<style|<script(?![^>]*src=)", html)
    for path in FOLDER.glob("*.js"):
        text = path.read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            path
        )
        for place in re.findall(r'from "([^"]+)"', text):
            assert (FOLDER / place).is_file(), place


def test_every_name_that_the_modules_ask_for_is_in_the_page() -> None:
    known = set(re.findall(r'\bid="([^"]+)"', (FOLDER / "index.html").read_text()))
    for path in FOLDER.glob("*.js"):
        for name in re.findall(r'(?:\$|getElementById)\("([^"]+)"\)', path.read_text()):
            assert name in known, f"{path.name}: {name}"
