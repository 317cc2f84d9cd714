"""Where there is no Ray, and addresses of clusters that are none: no Ray is needed to refuse them. Whether a head
answers, too, its address tells alone.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import FrameType, ModuleType, SimpleNamespace
from typing import Any

import pytest

from pymixtral import InvalidArgumentError, UnsupportedError
from pymixtral.cluster import connection
from pymixtral.cluster.connection import connect, head_answers
from pymixtral.cluster.pipeline import open_pipeline
from support.serving import LONG


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


@pytest.mark.usefixtures("no_ray")
def test_whether_the_head_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = sys.modules["ray"]
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address=address), raising=False)
        assert not head_answers()  # of no cluster
        monkeypatch.setattr(ray, "is_initialized", lambda: True)
        assert head_answers()
    assert not head_answers()

    errors = [errno.EMFILE, errno.ENFILE, errno.EHOSTUNREACH]

    def refused(*_: Any) -> None:
        raise OSError(errors.pop(0), "")

    monkeypatch.setattr(socket, "create_connection", refused)
    assert [head_answers() for _ in range(3)] == [True, True, False]  # no file is free here: that says nothing of it


LEAVING = """
import atexit, socket, sys, threading
from types import ModuleType, SimpleNamespace
ray = sys.modules["ray"] = ModuleType("ray")
ray.is_initialized = lambda: True
with socket.create_server(("127.0.0.1", 0)) as head:
    context = SimpleNamespace(gcs_address="127.0.0.1:%d" % head.getsockname()[1])
    ray.get_runtime_context = lambda: context
    from pymixtral.cluster.connection import leaving_at_once
    atexit.register(print, "what Ray does at the end")
    with leaving_at_once():
        print("said")
        if sys.argv[1] == "lost":
            head.close()
        else:
            threading.Thread(target=lambda: head.accept()[0].close(), daemon=True).start()
        exec(sys.argv[2])
"""


@pytest.mark.parametrize("head", ["lost", "there"])
@pytest.mark.parametrize(("end", "code"), [("", 0), ("sys.exit()", 0), ("sys.exit(143)", 143), ("1 / 0", 1)])
def test_a_program_without_a_head_leaves_at_once(head: str, end: str, code: int) -> None:
    """With its exit code, and all that it said; errors are shown as ever."""
    line, env = [sys.executable, "-c", LEAVING, head, end], {**os.environ, "PYTHONUNBUFFERED": ""}
    done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=LONG)
    at_once = head == "lost" and code != 1
    assert (done.returncode, done.stdout) == (code, "said\n" + ("" if at_once else "what Ray does at the end\n"))
    assert ("ZeroDivisionError" in done.stderr) == (code == 1)
