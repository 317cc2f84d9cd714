"""Errors of the library as clients of the server see them."""

from __future__ import annotations

import pytest

from pymixtral.errors import ClosedError, HostLostError, NonFiniteError, PymixtralError
from pymixtral.server.errors import api_error


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (HostLostError("expected all hosts, found that one is gone: ask again"), 503, "host_lost"),
        (ClosedError("expected an open model, found one that was closed: open it again"), 503, "closed"),
    ],
)
def test_what_may_be_asked_again_is_unavailable(error: PymixtralError, status: int, code: str) -> None:
    found = api_error(error)
    assert (found.status, found.body["error"]["code"]) == (status, code)
    assert found.body["error"]["type"] == "unavailable_error"
    assert found.body["error"]["message"] == str(error)


def test_what_comes_of_the_model_is_an_error_of_the_server() -> None:
    assert api_error(NonFiniteError("expected finite numbers, found others")).status == 500
