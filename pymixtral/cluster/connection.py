"""The connection to a cluster of Ray that runs already."""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec

from pymixtral.arguments import shown
from pymixtral.errors import InvalidArgumentError, UnsupportedError

_HOW = (
    "start one with `ray start --head` here, and with `ray start --address=HOST:6379` on each other host; all need "
    "one token (`ray get-auth-token --generate`)"
)

_HOST_PORT = re.compile(r"(.+):([0-9]{1,5})")

_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")
"""How a client of HTTP/2 begins, as those of gRPC do: RFC 9113, section 3.4, with settings of none."""

_SECONDS = 10
"""How long a head may take to take a connection, and to speak. Ray itself tries for minutes, without a word."""

_HEAD_SECONDS = 2
"""The same of one that has taken one before."""


def check_ray() -> None:
    """Check that Ray is there.

    Raises:
        UnsupportedError: if it is missing.
    """
    if find_spec("ray") is None:
        raise UnsupportedError("expected the package ray, found none: install it with `pip install 'pymixtral[ray]'`")


def connect(address: str = "auto") -> bool:
    """Connect this process to a cluster, unless it is connected.

    In the main thread Ray sets a handler of SIGTERM; here the program's own is set again.

    Args:
        address: HOST:PORT of its head; "auto": RAY_ADDRESS, or the cluster that this host is one of.

    Returns:
        Whether it was not connected before.

    Raises:
        InvalidArgumentError: if the address is none, also where the process is connected; if there is no
            such cluster, or the token is not its own.
        UnsupportedError: if it has another version of Ray or of Python, or Ray is missing.
    """
    check_ray()
    import ray
    from ray.exceptions import AuthenticationError, RayError

    if address != "auto" and not _host_and_port(address):
        raise InvalidArgumentError(f"expected the address of a cluster as HOST:PORT, found {shown(address)}: {_HOW}")
    if ray.is_initialized():
        return False
    where = f"at {address}" if address != "auto" else "that RAY_ADDRESS names or this host is part of"
    _reach(os.environ.get("RAY_ADDRESS", "") if address == "auto" else address)
    try:
        with _own_sigterm():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except AuthenticationError:
        raise InvalidArgumentError(
            f"expected the token of the cluster {where}, found none or another one: copy ~/.ray/auth_token of "
            "its head, or set RAY_AUTH_TOKEN, and RAY_AUTH_MODE=token"
        ) from None
    except (ConnectionError, ValueError, RuntimeError, RayError) as error:
        if isinstance(error, RuntimeError) and "mismatch" in str(error):
            raise UnsupportedError(
                f"expected the versions of Ray and Python of the cluster, found others: {' '.join(str(error).split())}"
            ) from None
        raise InvalidArgumentError(
            f"expected a cluster of Ray, found none {where}, or another token ({_first(error)}): {_HOW}"
        ) from None
    return True


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Sets the handler of SIGTERM after the block that was set before. Ray's ends the program with status 15."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def host_cpus() -> list[int]:
    """List the CPUs of each host of the cluster that has some."""
    import ray

    counts = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return [n for n in counts if n]


def head_answers(*, speaks: bool = False) -> bool:
    """Find out whether the head of the cluster that this process is connected to takes connections, within seconds.

    Ray itself goes on asking a head that is gone, and ends the program after a minute. One that is stopped, it
    asks for ever.

    Args:
        speaks: it must also say something, which one that is stopped does not: the system takes connections for it.
    """
    import ray

    place = _host_and_port(ray.get_runtime_context().gcs_address) if ray.is_initialized() else None
    try:
        if place:
            _ask(place, _HEAD_SECONDS, speaks=speaks)
    except OSError as error:
        return error.errno in (errno.EMFILE, errno.ENFILE)  # which say nothing of the head
    return place is not None


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """End the program after the block, if the head of its cluster is gone: Ray would ask it for half a minute.

    It is for a program that has nothing else to do. Errors of the block pass.
    """
    import ray

    end = None
    try:
        yield
    except SystemExit as error:
        end = error
    if ray.is_initialized() and not head_answers(speaks=True):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code if end and isinstance(end.code, int) else 0)
    if end:
        raise end


def _host_and_port(address: str) -> tuple[str, int] | None:
    """What HOST:PORT consists of; None: the address is of another form."""
    found = _HOST_PORT.fullmatch(address)
    return (found[1].strip("[]"), int(found[2])) if found and int(found[2]) < 1 << 16 else None


def _reach(address: str) -> None:
    """Makes sure that somebody listens at HOST:PORT and speaks; Ray has addresses of other forms, too.

    Raises:
        InvalidArgumentError: if nobody does.
    """
    place = _host_and_port(address)
    if not place:
        return
    try:
        _ask(place, _SECONDS, speaks=True)
    except (OSError, UnicodeError) as error:  # UnicodeError: of a name with an empty or a long part
        raise InvalidArgumentError(
            f"expected a cluster of Ray, found none at {shown(address)} ({_first(error)}): {_HOW}"
        ) from None


def _ask(place: tuple[str, int], seconds: float, *, speaks: bool) -> None:
    """Connects to a head.

    Args:
        place: its host and port.
        seconds: how long it may take to take the connection, and to speak.
        speaks: wait until it says something, or hangs up, as with TLS.

    Raises:
        OSError: if it does not.
        UnicodeError: of a name that no host can have.
    """
    with socket.create_connection(place, seconds) as connection, suppress(ConnectionError):
        if speaks:
            connection.sendall(_HELLO)
            connection.recv(1)


def _first(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(". ")
