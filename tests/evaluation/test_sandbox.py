"""The sandbox: right programs pass, others fail, and none of them reaches anything outside."""

from __future__ import annotations

import os
import socket
import sys
import threading
from pathlib import Path

import pytest

from pymixtral import UnsupportedError
from pymixtral.evaluation import sandbox

needs_sandbox = pytest.mark.skipif(bool(sandbox._problem()), reason=f"no sandbox here: {sandbox._problem()}")


LIBC = "import ctypes; libc = ctypes.CDLL(None, use_errno=True)"
CLONE = {"x86_64": 56, "aarch64": 220}.get(os.uname().machine)


@needs_sandbox
@pytest.mark.parametrize(
    ("program", "passed", "detail"),
    [
        ("assert 1 + 1 == 2", True, ""),
        ("import math, re, collections, typing, itertools, json, random\nprint('fine')", True, ""),
        ("print('x' * 200_000)", True, ""),
        ("assert 1 + 1 == 3, 'sum'", False, "AssertionError: sum"),
        ("def f(:\n", False, "SyntaxError: invalid syntax"),
        ("import sys; sys.exit(0)", False, "exit before the end"),
        ("import os; os._exit(0)", False, "exit before the end"),
        ("raise SystemExit(3)", False, "exit code 3"),
        ("bytearray(1 << 31)", False, "MemoryError"),
        ("'caf\\xe9 \u263a'.encode()", True, ""),
        ("import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()", True, ""),
        ("import os\nos.waitpid(os.fork() or os._exit(0), 0)", True, ""),
    ],
)
def test_how_programs_end(program: str, passed: bool, detail: str) -> None:
    outcome = sandbox.run(program, seconds=60)
    assert (outcome.passed, outcome.detail) == (passed, detail)


@needs_sandbox
def test_a_program_without_an_end_is_ended() -> None:
    outcome = sandbox.run("while True: pass", seconds=1)
    assert (outcome.passed, outcome.detail) == (False, "still running after 1 s")


@needs_sandbox
@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("open('SECRET').read()", "FileNotFoundError"),
        ("open('/etc/passwd').read()", "FileNotFoundError"),
        ("open(__import__('os').__file__, 'a')", "Error"),
        ("open('/tmp/big', 'wb').write(bytes(1 << 21))", "OSError"),
        ("__import__('os').kill(-1, 9)", "ProcessLookupError"),
        ("__import__('os').setuid(0)", "PermissionError"),
        ("__import__('os').chroot('/tmp')", "PermissionError"),
        ("import ctypes; libc = ctypes.CDLL(None); assert libc.unshare(0x20000) == 0, 'refused'", "refused"),
        (
            "import ctypes; libc = ctypes.CDLL(None); assert libc.mount(b'a', b'/tmp', b'tmpfs', 0, None) == 0",
            "Assertion",
        ),
        (f"{LIBC}; assert libc.unshare(0x10000000) == 0, 'refused'", "refused"),
        (f"{LIBC}; assert libc.syscall({CLONE}, 0x10000011, 0, 0, 0, 0) >= 0, 'refused'", "refused"),
        (f"{LIBC}; assert libc.syscall(435, bytes(88), 88) >= 0, ctypes.get_errno()", "AssertionError: 38"),
        (f"{LIBC}; assert libc.shmget(0, 1 << 20, 0o1600) >= 0, 'refused'", "refused"),
        (f"{LIBC}; assert libc.syscall(425, 8, bytes(120)) >= 0, 'refused'", "refused"),
        ("import os\nos.write(2, b'sandbox: broken')\nos._exit(97)", "sandbox: broken"),
        ("import os\nfor _ in range(100):\n    os.fork() or __import__('time').sleep(30)", ""),
    ],
)
def test_what_a_program_cannot_do(tmp_path: Path, program: str, error: str) -> None:
    (tmp_path / "secret").write_text("secret")
    outcome = sandbox.run(program.replace("SECRET", str(tmp_path / "secret")), seconds=20)
    assert not outcome.passed
    assert error in outcome.detail


@needs_sandbox
def test_a_program_reaches_no_server_of_this_machine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        outcome = sandbox.run(f"import socket; socket.create_connection(('127.0.0.1', {port}), 5)", seconds=30)
        assert not outcome.passed
        assert "unreachable" in outcome.detail or "refused" in outcome.detail
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


@needs_sandbox
def test_each_program_has_a_folder_of_its_own_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    write = "import os; assert os.listdir('.') == [] and os.getcwd() == '/tmp'; open('/tmp/x', 'w').write('a')"
    assert sandbox.run(write).passed
    assert sandbox.run(write).passed
    assert list(tmp_path.iterdir()) == []


@needs_sandbox
def test_programs_see_nothing_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYMIXTRAL_JUDGE_KEY", "sesame")
    outcome = sandbox.run("import os; assert sorted(os.environ) == ['HOME', 'LANG', 'PATH'], sorted(os.environ)")
    assert outcome.passed, outcome.detail


@needs_sandbox
def test_threads_may_run_programs_at_the_same_time() -> None:
    found: dict[int, bool] = {}

    def work(i: int) -> None:
        found[i] = sandbox.run(f"assert {i} % 2", seconds=60).passed

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: bool(i % 2) for i in range(6)}


def test_nothing_is_run_where_the_sandbox_does_not_hold(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sandbox._problem.cache_clear()
    monkeypatch.setattr(
        sandbox, "_LAUNCHER", f"{sandbox._LAUNCHER.partition('must(libc.unshare')[0]}must(-1, 'unshare')"
    )
    with pytest.raises(UnsupportedError, match=r"found that it cannot \(unshare: "):
        sandbox.run(f"open({str(tmp_path / 'x')!r}, 'w')")
    sandbox._problem.cache_clear()
    monkeypatch.setattr(sandbox, "_LAUNCHER", "import os, sys; os.execv(sys.executable, [sys.executable, '-'])")
    with pytest.raises(UnsupportedError, match="AssertionError"):
        sandbox.run(f"open({str(tmp_path / 'x')!r}, 'w')")
    monkeypatch.setattr(sys, "platform", "darwin")
    sandbox._problem.cache_clear()
    with pytest.raises(UnsupportedError, match="it is darwin"):
        sandbox.run("1")
    sandbox._problem.cache_clear()
    assert list(tmp_path.iterdir()) == []
