"""Where there is no Ray, and addresses of clusters that are none: no Ray is needed to refuse them."""

from __future__ import annotations

import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from types import FrameType, ModuleType, SimpleNamespace
from typing import Any

import pytest

from pymixtral import InvalidArgumentError, UnsupportedError
from pymixtral.cluster import connection
from pymixtral.cluster.connection import connect, head_answers
from pymixtral.cluster.pipeline import open_pipeline


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "find_spec", lambda _: None)
    for call in (connect, open_pipeline):
        with pytest.raises(UnsupportedError, match=r"^expected the package ray, found none: .* `pip install 'pymix"):
            call()


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ray that fails the test where it is asked to connect."""
    ray, exceptions = ModuleType("ray"), ModuleType("ray.exceptions")

    def init(**options: Any) -> None:
        raise AssertionError(f"Ray was asked to connect to {options}")

    for name, value in {"is_initialized": lambda: False, "init": init, "exceptions": exceptions}.items():
        setattr(ray, name, value)
    for name in ("AuthenticationError", "RayError"):
        setattr(exceptions, name, type(name, (Exception,), {}))
    monkeypatch.setattr(connection, "check_ray", lambda: None)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.exceptions", exceptions)


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("connected", [False, True])
@pytest.mark.parametrize(
    "address", ["nonsense", "", ":", "host:", ":6379", "host:port", "ray://host:x", "host:99999", "host:\u00b2"]
)
def test_what_is_no_address(address: str, connected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["ray"], "is_initialized", lambda: connected)
    with pytest.raises(InvalidArgumentError, match="address of a cluster as HOST:PORT"):
        connect(address)


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("by_variable", [False, True])
def test_nobody_listens(by_variable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as bound:  # a port that nobody else gets, and that nobody listens at
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address if by_variable else "")
        with pytest.raises(InvalidArgumentError, match=f"found none at '{address}'.*refused"):
            connect("auto" if by_variable else address)


@pytest.mark.usefixtures("no_ray")
def test_a_name_that_no_host_can_have() -> None:
    with pytest.raises(InvalidArgumentError, match="found none at"):
        connect(f"{80 * 'a'}.example:1")


@pytest.mark.usefixtures("no_ray")
def test_the_programs_own_handler_of_sigterm_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray sets one that ends the program with status 15."""

    def own(number: int, frame: FrameType | None) -> None: ...

    monkeypatch.setattr(sys.modules["ray"], "init", lambda **_: signal.signal(signal.SIGTERM, lambda *_: None))
    before = signal.signal(signal.SIGTERM, own)
    try:
        with socket.create_server(("127.0.0.1", 0)) as head, ThreadPoolExecutor(1) as pool:
            pool.submit(lambda: head.accept()[0].close())
            assert connect(f"127.0.0.1:{head.getsockname()[1]}")
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("no_ray")
def test_a_head_that_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system takes its connections, but it says nothing, and Ray would wait for ever."""
    monkeypatch.setattr(connection, "_SECONDS", 0.1)
    monkeypatch.setattr(connection, "_HEAD_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        with pytest.raises(InvalidArgumentError, match=f"found none at '{address}'.*timed out"):
            connect(address)
        ray: Any = sys.modules["ray"]
        monkeypatch.setattr(ray, "is_initialized", lambda: True)
        monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address=address), raising=False)
        assert head_answers()
        assert not head_answers(speaks=True)
