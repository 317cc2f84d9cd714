"""The windows that a text is cut into, which a model sees one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pymixtral.arguments import integer
from pymixtral.arrays import I32
from pymixtral.errors import InvalidArgumentError


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
        integer("n_ctx", n_ctx, 3 if stride is None else 2, longest)
        if stride is not None:
            integer("stride", stride, 1, n_ctx - 1)
        step, n_scored = (n_ctx, n_ctx - n_ctx // 2 - 1) if stride is None else (stride, stride)
        fit = (len(tokens) - n_ctx) // step + 1 if len(tokens) >= n_ctx else 0
        if n_windows is not None:
            integer("n_windows", n_windows, 1)
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
