"""A server in a process of its own, on a free port of this machine."""

from __future__ import annotations

import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException

import click

START_SECONDS = 120
"""How long a server may take to read and repack a model."""

POLL_SECONDS = 0.005
"""Between two questions whether it is ready: its start is measured as finely as that."""


@contextmanager
def running(name: str, command: Sequence[str], path: str) -> Iterator[str]:
    """Runs a server until the block ends.

    Args:
        name: of the server, for messages.
        command: the program and its arguments; the last is the option that takes the port.
        path: what answers with 200 once the server is ready.

    Yields:
        Its address.

    Raises:
        click.ClickException: it ends, or is not ready after START_SECONDS.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([*command, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
    try:
        while not _answers(address + path):
            if process.poll() is not None or time.monotonic() > end:
                raise click.ClickException(f"{name} does not answer, status {process.poll()}")
            time.sleep(POLL_SECONDS)
        yield address
    finally:
        process.terminate()
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, HTTPException):  # URLError is an OSError
        return False
