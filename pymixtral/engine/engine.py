"""One text at a time through one model: the cache of the last text, and who may use it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pymixtral import ops
from pymixtral.arguments import shown
from pymixtral.arrays import F32, I32
from pymixtral.engine.interrupt import run_beside
from pymixtral.errors import ClosedError, ContextLengthError, InvalidArgumentError
from pymixtral.model.forward import EVERY, Model
from pymixtral.model.kv_cache import n_pages_for

T = TypeVar("T")


class Engine:
    """Computes logits, and keeps the keys and values of the last text.

    All methods may be called from any thread: one works while the others wait.

    Args:
        model: owned by the engine from here on; close() closes it.
        name: of the model, for messages.
        n_ctx: positions of the cache.
        n_batch: how many tokens of a text are computed at once.
        kv_type: "f16", "f32" or "q8_0", how keys and values are cached.
        check_file: called after each computation; it raises where the mapped weights have gone.

    Raises:
        InvalidArgumentError: for a kv_type that does not fit the model.
        NativeError: if there is no memory for the cache.
    """

    def __init__(self, model: Model, name: str, n_ctx: int, n_batch: int, kv_type: str, check_file: Callable[[], None]) -> None:
        self.name = name
        self.n_ctx = n_ctx
        self._model = model
        self._n_batch = n_batch
        self._kv_type = kv_type
        self._check_file = check_file
        self._lock = threading.RLock()
        self._closed = False
        self._ids = np.empty(n_ctx, np.int32)  # what the sequence holds: the first _sequence.length
        self._new_cache()

    # --- Numbers --------------------------------------------------------------------------------------------------

    def next_logits(self, ids: I32, progress: Callable[[int, int], None] | None = None) -> tuple[F32, int]:
        """The logits of what follows a text, of which at least the last token is computed.

        Args:
            ids: int32 [1 to n_ctx].
            progress: called after each batch of a text that takes several, with the tokens that the
                cache has by then and those in all.

        Returns:
            float32 [n_vocab], and how many of the ids the cache had.
        """
        rows, n_cached = self.logits(ids, len(ids) - 1, progress)
        return rows[0], n_cached

    def logits(self, ids: I32, first: int, progress: Callable[[int, int], None] | None = None) -> tuple[F32, int]:
        """The logits after each token from `first` on.

        Args:
            ids: int32 [1 to n_ctx], of which those that the cache has before `first` are not computed.
            first: less than the number of ids.
            progress: as of next_logits().

        Returns:
            float32 [n - first, n_vocab], and how many of the ids the cache had, at most `first`.
        """
        with self._working():
            n_cached = min(_n_common(ids, self._ids[: self._sequence.length]), first)
            self._truncate(n_cached)
            rows = np.empty((len(ids) - first, self._model.config.n_vocab), np.float32)
            for begin in range(n_cached, len(ids), self._n_batch):
                hidden = self._forward(ids[begin : begin + self._n_batch], slice(max(first - begin, 0) or None, None))
                if len(hidden):
                    part = self._interruptible(len(hidden), partial(self._model.logits, hidden))
                    if len(part) == len(rows):  # mostly: then there is nothing to copy
                        rows = part
                    else:
                        at = max(begin - first, 0)
                        rows[at : at + len(part)] = part
                if progress and len(ids) - n_cached > self._n_batch:
                    progress(self._sequence.length, len(ids))
            self._check_file()
            return rows, n_cached

    def exp(self, x: F32) -> F32:
        """The contract's exp of x [n]."""
        with self._working():
            return ops.exp(self._model.context, x)

    def observers(self) -> list[ops.Observer]:
        """New ones, for observe(): one for each layer."""
        with self._working():
            return [ops.Observer(layer) for layer in self._model.layers]

    def observe(self, ids: I32, observers: Sequence[ops.Observer]) -> F32:
        """Adds the inputs of the matrices that a text gives rise to; see Mixtral.observe."""
        with self._working():
            self._truncate(0)
            parts = [self._forward(ids[i : i + self._n_batch], EVERY, observers) for i in range(0, len(ids), self._n_batch)]
            return self._model.head_input(np.concatenate(parts))

    def forget(self) -> None:
        """Empties the cache."""
        with self._working():
            self._truncate(0)

    # --- One at a time --------------------------------------------------------------------------------------------

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps the cache for one thread over several calls, so that others do not take it between two tokens."""
        with self._lock:
            yield

    @contextmanager
    def _working(self) -> Iterator[None]:
        """The model for one thread at a time. An interrupt may strike inside the cache's own bookkeeping: then the cache starts anew."""
        with self._lock:
            self.check_open()
            try:
                yield
            except KeyboardInterrupt:
                n_pages = len(self._sequence.pages)
                if n_pages + self._cache.n_free_pages != self._cache.n_pages or n_pages < n_pages_for(self._sequence.length):
                    self._new_cache()
                raise

    def _forward(self, ids: I32, rows: slice, observers: Sequence[ops.Observer] | None = None) -> F32:
        """Appends ids to the sequence; those hidden rows float32 [n, hidden]. If it raises, the sequence is as before."""
        begin = self._sequence.length
        self._ids[begin : begin + len(ids)] = ids  # first: whatever interrupts, the ids of all positions that count are right
        runs = [(self._sequence, len(ids))]
        return self._interruptible(len(ids), partial(self._model.forward, ids, runs, self._cache, rows=rows, observers=observers))

    def _new_cache(self) -> None:
        self._cache = self._model.new_cache(self.n_ctx, self._kv_type)
        self._sequence = self._cache.new_sequence()

    def _truncate(self, length: int) -> None:
        if length < self._sequence.length:
            self._sequence.truncate(length)

    def _interruptible(self, n_tokens: int, call: Callable[[], T]) -> T:
        """Runs a call into the model so that Ctrl-C ends it.

        Python raises KeyboardInterrupt in the main thread, between its own instructions. A pass of one token is many short C calls, so
        it runs where it is. One C call of a long prompt can take minutes: that runs on a second thread while this one waits.
        """
        if n_tokens == 1 or threading.current_thread() is not threading.main_thread():
            return call()
        return run_beside(call, self._model.cancel)

    # --- Closing --------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Gives back threads and memory, after the computation under way if there is one. May be called again."""
        closed, self._closed = self._closed, True  # before the lock, so that generations in other threads end at their next token
        with self._lock:
            if not closed:
                self._model.close()
                del self._model, self._sequence, self._cache

    def check_open(self) -> None:
        """Raises ClosedError after close()."""
        if self._closed:
            raise ClosedError(f"expected an open model, found one that was closed ({self.name}): open it again")


def checked_ids(name: str, tokens: object, n_vocab: int, n_ctx: int) -> I32:
    """Checks token ids that a caller gives.

    Args:
        name: what the message calls them.
        tokens: a list or an array of integers.
        n_vocab: what each must be below.
        n_ctx: the most that there may be.

    Returns:
        int32 [1 to n_ctx].

    Raises:
        InvalidArgumentError: for anything else.
        ContextLengthError: for too many.
    """
    if isinstance(tokens, (str, bytes, bytearray)) or not isinstance(tokens, (Sequence, np.ndarray)):
        raise InvalidArgumentError(f"expected {name} to be a list of token ids, found {type(tokens).__name__} {shown(tokens)}")
    ids: NDArray[Any]
    try:
        ids = np.asarray(tokens)
    except (ValueError, OverflowError):  # lists of different lengths, integers beyond 64 bits
        raise InvalidArgumentError(f"expected {name} to be a list of token ids, found nested lists or huge numbers") from None
    if ids.size == 0:
        raise InvalidArgumentError(f"expected {name} of at least one token, found none")
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise InvalidArgumentError(f"expected {name} to be a list of token ids, found {ids.ndim} dimensions of {ids.dtype}")
    if len(ids) > n_ctx:
        raise ContextLengthError(
            f"expected {name} of at most {n_ctx} tokens (n_ctx), found {len(ids)}: shorten the text or ask for a longer context"
        )
    outside = ids[(ids < 0) | (ids >= n_vocab)]
    if outside.size:
        raise InvalidArgumentError(f"expected token ids from 0 to {n_vocab - 1} in {name}, found {outside[0]}")
    return ids.astype(np.int32)


def _n_common(a: I32, b: I32) -> int:
    """How many elements of two arrays are equal before the first that are not."""
    n = min(len(a), len(b))
    different = a[:n] != b[:n]
    first = int(different.argmax()) if n else 0
    return first if n and different[first] else n
