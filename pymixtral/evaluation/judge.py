"""A judge: another model, behind any server with OpenAI's interface, that is asked for its opinion."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from pymixtral.arguments import shown
from pymixtral.errors import InvalidArgumentError

KEY = "PYMIXTRAL_JUDGE_KEY"
"""The environment variable with the server's key, if it wants one."""

_MAX_BYTES = 1 << 24
_BUSY = (408, 409, 425, 429, 500, 502, 503, 504)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        """A key goes to the server that was named, and to no other."""


@dataclass(frozen=True)
class Judge:
    """A judge.

    Attributes:
        url: where the interface begins, such as "http://localhost:8000/v1".
        model: the model's name at that server.
        max_tokens: of an opinion.
        timeout: seconds for an opinion.
        tries: how often a server that is busy is asked.
        pause: seconds before the second try; each pause is twice the one before.

    Raises:
        InvalidArgumentError: for a URL that is none of http or https.
    """

    url: str
    model: str
    max_tokens: int = 2048
    timeout: float = 600.0
    tries: int = 5
    pause: float = 2.0

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname)
        except ValueError:  # of a host in brackets that is no address
            valid = False
        if not valid:
            raise InvalidArgumentError(
                f"expected the judge's URL to be such as http://localhost:8000/v1, found {shown(self.url)}"
            )

    def ask(self, messages: Sequence[dict[str, str]]) -> str:
        """Ask for an opinion, the likeliest one (temperature 0).

        Args:
            messages: the conversation. Several threads may ask at the same time.

        Returns:
            The text of the answer.

        Raises:
            InvalidArgumentError: if the server cannot be reached, refuses, or answers something else.
        """
        body = {
            "model": self.model,
            "messages": list(messages),
            "temperature": 0,
            "max_tokens": self.max_tokens,
            "stream": False,
        }
        headers = {"Content-Type": "application/json"}
        if os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {os.environ[KEY]}"
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers, method="POST"
        )
        opener = urllib.request.build_opener(_NoRedirect)
        for left in reversed(range(self.tries)):
            try:
                with opener.open(request, timeout=self.timeout) as response:
                    return self._text(response.read(_MAX_BYTES))
            except urllib.error.HTTPError as error:
                if error.code not in _BUSY or not left:
                    said = error.read(500).decode("utf-8", "replace")
                    raise self._failure(f"status {error.code} ({shown(said)})") from error
            except (OSError, http.client.HTTPException) as error:  # URLError, TimeoutError
                if not left:
                    raise self._failure(str(error)) from error
            time.sleep(self.pause * 2 ** (self.tries - 1 - left))
        raise AssertionError("the last try returns or raises")

    def _text(self, data: bytes) -> str:
        try:
            text = json.loads(data)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            text = None
        if not isinstance(text, str):
            raise self._failure(shown(data[:200].decode("utf-8", "replace")))
        return text

    def _failure(self, found: str) -> InvalidArgumentError:
        return InvalidArgumentError(
            f"expected an opinion of the judge at {shown(self.url)}, found {found}: check the server, its model "
            f"{shown(self.model)} and the key in {KEY}; the answers so far are kept"
        )
