"""Bases: files that keep a model's predictions for a text, for comparison with other models.

The file, little endian:

    16 bytes              the text "pymixtral base 1"
    6 int64               n_vocab, n_ctx, step, n_scored, n_windows, and the begin-of-text id, or
                          -1 if windows do not begin with it
    int32 [n_tokens]      the tokens of all windows: n_tokens = (n_windows - 1) * step + n_ctx
    n_windows * n_scored  one record for each scored token, in order:
      float64 score         -log(probability) of the token in the text
      float64 low, scale    log-probability of token i of the vocabulary = low + scale * q[i]
      int32 top             the most likely token
      uint16 [n_vocab] q

A record takes 2 * n_vocab + 28 bytes: 64 KB at Mixtral's vocabulary, so 250,000 scored tokens take
16 GB. Log-probabilities more than 32 nats below the largest are raised to 32 below it. So scale is
at most 32/65535, and the others are right to 0.00025 nats. The reader normalises them again. The
rounding adds about scale^2 / 24 to a divergence, at most 1e-8 nats.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray

from pymixtral.arrays import F32, F64
from pymixtral.errors import InvalidArgumentError
from pymixtral.evaluation.windows import Windows
from pymixtral.files.atomic import check_dest, check_space, reading_back, replacing

MAGIC = b"pymixtral base 1"
"""The first 16 bytes of a base."""

DEPTH = 32.0
"""Nats below the largest log-probability that are told apart. e^-32 is 1e-14, and tokens less
likely than that hardly change a divergence."""

_HEADER = struct.Struct("<16s6q")


def log_softmax(logits: F32) -> F64:
    """Compute log-probabilities.

    Args:
        logits: finite, float32 [rows, n_vocab].

    Returns:
        float64 [rows, n_vocab].
    """
    log_p = logits.astype(np.float64)
    log_p -= log_p.max(axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    return log_p


def _record(n_vocab: int) -> np.dtype[Any]:
    return np.dtype([("score", "<f8"), ("low", "<f8"), ("scale", "<f8"), ("top", "<i4"), ("q", "<u2", (n_vocab,))])


class BaseWriter:
    """A base that is being written; made by writing_base().

    Args:
        file: where the records go.
        n_vocab: size of the vocabulary.
    """

    def __init__(self, file: BinaryIO, n_vocab: int) -> None:
        self._file = file
        self._record = _record(n_vocab)

    def write(self, log_p: F64, scores: F64) -> None:
        """Append records.

        Args:
            log_p: log-probabilities, float64 [rows, n_vocab].
            scores: -log(probability) of the tokens in the text, float64 [rows].
        """
        records = np.empty(len(log_p), self._record)
        high = log_p.max(axis=1)
        low = np.maximum(log_p.min(axis=1), high - DEPTH)
        scale = (high - low) / 65535
        q = np.rint((log_p - low[:, None]) / np.where(scale > 0, scale, 1)[:, None])
        records["score"], records["low"], records["scale"] = scores, low, scale
        records["top"] = log_p.argmax(axis=1)
        records["q"] = np.clip(q, 0, 65535)
        self._file.write(records.data)


@contextmanager
def writing_base(path: Path, windows: Windows, n_vocab: int) -> Iterator[BaseWriter]:
    """Write a base, which appears complete if the block succeeds, and not at all if it fails.

    Args:
        path: the file to write.
        windows: the windows of the text.
        n_vocab: size of the vocabulary.

    Yields:
        The writer, for windows.n_windows * windows.n_scored records.

    Raises:
        OutputError: if the file exists, its directory does not, or it does not fit its disk.
    """
    check_dest(path, (), force=False)
    check_space(path, _n_bytes(windows.n_ctx, windows.step, windows.n_scored, windows.n_windows, n_vocab))
    with replacing(path, force=False) as temporary, temporary.open("wb") as file:
        bos = -1 if windows.bos is None else windows.bos
        file.write(_HEADER.pack(MAGIC, n_vocab, windows.n_ctx, windows.step, windows.n_scored, windows.n_windows, bos))
        file.write(windows.tokens.astype("<i4").tobytes())
        yield BaseWriter(file, n_vocab)
        file.flush()
        with reading_back(path, temporary), BaseReader(temporary, windows, n_vocab):
            pass


class BaseReader:
    """An open base that covers given windows; a context manager.

    The file may come from anyone: every number is checked before it is used.

    Args:
        path: the base.
        windows: the windows of the text, which the base must have.
        n_vocab: size of the model's vocabulary.

    Raises:
        InvalidArgumentError: for a file that is not a complete base, and for a base of another
            vocabulary, other windows or other tokens.
    """

    def __init__(self, path: Path, windows: Windows, n_vocab: int) -> None:
        if not path.is_file():
            raise InvalidArgumentError(
                f"{path}: expected a base, a regular file, found {'something else' if path.exists() else 'nothing'}"
            )
        self._path = path
        self._n_vocab = n_vocab
        self._record = _record(n_vocab)
        self._n_read = 0
        self._file = path.open("rb")
        try:
            self._check(windows)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> BaseReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def compare(self, log_p: F64) -> tuple[F64, NDArray[np.bool_], F64]:
        """Compare a model's predictions with the next records.

        Args:
            log_p: the model's log-probabilities, float64 [rows, n_vocab].

        Returns:
            The Kullback-Leibler divergence from the base's predictions in nats, float64 [rows];
            whether the most likely token is the same, bool [rows]; and the base's scores, float64
            [rows].

        Raises:
            InvalidArgumentError: for values in the file that no model gives.
        """
        records = np.frombuffer(self._read(len(log_p) * self._record.itemsize), self._record)
        low, scale = records["low"], records["scale"]
        # What BaseWriter writes is within these bounds. The largest log-probability is from
        # -log(n_vocab), far above -64, to 0; 1.001 leaves room for rounding.
        right = (low <= 0) & (low >= -DEPTH - 64) & (scale >= 0) & (scale <= DEPTH / 65535 * 1.001)
        right &= (records["score"] >= 0) & (records["score"] < np.inf)
        if not right.all():
            record = self._n_read + int(np.argmin(right))
            self._fail(f"log-probabilities in record {record} of the base", "impossible values", "save it again")
        self._n_read += len(log_p)
        base = low[:, None] + scale[:, None] * records["q"]
        base -= base.max(axis=1, keepdims=True)
        p = np.exp(base)
        sums = p.sum(axis=1)
        base -= log_p
        p *= base
        kl = p.sum(axis=1) / sums - np.log(sums)
        return np.maximum(kl, 0), records["top"] == log_p.argmax(axis=1), records["score"].astype(np.float64)

    def _check(self, windows: Windows) -> None:
        size = os.fstat(self._file.fileno()).st_size
        if size < _HEADER.size:
            self._fail(f"a base of at least {_HEADER.size} bytes", f"{size}", "save it again")
        magic, n_vocab, n_ctx, step, n_scored, n_windows, bos = _HEADER.unpack(self._read(_HEADER.size))
        if magic != MAGIC:
            self._fail(f"a base, which begins with {MAGIC.decode()!r}", f"{magic!r}", "save one with save_base")
        if n_vocab != self._n_vocab:
            self._fail(
                f"a base of a vocabulary of {self._n_vocab} tokens, the model's",
                f"{n_vocab}",
                "compare models of one family",
            )
        ours = windows.n_ctx, windows.step, windows.n_scored, -1 if windows.bos is None else windows.bos
        if (n_ctx, step, n_scored, bos) != ours:
            self._fail(
                "a base of windows of {} tokens, {} apart, {} scored, first token {}".format(*ours),
                f"{n_ctx}, {step}, {n_scored}, {bos}",
                "use the options that it was saved with",
            )
        if n_windows < windows.n_windows:
            self._fail(
                f"a base of at least {windows.n_windows} windows",
                f"{n_windows}",
                "score fewer windows or save a base of the whole text",
            )
        needed = _n_bytes(n_ctx, step, n_scored, n_windows, n_vocab)
        if size != needed:
            self._fail(f"a base of {needed} bytes, as its head says", f"{size}", "save it again, it is not complete")
        tokens = np.frombuffer(self._read(windows.tokens.nbytes), "<i4")
        different = np.flatnonzero(tokens != windows.tokens)
        if different.size:
            self._fail(
                f"a base of the same tokens, {windows.tokens[different[0]]} at position {different[0]}",
                f"{tokens[different[0]]}",
                "use the same text and models of one tokenizer",
            )
        self._file.seek(needed - n_windows * n_scored * self._record.itemsize)

    def _read(self, n_bytes: int) -> bytes:
        data = self._file.read(n_bytes)
        if len(data) != n_bytes:
            self._fail("a complete base", "its end", "save it again")
        return data

    def _fail(self, expected: str, found: str, do: str) -> NoReturn:
        raise InvalidArgumentError(f"{self._path}: expected {expected}, found {found}: {do}")


def _n_bytes(n_ctx: int, step: int, n_scored: int, n_windows: int, n_vocab: int) -> int:
    """The size of a whole file."""
    return _HEADER.size + 4 * ((n_windows - 1) * step + n_ctx) + n_windows * n_scored * _record(n_vocab).itemsize
