"""Addresses of clusters that are none: no Ray is needed to refuse them."""

from __future__ import annotations

import socket
import sys
from types import ModuleType
from typing import Any

import pytest

from pymixtral import InvalidArgumentError
from pymixtral.cluster.connection import connect


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ray that fails the test where it is asked to connect."""
    ray, exceptions = ModuleType("ray"), ModuleType("ray.exceptions")

    def init(**options: Any) -> None:
        raise AssertionError(f"Ray was asked to connect to {options}")

    for name, value in {"is_initialized": lambda: False, "init": init, "exceptions": exceptions}.items():
        setattr(ray, name, value)
    for name in ("AuthenticationError", "RayError"):
        setattr(exceptions, name, type(name, (Exception,), {}))
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.exceptions", exceptions)


@pytest.mark.parametrize("address", ["nonsense", "", ":", "host:", ":6379", "host:port", "ray://host:x"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(InvalidArgumentError, match="address of a cluster as HOST:PORT"):
        connect(address)


@pytest.mark.parametrize("by_variable", [False, True])
def test_nobody_listens(by_variable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as bound:  # a port that nobody else gets, and that nobody listens at
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address if by_variable else "")
        with pytest.raises(InvalidArgumentError, match=f"{address}, found nobody who listens"):
            connect("auto" if by_variable else address)


@pytest.mark.parametrize("address", ["127.0.0.1:99999", "127.0.0.1:" + 30 * "9", f"{80 * 'a'}.example:1"])
def test_places_that_nobody_can_be_at(address: str) -> None:
    with pytest.raises(InvalidArgumentError, match="found nobody who listens"):
        connect(address)
