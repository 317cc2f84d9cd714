"""Perplexity of a model on a text, and how far its predictions are from those of another model.

    from pymixtral import Mixtral
    from pymixtral.evaluation.perplexity import perplexity

    with Mixtral("mixtral-q4_0.gguf") as model:
        print(perplexity(model, text).perplexity)

The text's tokens, with the begin-of-text token that the model wants in front, are cut into windows of n_ctx tokens. The model sees
each window alone; its first token is replaced by the begin-of-text token (if the model wants one), and the last n_scored of its
tokens are scored, each given all tokens of the window before it:

    default    the next window begins where one ends; n_scored = n_ctx - n_ctx // 2 - 1, which are the tokens of the second half
               but for its first. That is the scheme of llama.cpp's llama-perplexity, so that figures compare.
    stride S   the next window begins S tokens further on; n_scored = S. The smaller S is, the more context each token has, and
               the longer it takes; S = n_ctx - 1 scores every token once.

Tokens left over at the end, too few for a window, are not used. A token's score is -log(probability), in float64 from the model's
float32 logits; perplexity is exp(mean score), its standard error perplexity * (standard deviation of the scores) / sqrt(number),
which takes the tokens for independent.
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
from tqdm import tqdm

from pymixtral.arrays import F32, F64, I32, Ids
from pymixtral.errors import InvalidArgumentError, NonFiniteError, UnsupportedError
from pymixtral.evaluation.base import BaseReader, log_softmax, writing_base
from pymixtral.evaluation.windows import Windows, tokens_needed, tokens_of
from pymixtral.mixtral import Mixtral

_PIECE = 512  # rows of logits at a time, which are 66 MB at Mixtral's vocabulary
_ROWS = 32  # rows in float64 at a time, so that they stay in the CPU's cache


@dataclass(frozen=True)
class Divergence:
    """How a model's predictions differ from a base's, over all scored tokens.

    mean, median, p99, maximum: Kullback-Leibler divergence of the model's distribution from the base's, in nats; standard_error: of the
    mean. top1_agreement: the part of the tokens where both have the same most likely one. base_perplexity: the base's own on these
    tokens; ratio: the model's perplexity over it, and ratio_error: its standard error, from the differences token by token.
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

    n_tokens: scored; n_windows, n_ctx, stride (None: the default scheme): how the text was cut. tokens_per_second: tokens that went
    through the model, scored or not, in all `seconds`. kl: compared with a base, if there was one.
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
    """Scores a text as this module's head describes.

    text: a text, or token ids, taken as they are. n_ctx: 3 to model.n_ctx (2 with a stride). stride: 1 to n_ctx - 1. n_windows: only
    the first so many; None: all. save_base: writes the scores and the model's whole predictions to this new file, which appears when
    it is complete; pymixtral.evaluation.base has its format, precision and size, 2 bytes for each token scored and of the vocabulary.
    kl_against: compares the predictions with those in such a file, of the same tokens and windows. progress: a bar on stderr when that
    is a terminal.

    Raises InvalidArgumentError (also for a base that does not fit or is broken), UnsupportedError for a text where the model's
    file has no tokenizer, NonFiniteError as Mixtral.logits() does. Memory beyond the model's is some 100 MB at Mixtral's
    vocabulary, whatever the length of the text and n_ctx.
    """
    windows = _windows(model, text, n_ctx, stride, n_windows, progress)
    n_vocab = model.config.n_vocab
    scores: list[F64] = []
    compared: list[tuple[F64, NDArray[np.bool_], F64]] = []
    with ExitStack() as stack:
        base = stack.enter_context(BaseReader(Path(kl_against), windows, n_vocab)) if kl_against is not None else None
        writer = stack.enter_context(writing_base(Path(save_base), windows, n_vocab)) if save_base is not None else None
        bar = stack.enter_context(tqdm(total=windows.n_computed, unit=" tokens", unit_scale=True, disable=None if progress else True))
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
    """The logits for the last n_scored tokens of a window, float32 [up to _ROWS, n_vocab], and these tokens."""
    n = len(window) - 1  # the last token predicts nothing
    for begin in range(n - n_scored, n, _PIECE):
        end = min(begin + _PIECE, n)
        logits = model.logits(window[:end], first=begin)
        for i in range(0, len(logits), _ROWS):
            rows = logits[i : i + _ROWS]
            yield rows, window[begin + 1 + i : begin + 1 + i + len(rows)]


def _windows(model: Mixtral, text: str | Ids, n_ctx: int, stride: int | None, n_windows: int | None, progress: bool) -> Windows:
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
        raise InvalidArgumentError(f"expected a text or a list of token ids from 0 to {n_vocab - 1}, found {text!r:.40}")
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
    if mean > 700:
        raise NonFiniteError(f"expected a perplexity that a float64 holds, found exp({mean:.1f}): the model's weights may be damaged")
    return math.exp(mean)
