"""Commands on a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import termios
import threading

from support.command_line import COMMAND


def in_terminal(*arguments: object) -> tuple[int, str]:
    """The exit code of a command, and what it shows on a terminal of 120 columns that is its stderr."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, 120, 0, 0))
    shown = b""

    def read() -> None:
        nonlocal shown
        try:
            while data := os.read(master, 1 << 16):
                shown += data
        except OSError:  # how Linux says that the other side is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    try:
        command = [*COMMAND, *map(str, arguments)]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=slave, timeout=60)
    finally:
        os.close(slave)
        reader.join(10)
        os.close(master)
    return done.returncode, shown.decode()
