"""Who may ask: API keys, origins of web pages, and names of the host."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from hashlib import sha256
from urllib.parse import urlsplit

from pymixtral.server.errors import APIError
from pymixtral.server.files import FILES
from pymixtral.server.settings import Settings

PUBLIC = frozenset((*FILES, "/health", "/v1/health", "/livez"))
"""Paths that anybody may read: the state, and the page, which holds nothing secret."""

_LOOPBACK = frozenset(("localhost", "127.0.0.1", "::1"))


class Access:
    """Decides which requests are let in.

    Args:
        settings: has the keys, the origins, and whether only this machine can connect.
    """

    def __init__(self, settings: Settings) -> None:
        self._keys = [sha256(key.encode()).digest() for key in settings.keys]
        self._origins = frozenset(settings.origins)
        self._hosts: frozenset[str] | None = None
        if settings.loopback:
            self._hosts = _LOOPBACK | {urlsplit(origin).hostname or "" for origin in self._origins}

    def check(self, method: str, path: str, headers: Mapping[str, str]) -> None:
        """Check that a request is let in.

        Args:
            method: of HTTP.
            path: of the request.
            headers: their names are in lower case.

        Raises:
            APIError: 401 without a valid key, 403 for a page of another origin or a name that is not
                this host's.
        """
        if path in PUBLIC or method == "OPTIONS":  # browsers send no key with OPTIONS
            return
        self._check_host(headers.get("host", ""))
        self._check_origin(headers.get("origin"), headers.get("host", ""))
        self._check_key(headers)

    def _check_host(self, host: str) -> None:
        """A page that has its own name resolved to 127.0.0.1 is of the same origin for the browser."""
        if host and self._hosts is not None and _hostname(host) not in self._hosts:
            raise APIError(
                403,
                f"expected localhost or 127.0.0.1 as the host, found {host[:200]!r}: "
                "start the server with the address of its pages among the cors_origins",
                code="host_not_allowed",
            )

    def _check_origin(self, origin: str | None, host: str) -> None:
        if origin is None or "*" in self._origins or origin.lower() in self._origins:
            return
        if origin.lower().partition("://")[2] == host.lower() and host:
            return
        raise APIError(
            403,
            f"expected a page of this server, found one of {origin[:200]!r}: "
            "start the server with that address among the cors_origins",
            code="origin_not_allowed",
        )

    def _check_key(self, headers: Mapping[str, str]) -> None:
        if not self._keys:
            return
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        found = bearer.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        digest = sha256(found.encode("utf-8", "surrogateescape")).digest()
        valid = False
        for key in self._keys:  # all of them, so that the time tells nothing
            valid |= hmac.compare_digest(digest, key)
        if not valid:
            raise APIError(
                401,
                f"expected a valid API key, found {'another one' if found else 'none'}: "
                "send it as 'Authorization: Bearer KEY'",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )


def _hostname(host: str) -> str:
    """The name in a header Host, without the port, in lower case; "" for what is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""
