"""The engine: it computes one text at a time and keeps the cache of the last one."""

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
from pymixtral.errors import ClosedError, ContextLengthError, InvalidArgumentError, PymixtralError
from pymixtral.model.config import ModelConfig
from pymixtral.model.forward import EVERY, Model
from pymixtral.model.kv_cache import n_pages_for
from pymixtral.sampling.sampler import Sampler, draw

T = TypeVar("T")


class Engine:
    """A model with a key/value cache of the last text.

    All methods may be called from any thread: one works while the others wait.

    Args:
        model: the engine owns it from here on; close() closes it.
        name: the model's name in messages.
        n_ctx: positions of the cache.
        n_batch: how many tokens of a text are computed at once.
        kv_type: "f16", "f32" or "q8_0", the type of cached keys and values.
        check_file: called after each computation; it raises if the model's file was shortened.

    Attributes:
        name: the model's name in messages.
        n_ctx: positions of the cache.

    Raises:
        InvalidArgumentError: for a kv_type that does not fit the model.
        NativeError: if there is no memory for the cache.
    """

    def __init__(
        self, model: Model, name: str, n_ctx: int, n_batch: int, kv_type: str, check_file: Callable[[], None]
    ) -> None:
        self.name = name
        self.n_ctx = n_ctx
        self._model = model
        self._n_batch = n_batch
        self._kv_type = kv_type
        self._check_file = check_file
        self._lock = threading.RLock()
        self._closed = False
        self._ids = np.empty(n_ctx, np.int32)  # the first _sequence.length are the ids in the cache
        self._new_cache()

    # --- Numbers ----------------------------------------------------------------------------------

    def next_logits(self, ids: I32, progress: Callable[[int, int], None] | None = None) -> tuple[F32, int]:
        """Compute the logits of the token that follows a text.

        Args:
            ids: int32 [1 to n_ctx]. At least the last one is computed, whatever the cache has.
            progress: called after each batch of a text that takes several, with the tokens that are
                in the cache by then and the tokens in all.

        Returns:
            float32 [n_vocab], and how many of the ids were in the cache.

        Raises:
            NonFiniteError: if the model's weights lead to NaN or infinity.
            ModelFileError: if the model's file was shortened while in use.
            ClosedError: after close().
        """
        rows, n_cached = self.logits(ids, len(ids) - 1, progress)
        return rows[0], n_cached

    def logits(self, ids: I32, first: int, progress: Callable[[int, int], None] | None = None) -> tuple[F32, int]:
        """Compute the logits after each token from `first` on.

        Args:
            ids: int32 [1 to n_ctx]. Those before `first` that are in the cache are not computed.
            first: index of the first token whose logits are returned, 0 to n - 1.
            progress: as for next_logits().

        Returns:
            float32 [n - first, n_vocab], and how many of the ids the cache had, at most `first`.

        Raises:
            NonFiniteError: if the model's weights lead to NaN or infinity.
            ModelFileError: if the model's file was shortened while in use.
            ClosedError: after close().
        """
        with self._working():
            n_cached = min(_n_common(ids, self._ids[: self._sequence.length]), first)
            self._truncate(n_cached)
            rows: F32 = np.empty((len(ids) - first, self._model.config.n_vocab), np.float32)
            for begin in range(n_cached, len(ids), self._n_batch):
                hidden = self._forward(ids[begin : begin + self._n_batch], slice(max(first - begin, 0) or None, None))
                if len(hidden):
                    part = self._interruptible(len(hidden), partial(self._model.logits, hidden))
                    if len(part) == len(rows):  # the usual case, which saves a copy
                        rows = part
                    else:
                        at = max(begin - first, 0)
                        rows[at : at + len(part)] = part
                if progress and len(ids) - n_cached > self._n_batch:
                    _call(progress, self._sequence.length, len(ids))
                    self.check_open()  # it may have closed the model
            self._check_file()
            return rows, n_cached

    def draw(self, sampler: Sampler, logits: F32, ids: I32) -> int:
        """Draw the token that follows a text.

        Args:
            sampler: of the text.
            logits: float32 [n_vocab].
            ids: all ids of the text, int32 [n].

        Returns:
            The token's id.

        Raises:
            NonFiniteError: if the largest logit is NaN or infinite.
            InvalidArgumentError: if every token is banned.
            ClosedError: after close().
        """
        with self._working():
            (token,) = draw(self._model.context, [sampler], logits[np.newaxis], [ids])
        if isinstance(token, PymixtralError):
            raise token
        return token

    def observers(self) -> list[ops.Observer]:
        """Make empty observers for observe().

        Returns:
            One for each layer.

        Raises:
            ClosedError: after close().
        """
        with self._working():
            return [ops.Observer(layer) for layer in self._model.layers]

    def observe(self, ids: I32, observers: Sequence[ops.Observer]) -> F32:
        """Run a text through the model and add up the squared inputs of its matrices.

        Args:
            ids: int32 [1 to n_ctx].
            observers: one for each layer; they are added to.

        Returns:
            The input of the output matrix, float32 [n, hidden].

        Raises:
            NonFiniteError: if the model's weights lead to NaN or infinity.
            ClosedError: after close().
        """
        with self._working():
            self._truncate(0)
            parts = [
                self._forward(ids[i : i + self._n_batch], EVERY, observers) for i in range(0, len(ids), self._n_batch)
            ]
            return self._model.head_input(np.concatenate(parts))

    def forget(self) -> None:
        """Empty the cache.

        Raises:
            ClosedError: after close().
        """
        with self._working():
            self._truncate(0)

    # --- One at a time ----------------------------------------------------------------------------

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep the engine for this thread over several calls.

        Otherwise another thread could replace the cache between two tokens, which costs time.
        """
        with self._lock:
            yield

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Lets one thread in at a time. An interrupt in the cache's own bookkeeping empties it."""
        with self._lock:
            self.check_open()
            try:
                yield
            except KeyboardInterrupt:
                n_pages = len(self._sequence.pages)
                if n_pages + self._cache.n_free_pages != self._cache.n_pages or n_pages < n_pages_for(
                    self._sequence.length
                ):
                    self._new_cache()
                raise

    def _forward(self, ids: I32, rows: slice, observers: Sequence[ops.Observer] | None = None) -> F32:
        """Appends ids to the sequence. If it raises, the sequence is as before."""
        begin = self._sequence.length
        # Before the pass: whenever an interrupt comes, every position in the cache has its id.
        self._ids[begin : begin + len(ids)] = ids
        runs = [(self._sequence, len(ids))]
        return self._interruptible(
            len(ids), partial(self._model.forward, ids, runs, self._cache, rows=rows, observers=observers)
        )

    def _new_cache(self) -> None:
        self._cache = self._model.new_cache(self.n_ctx, self._kv_type)
        self._sequence = self._cache.new_sequence()

    def _truncate(self, length: int) -> None:
        if length < self._sequence.length:
            self._sequence.truncate(length)

    def _interruptible(self, n_tokens: int, call: Callable[[], T]) -> T:
        """Runs a call into the model so that Ctrl-C ends it.

        Python raises KeyboardInterrupt in the main thread, between its own instructions. A pass of
        one token is many short C calls and runs here. One C call of a long prompt can take minutes,
        so it runs on a second thread while this one waits.
        """
        if n_tokens == 1 or threading.current_thread() is not threading.main_thread():
            return call()
        return run_beside(call, self._model.cancel)

    # --- Closing ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Free threads and memory, once a running computation has ended.

        A second close() does nothing.
        """
        # Before the lock, so that generations in other threads end at their next token.
        closed, self._closed = self._closed, True
        with self._lock:
            if not closed:
                self._model.close()
                del self._model, self._sequence, self._cache

    def check_open(self) -> None:
        """Check that the engine is open.

        Raises:
            ClosedError: after close().
        """
        if self._closed:
            raise ClosedError(f"expected an open model, found one that was closed ({self.name}): open it again")


def _call(progress: Callable[[int, int], None], done: int, total: int) -> None:
    try:
        progress(done, total)
    except StopIteration as error:  # would end an iteration over the text without a word
        raise RuntimeError("expected progress to return, found that it raised StopIteration") from error


def checked_ids(name: str, tokens: object, n_ctx: int, config: ModelConfig) -> I32:
    """Check token ids that a caller gives.

    Args:
        name: the argument's name in the message.
        tokens: a list or an array of integers.
        n_ctx: the most ids allowed.
        config: the model that they are for.

    Returns:
        int32 [1 to n_ctx].

    Raises:
        InvalidArgumentError: for anything but a list of at least one id of the vocabulary.
        ContextLengthError: for more than n_ctx ids.
    """
    if isinstance(tokens, (str, bytes, bytearray)) or not isinstance(tokens, (Sequence, np.ndarray)):
        raise InvalidArgumentError(
            f"expected {name} to be a list of token ids, found {type(tokens).__name__} {shown(tokens)}"
        )
    if isinstance(tokens, np.ndarray) and tokens.ndim == 0:
        raise InvalidArgumentError(f"expected {name} to be a list of token ids, found one number {shown(tokens)}")
    if len(tokens) > n_ctx:  # before they are copied
        raise too_long(name, str(len(tokens)), n_ctx, config)
    ids: NDArray[Any]
    try:
        ids = np.asarray(tokens)
    except (ValueError, OverflowError):  # lists of different lengths, integers beyond 64 bits
        raise InvalidArgumentError(
            f"expected {name} to be a list of token ids, found nested lists or huge numbers"
        ) from None
    if ids.size == 0:
        raise InvalidArgumentError(f"expected {name} of at least one token, found none")
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise InvalidArgumentError(
            f"expected {name} to be a list of token ids, found {ids.ndim} dimensions of {ids.dtype}"
        )
    outside = ids[(ids < 0) | (ids >= config.n_vocab)]
    if outside.size:
        raise InvalidArgumentError(f"expected token ids from 0 to {config.n_vocab - 1} in {name}, found {outside[0]}")
    return ids.astype(np.int32)


def too_long(name: str, found: str, n_ctx: int, config: ModelConfig) -> ContextLengthError:
    """Make the error of a text that does not fit, which says whether a longer context helps."""
    most = config.n_ctx_train
    advice = f"or raise n_ctx, up to {most}" if n_ctx < most else "as the model was trained for no more"
    return ContextLengthError(
        f"expected {name} of at most {n_ctx} tokens (n_ctx), found {found}: shorten the text, {advice}"
    )


def _n_common(a: I32, b: I32) -> int:
    """The length of the common prefix of two arrays."""
    n = min(len(a), len(b))
    different = a[:n] != b[:n]
    first = int(different.argmax()) if n else 0
    return first if n and different[first] else n
