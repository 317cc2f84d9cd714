"""Log-probabilities from logits, in little memory."""

from __future__ import annotations

import numpy as np

from pymixtral.arrays import F32, I32, IdArray
from pymixtral.engine.completion import TokenLogprob

_BLOCK = 256


def log_normalizers(logits: F32) -> list[float]:
    """Compute the logarithm of the sum of the exponentials of each row.

    The exponentials are float32 and their sum is float64, so that the memory is that of one row.

    Args:
        logits: finite, float32 [n, n_vocab].

    Returns:
        n numbers; logits minus its number are log-probabilities.
    """
    scratch = np.empty(logits.shape[1], np.float32)
    results: list[float] = []
    for row in logits:
        largest = row.max()
        np.subtract(row, largest, out=scratch)
        np.exp(scratch, out=scratch)
        results.append(float(largest) + float(np.log(scratch.sum(dtype=np.float64))))
    return results


def token_logprobs(logits: F32, ids: I32, n_top: int) -> list[TokenLogprob]:
    """Look up log-probabilities of tokens, and the most likely tokens at their places.

    Args:
        logits: float32 [n, n_vocab].
        ids: the token of each row, int32 [n].
        n_top: how many of the most likely tokens to name.

    Returns:
        n results.
    """
    results: list[TokenLogprob] = []
    for row, id, normalizer in zip(logits, ids.tolist(), log_normalizers(logits), strict=True):
        top: tuple[tuple[int, float], ...] = ()
        if n_top:
            best = _candidates(row, min(n_top, len(row)))
            best = best[np.argsort(-row[best], kind="stable")][:n_top]
            top = tuple((int(i), float(row[i]) - normalizer) for i in best)
        results.append(TokenLogprob(id, float(row[id]) - normalizer, top))
    return results


def _candidates(row: F32, n: int) -> IdArray:
    """Ids, ascending, with the n largest of a row among them, and few others.

    Each block of the row has its largest number, so the n-th largest of these bounds the n-th largest
    of all from below. That takes a fifth of the time of a partition.
    """
    n_blocks = len(row) // _BLOCK
    if n_blocks < 2 * n:
        return np.flatnonzero(row >= np.partition(row, len(row) - n)[len(row) - n])
    largest = row[: n_blocks * _BLOCK].reshape(n_blocks, _BLOCK).max(axis=1)
    return np.flatnonzero(row >= np.partition(largest, n_blocks - n)[n_blocks - n])


class PromptLogprobs:
    """Takes the rows of a text in pieces and keeps the log-probabilities of its tokens.

    Args:
        ids: the text, int32 [n].
        first: the first token whose log-probability is wanted, at least 1.
        n_top: how many of the most likely tokens to name.

    Attributes:
        tokens: of the tokens from `first` on, as far as rows came.
        greedy: for each of them, whether it is the most likely one.
    """

    def __init__(self, ids: I32, first: int, n_top: int = 0) -> None:
        self._ids = ids
        self._first = first
        self._n_top = n_top
        self.tokens: list[TokenLogprob] = []
        self.greedy: list[bool] = []

    def __call__(self, position: int, rows: F32) -> None:
        """Take rows. The row of a token predicts the next one.

        Args:
            position: the position of the first row.
            rows: logits, float32 [n, n_vocab].
        """
        begin = max(self._first - 1, position)
        ids = self._ids[begin + 1 : position + len(rows) + 1]
        rows = rows[begin - position : begin - position + len(ids)]
        self.tokens += token_logprobs(rows, ids, self._n_top)
        self.greedy += (rows.argmax(axis=1) == ids).tolist()
