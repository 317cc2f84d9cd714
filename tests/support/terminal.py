"""Commands on a terminal."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import threading
import time
from pathlib import Path

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


class Session:
    """A command on a terminal of its own, which is all its standard streams, with somebody who types.

    The terminal is a plain one, so what is shown has no escape sequences of the line editor.

    Args:
        arguments: of the command.
        cwd: where it runs.
        shell: a line of a shell that runs it, as "$0" "$@"; None: it is run by itself.
    """

    def __init__(self, *arguments: object, cwd: Path | None = None, shell: str | None = None) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, 4000, 0, 0))
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        self._process = subprocess.Popen(
            [*(["/bin/sh", "-c", shell] if shell else []), *COMMAND, *map(str, arguments)],
            cwd=cwd,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment | {"TERM": "dumb", "INPUTRC": os.devnull, "LC_ALL": "C.UTF-8"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # Ctrl-C reaches who has the terminal
        )
        os.close(slave)
        self.pid = self._process.pid
        self.shown = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def interrupt(self) -> None:
        """Types Ctrl-C where the program waits for a line."""
        self.asleep()
        self.type("\x03")

    def asleep(self) -> None:
        """Waits until the program sleeps. One that is about to wait for a line would see a signal
        after the next key only: Python looks for signals before the line editor sleeps, and after.
        """
        while Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "S":
            time.sleep(0.001)

    def until(self, text: str) -> str:
        """Waits for a text. Returns what was shown since the last call, up to its end."""
        while text not in self.shown:
            assert self._read(), f"expected {text!r}, found the end after {self.shown!r}"
        before, _, self.shown = self.shown.partition(text)
        return before + text

    def end(self) -> tuple[int, str]:
        """Waits for the end of the program. Returns its exit code, and what it still showed."""
        while self._read():
            pass
        os.close(self._master)
        return self._process.wait(60), self.shown

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _read(self) -> bool:
        ready, _, _ = select.select([self._master], [], [], 60)
        assert ready, f"expected more, found nothing for a minute after {self.shown!r}"
        try:
            data = os.read(self._master, 1 << 16)
        except OSError:  # how Linux says that the other side is closed
            return False
        self.shown += self._decoder.decode(data)
        return bool(data)
