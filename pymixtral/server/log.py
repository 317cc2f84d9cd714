"""The log of requests and the trace of their phases. Neither makes the event loop wait."""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from pymixtral.errors import OutputError
from pymixtral.escapes import escaped, escaped_json

if TYPE_CHECKING:
    from pymixtral.server.record import Record

_MOST_WAITING = 10_000
"""Lines that wait to be written; more are dropped. So many take some megabytes."""

_LAST_SECONDS = 2.0
"""How long the end of the program waits for lines to be written, to a pipe that nobody reads."""


class Lines:
    """A file that a thread writes lines to. It begins with the first line: a batch, which tells nothing, has none.

    Args:
        file: is written, and not closed.

    Attributes:
        dropped: lines that were not written, because too many waited or the file cannot be written.
    """

    def __init__(self, file: TextIO) -> None:
        self.dropped = 0
        self._file = file
        self._waiting: queue.Queue[str | None] = queue.Queue(_MOST_WAITING)
        self._thread = threading.Thread(target=self._run, name="pymixtral-log", daemon=True)

    def write(self, line: str) -> None:
        """Have a line written soon.

        Args:
            line: without its end.
        """
        if self._thread.ident is None:
            self._thread.start()
        try:
            self._waiting.put_nowait(line)
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Have all lines written, unless that takes long."""
        if self._thread.ident is None:
            return
        try:
            self._waiting.put(None, timeout=_LAST_SECONDS)
        except queue.Full:  # nobody reads, or slowly: one line less, so that the thread ends in any case
            with suppress(queue.Empty):
                self._waiting.get_nowait()
                self.dropped += 1
            self._waiting.put(None)
        self._thread.join(_LAST_SECONDS)

    def _run(self) -> None:
        while (line := self._waiting.get()) is not None:
            try:
                self._file.write(line + "\n")
                if self._waiting.empty():
                    self._file.flush()
            except (OSError, ValueError):  # a full disk, or a stream that was closed
                self.dropped += 1
        with suppress(OSError, ValueError):
            self._file.flush()


class Log:
    """What a server tells about its requests: a line each on standard error, and another in a trace.

    Args:
        form: how requests are told: "text", for people, "json" or "off".
        trace: a file that the phases of requests are added to; None: there is none.

    Raises:
        OutputError: if the file cannot be written.
    """

    def __init__(self, form: Literal["text", "json", "off"] = "off", trace: Path | None = None) -> None:
        self._form = form
        self._file: TextIO | None = None
        if trace is not None:
            try:
                self._file = trace.open("a", encoding="utf-8")
            except OSError as error:
                raise OutputError(
                    f"{trace}: expected a file that can be written, found that it cannot ({error.strerror}): "
                    "choose another place"
                ) from error
        self._lines = Lines(sys.stderr)
        self._trace = Lines(self._file) if self._file else None

    def request(self, record: Record) -> None:
        """Write the lines of a request that is over.

        Args:
            record: the request.
        """
        if self._form == "json":
            self._lines.write(_json(record.summary()))
        elif self._form == "text":
            self._lines.write(_text(record))
        if self._trace:
            self._trace.write(_json(record.phases()))

    def note(self, text: str) -> None:
        """Write a line for people, whatever the form.

        Args:
            text: one or several lines.
        """
        self._lines.write(escaped(text, keep="\n"))

    def fault(self, id: str, error: BaseException) -> None:
        """Write where an exception came from that nobody expected. Its client learns nothing.

        Args:
            id: the name of the request.
            error: the exception.
        """
        self.note(f"request {id}: {''.join(traceback.format_exception(error))}")

    def close(self) -> None:
        """Write what waits, and how many lines were lost; close the trace."""
        lost = self._lines.dropped
        if self._trace and self._file:
            self._trace.close()
            with suppress(OSError):
                self._file.close()
            lost += self._trace.dropped
        if lost:
            self.note(f"Lost lines of the log and the trace: {lost}, for which there was no reader or no room.")
        self._lines.close()


def _json(value: dict[str, Any]) -> str:
    return escaped_json(json.dumps(value, ensure_ascii=False, allow_nan=False))


def _text(record: Record) -> str:
    clock = time.strftime("%H:%M:%S", time.localtime(record.came))
    found = record.summary()
    status = found["status"] or "client left"
    line = f"{clock} {found['client']} {found['method']} {found['path']}: {status}, {found['seconds']:.3f} s"
    if record.texts:
        line += f", {found['prompt_tokens']} + {found['generated_tokens']} tokens"
    return escaped(f"{line} [{found['id']}]")
