"""Two threads at the ends of a computation: one reads ahead, one writes behind.

Bounded queues between them bound the memory.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

import numpy as np

from pymixtral.arrays import U8
from pymixtral.threads import starting_threads

Item = TypeVar("Item")

DEPTH = 2
"""Items that wait in each queue: enough that a slow moment on one side does not stop the other."""


class _Queue(Generic[Item]):
    """A bounded queue that a signal cannot leave locked.

    queue.Queue takes its lock in Python code: a KeyboardInterrupt there leaves it taken, and the
    other thread waits for ever. A SimpleQueue's operations are whole. At worst a place is lost.
    """

    def __init__(self) -> None:
        self._entries: SimpleQueue[Item] = SimpleQueue()
        self._places: SimpleQueue[None] = SimpleQueue()
        for _ in range(DEPTH):
            self._places.put(None)

    def put(self, entry: Item, timeout: float | None = None) -> None:
        """Raises Empty if no place was free in time."""
        self._places.get(timeout=timeout)
        self._entries.put(entry)

    def put_last(self, entry: Item) -> None:
        """Needs no place, so it does not wait."""
        self._entries.put(entry)

    def get(self) -> Item:
        entry = self._entries.get()
        self._places.put(None)
        return entry


@contextmanager
def read_ahead(items: Iterable[Item]) -> Iterator[Iterator[Item]]:
    """Makes items in a thread, which ends when the block is left.

    Args:
        items: what the thread goes through.

    Yields:
        The same items. What making them raises is raised where they are used.
    """
    reader = _Reader(items)
    try:
        yield reader.items()
    finally:
        reader.stop()


class _Reader(Generic[Item]):
    def __init__(self, items: Iterable[Item]) -> None:
        self._queue: _Queue[tuple[Item | None, BaseException | None]] = _Queue()
        self._stopped = False
        self._source = items
        self._thread = threading.Thread(target=self._run, name="pymixtral read", daemon=True)
        with starting_threads():
            self._thread.start()

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            for item in self._source:
                if not self._put((item, None)):
                    return
        except BaseException as caught:
            error = caught
        self._put((None, error or StopIteration()))

    def _put(self, entry: tuple[Item | None, BaseException | None]) -> bool:
        while not self._stopped:
            try:
                self._queue.put(entry, timeout=0.1)
            except Empty:
                continue
            return True
        return False

    def items(self) -> Iterator[Item]:
        while True:
            item, error = self._queue.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]  # an Item, where there is no error

    def stop(self) -> None:
        self._stopped = True
        self._thread.join()


class WriteBehind:
    """A file that is written anew, in a thread.

    Leaving the block waits until everything is written, or raises what ended it, such as an
    OSError.

    Args:
        path: the file.

    Attributes:
        checksums: CRC-32 of the bytes between one mark() and the next.
    """

    def __init__(self, path: Path) -> None:
        self.checksums: list[int] = []
        self._file = path.open("wb", buffering=0)
        self._queue: _Queue[U8 | bytes | None] = _Queue()
        self._error: BaseException | None = None
        self._abandoned = False
        self._thread = threading.Thread(target=self._run, name="pymixtral write", daemon=True)
        with starting_threads():
            self._thread.start()

    def write(self, data: U8 | bytes) -> None:
        """Writes bytes, which are not copied and must not change.

        It raises what ended an earlier write.
        """
        if self._error:
            raise self._error
        self._queue.put(data)

    def mark(self) -> None:
        """Ends a stretch of bytes that has a checksum of its own."""
        self.write(b"")

    def _run(self) -> None:
        checksum = 0
        while (data := self._queue.get()) is not None:
            if self._error or self._abandoned:
                continue  # whoever writes sees the error at the next write
            if not len(data):
                self.checksums.append(checksum)
                checksum = 0
                continue
            try:
                view = data.reshape(-1).data if isinstance(data, np.ndarray) else memoryview(data)
                checksum = zlib.crc32(view, checksum)
                while len(view):
                    view = view[self._file.write(view) :]
            except BaseException as error:  # an OSError; whatever it is, who writes must not wait for this thread
                self._error = error

    def __enter__(self) -> WriteBehind:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._abandoned = kind is not None
        self._queue.put_last(None)
        self._thread.join()
        self._file.close()
        if self._error and kind is None:
            raise self._error
