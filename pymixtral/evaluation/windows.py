"""The windows that a text is cut into, which a model sees one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from pymixtral.arguments import integer
from pymixtral.arrays import I32
from pymixtral.errors import InvalidArgumentError
from pymixtral.mixtral import Mixtral
from pymixtral.text.sentencepiece import PART


def tokens_of(model: Mixtral, text: str, most: int | None = None, *, progress: bool = True) -> I32:
    """The ids of a text, with its begin-of-text token if the model wants one.

    Args:
        model: whose tokenizer is used.
        text: of any length: it is encoded in parts, and four bytes are kept for each id.
        most: so many ids are enough: the rest of the text need not be encoded.
        progress: a bar on stderr for a long text, when that is a terminal.

    Returns:
        int32 [n], of at most `most` ids.
    """
    parts: list[I32] = []
    n = 0
    disable = None if progress and len(text) > 16 * PART else True
    with tqdm(total=-(-len(text) // PART), desc="tokenizing", unit="part", disable=disable) as bar:
        for part in model.tokenize_parts(text):
            parts.append(np.array(part, np.int32))
            bar.update()
            n += len(part)
            if most is not None and n >= most:
                break
    ids: I32 = np.concatenate([*parts, np.empty(0, np.int32)])[:most]
    return ids


def tokens_needed(n_ctx: int, stride: int | None, n_windows: int | None, longest: int) -> int | None:
    """How many ids the first n_windows windows cover; None for all of a text. Raises InvalidArgumentError as Windows.cut() does."""
    integer("n_ctx", n_ctx, 3 if stride is None else 2, longest)
    step = n_ctx if stride is None else integer("stride", stride, 1, n_ctx - 1)
    return None if n_windows is None else (integer("n_windows", n_windows, 1) - 1) * step + n_ctx


@dataclass(frozen=True, eq=False)
class Windows:
    """The windows of a text; iterates over their ids, int32 [n_ctx]. tokens: int32, those that the windows cover; bos: what replaces
    the first of each window, or None."""

    tokens: I32
    n_ctx: int
    step: int
    n_scored: int
    n_windows: int
    bos: int | None

    @classmethod
    def cut(cls, tokens: I32, n_ctx: int, stride: int | None, n_windows: int | None, bos: int | None, longest: int) -> Windows:
        """All that fit, or the first n_windows; see pymixtral.evaluation.perplexity. Raises InvalidArgumentError for numbers out of range,
        such as an n_ctx above `longest`, and a text that is too short."""
        tokens_needed(n_ctx, stride, n_windows, longest)
        step, n_scored = (n_ctx, n_ctx - n_ctx // 2 - 1) if stride is None else (stride, stride)
        fit = (len(tokens) - n_ctx) // step + 1 if len(tokens) >= n_ctx else 0
        if n_windows is not None:
            fit = min(fit, n_windows)
        if fit * n_scored < 2:
            raise InvalidArgumentError(
                f"expected a text with at least one window of {n_ctx} tokens and two tokens to score, found {len(tokens)} tokens: "
                "use a longer text or a shorter window"
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
        """Tokens that go through the model: the last one of a window does not."""
        return self.n_windows * (self.n_ctx - 1)
