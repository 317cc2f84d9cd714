"""Routing: which experts the router of each layer chose for the tokens of a text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pymixtral.arrays import F16, F32, I32, U8


@dataclass(frozen=True, eq=False)
class Routing:
    """The experts that the tokens of a text went to: its trace.

    A token's row belongs to the pass that reads the token, from whose end the next one is drawn. So
    the last token of a text has no row, unless an end token followed it, which was drawn from its
    pass. Two traces are equal if all their numbers are.

    Attributes:
        ids: the tokens, those of the prompt first, int32 [n_tokens].
        n_prompt: how many of them are the prompt's.
        n_experts: experts of each layer.
        experts: the experts of each token and layer, the one with the highest weight first, and of
            equal weights the lower number; uint8 [n_tokens, n_layers, n_experts_used].
        weights: the weights that their outputs are multiplied with, in the same order, rounded;
            float16 [n_tokens, n_layers, n_experts_used]. Those of a token and layer add up to 1.
        probabilities: the router's probability of every expert, before it chose, rounded; float16
            [n_tokens, n_layers, n_experts]. None if it was not asked for.
    """

    ids: I32
    n_prompt: int
    n_experts: int
    experts: U8
    weights: F16
    probabilities: F16 | None = None

    @property
    def n_tokens(self) -> int:
        """How many tokens it has."""
        return int(self.experts.shape[0])

    @property
    def n_layers(self) -> int:
        """How many layers it has."""
        return int(self.experts.shape[1])

    @property
    def n_experts_used(self) -> int:
        """How many experts each token has in a layer."""
        return int(self.experts.shape[2])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Routing):
            return NotImplemented
        if (self.n_prompt, self.n_experts) != (other.n_prompt, other.n_experts):
            return False
        if (self.probabilities is None) != (other.probabilities is None):
            return False
        return (
            np.array_equal(self.ids, other.ids)
            and np.array_equal(self.experts, other.experts)
            and np.array_equal(self.weights, other.weights)
            and (self.probabilities is None or np.array_equal(self.probabilities, other.probabilities))  # type: ignore[arg-type]
        )

    def __repr__(self) -> str:
        full = ", full" if self.probabilities is not None else ""
        return (
            f"<Routing of {self.n_tokens} tokens, {self.n_layers} layers: "
            f"{self.n_experts_used} of {self.n_experts} experts{full}>"
        )


class Choices:
    """What the routers chose in one pass, as the model leaves it.

    Args:
        n_tokens: tokens of the pass.
        n_layers: layers of the model.
        n_experts: experts of each layer.
        n_experts_used: experts of each token.
        full: whether the routers' logits are wanted.

    Attributes:
        experts: ascending for each token and layer, uint8 [n_tokens, n_layers, n_experts_used].
        weights: theirs, float32 of the same shape.
        logits: of all experts, float32 [n_tokens, n_layers, n_experts]; None without `full`.
    """

    def __init__(self, n_tokens: int, n_layers: int, n_experts: int, n_experts_used: int, *, full: bool) -> None:
        self.experts: U8 = np.empty((n_tokens, n_layers, n_experts_used), np.uint8)
        self.weights: F32 = np.empty((n_tokens, n_layers, n_experts_used), np.float32)
        self.logits: F32 | None = np.empty((n_tokens, n_layers, n_experts), np.float32) if full else None

    def probabilities(self, rows: slice) -> F16:
        """Make the routers' probabilities.

        Args:
            rows: the tokens; `logits` must be there.

        Returns:
            float16 [n, n_layers, n_experts].
        """
        assert self.logits is not None
        logits = self.logits[rows]
        powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
        rounded: F16 = (powers / powers.sum(axis=-1, keepdims=True)).astype(np.float16)
        return rounded
