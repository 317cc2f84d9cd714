"""The windows that a text is cut into. A model sees them one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pymixtral.arguments import integer
from pymixtral.arrays import I32
from pymixtral.errors import InvalidArgumentError
from pymixtral.mixtral import Mixtral
from pymixtral.progress import progress_bar
from pymixtral.text.sentencepiece import PART


def tokens_of(model: Mixtral, text: str, most: int | None = None, *, progress: bool = True) -> I32:
    """Turn a long text into token ids, with the begin-of-text token if the model wants one.

    Args:
        model: the model whose tokenizer is used.
        text: of any length. It is encoded in parts, and each id takes four bytes.
        most: the most ids to return, so that the rest of the text is not encoded; None: all.
        progress: show a bar on stderr for a long text, if stderr is a terminal.

    Returns:
        int32 [n], of at most `most` ids.

    Raises:
        UnsupportedError: if the file has no tokenizer.
        InvalidArgumentError: for a str with lone surrogates.
    """
    parts: list[I32] = []
    n = 0
    shown = progress and len(text) > 16 * PART  # a megabyte takes about a second
    with progress_bar(total=-(-len(text) // PART), label="tokenizing", unit="part", shown=shown) as bar:
        for part in model.tokenize_parts(text):
            parts.append(np.array(part, np.int32))
            bar.update()
            n += len(part)
            if most is not None and n >= most:
                break
    ids: I32 = np.concatenate([*parts, np.empty(0, np.int32)])[:most]
    return ids


def tokens_needed(n_ctx: int, stride: int | None, n_windows: int | None, longest: int) -> int | None:
    """Count the ids that the first windows of a text cover.

    Args:
        n_ctx: as for Windows.cut().
        stride: as for Windows.cut().
        n_windows: as for Windows.cut().
        longest: as for Windows.cut().

    Returns:
        The number of ids; None if all windows are used.

    Raises:
        InvalidArgumentError: for numbers out of range.
    """
    integer("n_ctx", n_ctx, 3 if stride is None else 2, longest)
    step = n_ctx if stride is None else integer("stride", stride, 1, n_ctx - 1)
    return None if n_windows is None else (integer("n_windows", n_windows, 1) - 1) * step + n_ctx


@dataclass(frozen=True, eq=False)
class Windows:
    """The windows of a text, an iterable of their ids, int32 [n_ctx].

    Attributes:
        tokens: the ids that the windows cover, int32 [n].
        n_ctx: tokens of a window.
        step: tokens between the beginnings of two windows.
        n_scored: tokens of a window that are scored, the last ones.
        n_windows: number of windows.
        bos: the begin-of-text token, which replaces the first token of each window; None: nothing
            replaces it.
    """

    tokens: I32
    n_ctx: int
    step: int
    n_scored: int
    n_windows: int
    bos: int | None

    @classmethod
    def cut(
        cls, tokens: I32, n_ctx: int, stride: int | None, n_windows: int | None, bos: int | None, longest: int
    ) -> Windows:
        """Cut a text into windows, as pymixtral.evaluation.perplexity describes.

        Args:
            tokens: ids of the text, int32 [n].
            n_ctx: tokens of a window, 3 to `longest`; with a stride also 2.
            stride: tokens between the beginnings of windows, 1 to n_ctx - 1; None: the default
                scheme.
            n_windows: use only the first windows; None: all that fit.
            bos: the begin-of-text token; None: the model wants none.
            longest: the model's context.

        Returns:
            The windows.

        Raises:
            InvalidArgumentError: for numbers out of range, and a text that is too short.
        """
        tokens_needed(n_ctx, stride, n_windows, longest)
        step, n_scored = (n_ctx, n_ctx - n_ctx // 2 - 1) if stride is None else (stride, stride)
        fit = (len(tokens) - n_ctx) // step + 1 if len(tokens) >= n_ctx else 0
        if n_windows is not None:
            fit = min(fit, n_windows)
        if fit * n_scored < 2:
            raise InvalidArgumentError(
                f"expected a text with at least one window of {n_ctx} tokens and two tokens to score, "
                f"found {len(tokens)} tokens: use a longer text or a shorter window"
            )
        return cls(tokens[: (fit - 1) * step + n_ctx], n_ctx, step, n_scored, fit, bos)

    def __iter__(self) -> Iterator[I32]:
        for i in range(self.n_windows):
            window = self.tokens[i * self.step : i * self.step + self.n_ctx].copy()
            if self.bos is not None:
                window[0] = self.bos
            yield window

    @property
    def n_computed(self) -> int:
        """Tokens that go through the model: all but the last one of each window."""
        return self.n_windows * (self.n_ctx - 1)
