"""The perplexity of a model on a text, and how far its predictions are from another model's.

    from pymixtral import Mixtral
    from pymixtral.evaluation.perplexity import perplexity

    with Mixtral("mixtral-q4_0.gguf") as model:
        print(perplexity(model, text).perplexity)

The tokens of the text, begin-of-text token included if the model wants one, are cut into windows of
n_ctx tokens. The model sees each window alone. If the model wants a begin-of-text token, that
replaces the first token of each window. The last n_scored tokens of a window are scored, each given
all tokens of the window before it:

    default    The next window begins where one ends; n_scored = n_ctx - n_ctx // 2 - 1, which is
               the second half without its first token. llama.cpp's llama-perplexity does the same,
               so figures can be compared.
    stride S   The next window begins S tokens after this one; n_scored = S. A smaller S gives each
               token more context and takes longer. S = n_ctx - 1 scores every token once.

Tokens at the end that do not fill a window are not used. The score of a token is -log(probability),
in float64 from the model's float32 logits. The perplexity is exp(mean score). Its standard error is
perplexity * (standard deviation of the scores) / sqrt(number of scores), as if the tokens were
independent.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pymixtral.arrays import F32, F64, I32, Ids
from pymixtral.errors import InvalidArgumentError, NonFiniteError, UnsupportedError
from pymixtral.evaluation.base import BaseReader, log_softmax, writing_base
from pymixtral.evaluation.windows import Windows, tokens_needed, tokens_of
from pymixtral.mixtral import Mixtral
from pymixtral.progress import progress_bar

_PIECE = 512  # rows of logits at a time: 66 MB at Mixtral's vocabulary of 32000
_ROWS = 32  # rows in float64 at a time: 8 MB, which stay in the CPU's cache


@dataclass(frozen=True)
class Divergence:
    """How a model's predictions differ from those of a base, over all scored tokens.

    Divergences are Kullback-Leibler divergences of the model's distribution from the base's, in
    nats.

    Attributes:
        mean: mean divergence.
        standard_error: of the mean.
        median: median divergence.
        p99: 99th percentile of the divergence.
        maximum: largest divergence.
        top1_agreement: the part of the tokens for which both have the same most likely one, 0 to 1.
        base_perplexity: perplexity of the base on these tokens.
        ratio: the model's perplexity divided by the base's.
        ratio_error: standard error of the ratio, from the differences token by token.
    """

    mean: float
    standard_error: float
    median: float
    p99: float
    maximum: float
    top1_agreement: float
    base_perplexity: float
    ratio: float
    ratio_error: float


@dataclass(frozen=True)
class Perplexity:
    """The result of perplexity().

    Attributes:
        perplexity: exp of the mean score.
        standard_error: of the perplexity.
        n_tokens: tokens scored.
        n_windows: windows of the text.
        n_ctx: tokens of a window.
        stride: tokens between the beginnings of windows; None: the default scheme.
        seconds: time for all windows.
        tokens_per_second: tokens that went through the model, scored or not, per second.
        kl: comparison with a base; None if there was none.
    """

    perplexity: float
    standard_error: float
    n_tokens: int
    n_windows: int
    n_ctx: int
    stride: int | None
    seconds: float
    tokens_per_second: float
    kl: Divergence | None


def perplexity(
    model: Mixtral,
    text: str | Ids,
    *,
    n_ctx: int = 512,
    stride: int | None = None,
    n_windows: int | None = None,
    save_base: str | os.PathLike[str] | None = None,
    kl_against: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Perplexity:
    """Score a text, as the head of this module describes.

    Beyond the model's own memory this takes some 100 MB at Mixtral's vocabulary, whatever the
    length of the text and n_ctx.

    Args:
        model: the model.
        text: a text, or token ids, taken as they are.
        n_ctx: tokens of a window, 3 to model.n_ctx; with a stride also 2.
        stride: tokens between the beginnings of windows, 1 to n_ctx - 1; None: the default scheme.
        n_windows: score only the first windows; None: all.
        save_base: a new file for the scores and the model's predictions, which appears when it is
            complete. It takes 2 bytes for each scored token and each token of the vocabulary; see
            pymixtral.evaluation.base.
        kl_against: such a file, of the same tokens and windows, to compare the predictions with.
        progress: show a bar on stderr if that is a terminal.

    Returns:
        The perplexity, and the comparison with the base if one was given.

    Raises:
        InvalidArgumentError: for arguments out of range, a text that is too short, and a base that
            does not fit or is broken.
        OutputError: if save_base cannot be written.
        UnsupportedError: for a text, if the model's file has no tokenizer.
        NonFiniteError: if the model's weights lead to NaN or infinity, or the perplexity is beyond
            a float64.
    """
    windows = _windows(model, text, n_ctx, stride, n_windows, progress)
    n_vocab = model.config.n_vocab
    scores: list[F64] = []
    compared: list[tuple[F64, NDArray[np.bool_], F64]] = []
    with ExitStack() as stack:
        base = stack.enter_context(BaseReader(Path(kl_against), windows, n_vocab)) if kl_against is not None else None
        writer = stack.enter_context(writing_base(Path(save_base), windows, n_vocab)) if save_base is not None else None
        bar = stack.enter_context(
            progress_bar(total=windows.n_computed, unit=" tokens", unit_scale=True, shown=progress)
        )
        begin = time.perf_counter()
        total, n = 0.0, 0
        for window in windows:
            for logits, targets in _predictions(model, window, windows.n_scored):
                log_p = log_softmax(logits)
                score = -np.take_along_axis(log_p, targets[:, None].astype(np.intp), 1)[:, 0]
                scores.append(score)
                if writer:
                    writer.write(log_p, score)
                if base:
                    compared.append(base.compare(log_p))
                total += float(score.sum())
                n += len(score)
            bar.set_postfix_str(f"perplexity {_exp(total / n):.4f}", refresh=False)
            bar.update(windows.n_ctx - 1)
        seconds = time.perf_counter() - begin
    all_scores = np.concatenate(scores)
    value = _exp(float(all_scores.mean()))
    return Perplexity(
        perplexity=value,
        standard_error=value * _standard_error(all_scores),
        n_tokens=len(all_scores),
        n_windows=windows.n_windows,
        n_ctx=windows.n_ctx,
        stride=None if stride is None else windows.step,
        seconds=seconds,
        tokens_per_second=windows.n_computed / seconds,
        kl=_divergence(all_scores, compared) if compared else None,
    )


def _predictions(model: Mixtral, window: I32, n_scored: int) -> Iterator[tuple[F32, I32]]:
    """Yields logits, float32 [up to _ROWS, n_vocab], and the scored tokens that they are for."""
    n = len(window) - 1  # the last token predicts nothing
    for begin in range(n - n_scored, n, _PIECE):
        end = min(begin + _PIECE, n)
        logits = model.logits(window[:end], first=begin)
        for i in range(0, len(logits), _ROWS):
            rows = logits[i : i + _ROWS]
            yield rows, window[begin + 1 + i : begin + 1 + i + len(rows)]


def _windows(
    model: Mixtral, text: str | Ids, n_ctx: int, stride: int | None, n_windows: int | None, progress: bool
) -> Windows:
    try:
        bos = model.tokenize("")
    except UnsupportedError:
        if isinstance(text, str):
            raise
        bos = []
    n_vocab = model.config.n_vocab
    if isinstance(text, str):
        text = tokens_of(model, text, tokens_needed(n_ctx, stride, n_windows, model.n_ctx), progress=progress)
    try:
        ids = np.asarray(text)
    except ValueError:  # lists of different lengths
        ids = np.empty((0, 0), np.int32)
    if ids.ndim != 1 or (ids.size and (ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= n_vocab)):
        raise InvalidArgumentError(
            f"expected text to be a str or a list of token ids from 0 to {n_vocab - 1}, found {text!r:.40}"
        )
    return Windows.cut(ids.astype(np.int32), n_ctx, stride, n_windows, bos[0] if bos else None, longest=model.n_ctx)


def _divergence(scores: F64, compared: list[tuple[F64, NDArray[np.bool_], F64]]) -> Divergence:
    kl, agreed, base_scores = (np.concatenate(column) for column in zip(*compared, strict=True))
    differences = scores - base_scores
    ratio = _exp(float(differences.mean()))
    return Divergence(
        mean=float(kl.mean()),
        standard_error=_standard_error(kl),
        median=float(np.median(kl)),
        p99=float(np.percentile(kl, 99)),
        maximum=float(kl.max()),
        top1_agreement=float(agreed.mean()),
        base_perplexity=_exp(float(base_scores.mean())),
        ratio=ratio,
        ratio_error=ratio * _standard_error(differences),
    )


def _standard_error(values: F64) -> float:
    return float(values.std(ddof=1)) / math.sqrt(len(values))


def _exp(mean: float) -> float:
    if mean > 700:  # exp(709.8) is the largest float64
        raise NonFiniteError(
            f"expected a perplexity that a float64 holds, found exp({mean:.1f}): the model's weights may be damaged"
        )
    return math.exp(mean)
