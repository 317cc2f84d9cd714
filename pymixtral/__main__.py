"""The program: `pymixtral`, or `python -m pymixtral`.

Here is what belongs to a process of its own and not to the commands, which other programs may call:
its signals, its standard streams and the libraries' threads. Little is imported before the signals
are taken.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import warnings
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sys import UnraisableHookArgs
    from typing import TextIO

_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)

_show_warning = warnings.showwarning
"""Python's own, for warnings of other libraries."""

_first = 0
"""The signal that ends the program; those that follow would interrupt the cleaning up, and change nothing."""

_over = False
"""Whether the work is done: from then on signals change nothing."""


def main() -> None:
    """Runs the command line and ends the process."""
    global _over
    status: str | int | None = 0
    try:
        for number in _SIGNALS:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):  # nohup has SIGHUP ignored
                signal.signal(number, _end)
        signal.signal(signal.SIGALRM, _end)
        sys.unraisablehook = _lost
        warnings.showwarning = _show
        _open_streams()
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's, which has nothing to do here
        from pymixtral.cli import main as command_line

        command_line()
    except SystemExit as end:
        _over = True
        status = end.code
    except KeyboardInterrupt:
        _over = True
        status = 128 + signal.SIGINT
    except Exception:  # of a signal too, where C has put another in its place, as NumPy does in tofile()
        _over = True
        if not _first:
            raise
    signal.pthread_sigmask(signal.SIG_BLOCK, (*_SIGNALS, signal.SIGALRM))  # until the process has ended
    if _first:
        gc.collect()  # what the exception kept: finally blocks that remove unfinished files
        status = 128 + _first
    _flush_streams()
    sys.exit(status)


def _end(number: int, frame: FrameType | None) -> None:
    """Ends the program by an exception, so that finally blocks run.

    Not in the middle of an import, where an exception may be lost in C: then it is tried again soon.
    """
    global _first
    if _over or (_first and number != signal.SIGALRM):
        return
    _first = _first or number
    if _importing(frame):
        signal.setitimer(signal.ITIMER_REAL, 0.01)
    elif _first == signal.SIGINT:
        raise KeyboardInterrupt
    else:
        sys.exit(128 + _first)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _lost(error: UnraisableHookArgs) -> None:
    """An exception that Python cannot pass on, from __del__ and the like: that of a signal is raised again soon."""
    if _first and issubclass(error.exc_type, KeyboardInterrupt | SystemExit):
        signal.setitimer(signal.ITIMER_REAL, 0.01)
    else:
        sys.__unraisablehook__(error)


def _show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Shows a warning of pymixtral's own as a note, without the place in the source that Python names.

    It is set once and for the whole process, as warnings.catch_warnings() is not for several threads: a
    server opens its model in one thread while libraries are imported in another.
    """
    from pymixtral.cli.text import note
    from pymixtral.errors import MemoryWarning

    if issubclass(category, MemoryWarning):
        note(f"Note: {message}.")
    else:
        _show_warning(message, category, filename, lineno, file, line)


def _open_streams() -> None:
    """Opens standard streams that are closed, so that no other file gets their descriptors.

    Reading and writing them fails; what would go to standard error goes nowhere.
    """
    if sys.stdin is None:
        os.open(os.devnull, os.O_WRONLY)
    if sys.stdout is None:
        sys.stdout = open(os.open(os.devnull, os.O_RDONLY), "w")  # noqa: PTH123, SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115


def _flush_streams() -> None:
    """What a full disk or a reader that left has refused is dropped: Python would complain of it when it ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    main()
