"""Traces: the routers' choices for one text, gathered pass by pass."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pymixtral.arrays import F16, I32, U8
from pymixtral.model.routing import Routing, probabilities
from pymixtral.ops import Choices

T = TypeVar("T", bound=np.generic)


class Trace:
    """The choices for one text, pass by pass.

    The engine's thread adds to it. Any thread may read tokens that are certain meanwhile: their rows
    never change.

    Args:
        n_layers: layers of the model.
        n_experts: experts of each layer.
        n_experts_used: experts of each token.
        full: whether the routers' probabilities are wanted.

    Attributes:
        full: see above.
        n_tokens: how many tokens it has, without a gap from the first on.
    """

    def __init__(self, n_layers: int, n_experts: int, n_experts_used: int, *, full: bool = False) -> None:
        self.full = full
        self.n_tokens = 0
        self._n_experts = n_experts
        self._ids: I32 = np.empty(0, np.int32)
        self._experts: U8 = np.empty((0, n_layers, n_experts_used), np.uint8)
        self._weights: F16 = np.empty((0, n_layers, n_experts_used), np.float16)
        self._probabilities: F16 = np.empty((0, n_layers, n_experts if full else 0), np.float16)

    def add(self, position: int, ids: I32, choices: Choices, first: int) -> None:
        """Add tokens of a pass. Those that it has already, of a text computed again, stay as they are.

        Args:
            position: of the first token in the text, at most n_tokens.
            ids: the tokens, int32 [n].
            choices: of the pass.
            first: the first token's row there.
        """
        assert position <= self.n_tokens, "a trace has no gaps"
        n_known = min(self.n_tokens - position, len(ids))
        begin, end = position + n_known, position + len(ids)
        rows = slice(first + n_known, first + len(ids))
        if end > len(self._ids):
            self._grow(end)
        self._ids[begin:end] = ids[n_known:]
        # In order here, once: a stream reads the trace with each of its pieces.
        order = np.argsort(-choices.weights[rows], axis=-1, kind="stable")
        self._experts[begin:end] = np.take_along_axis(choices.experts[rows], order, -1)
        self._weights[begin:end] = np.take_along_axis(choices.weights[rows], order, -1)
        if self.full:
            assert choices.logits is not None
            self._probabilities[begin:end] = probabilities(choices.logits[rows])
        self.n_tokens = max(self.n_tokens, end)

    def truncate(self, n_tokens: int) -> None:
        """Forget the last tokens, which were proposed and turned out wrong.

        Args:
            n_tokens: how many to keep at most.
        """
        self.n_tokens = min(self.n_tokens, n_tokens)

    def follow(self, other: Trace) -> None:
        """Begin with what another trace has, of a text that begins with the same tokens.

        Args:
            other: its trace.
        """
        n = other.n_tokens
        self._ids, self._experts = other._ids[:n].copy(), other._experts[:n].copy()
        self._weights, self._probabilities = other._weights[:n].copy(), other._probabilities[:n].copy()
        self.n_tokens = n  # last: a reader meanwhile takes as many rows of each array

    def routing(self, n_prompt: int, n_tokens: int) -> Routing:
        """Make what a caller is given.

        Args:
            n_prompt: tokens of the prompt.
            n_tokens: how many tokens it has at most.

        Returns:
            The routing, with arrays of its own.
        """
        n = min(self.n_tokens, n_tokens)
        return Routing(
            self._ids[:n].copy(),
            min(n, n_prompt),
            self._n_experts,
            self._experts[:n].copy(),
            self._weights[:n].copy(),
            self._probabilities[:n].copy() if self.full else None,
        )

    def _grow(self, n_tokens: int) -> None:
        """Makes room for twice the tokens. A reader meanwhile has the old arrays."""
        room = max(2 * n_tokens, 64)
        self._ids, self._experts = _longer(self._ids, room), _longer(self._experts, room)
        self._weights, self._probabilities = _longer(self._weights, room), _longer(self._probabilities, room)


def _longer(array: NDArray[T], room: int) -> NDArray[T]:
    longer: NDArray[T] = np.empty((room, *array.shape[1:]), array.dtype)
    longer[: len(array)] = array
    return longer
