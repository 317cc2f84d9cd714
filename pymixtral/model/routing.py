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
            float16 [n_tokens, n_layers, n_experts_used]. Those of a token and layer add up to 1. 0 stands
            beside an expert that was left out, where layers use fewer or unlikely ones are dropped.
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


def probabilities(logits: F32) -> F16:
    """Make routers' probabilities.

    Args:
        logits: of all experts, float32 [..., n_experts].

    Returns:
        float16 of the same shape.
    """
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    rounded: F16 = (powers / powers.sum(axis=-1, keepdims=True)).astype(np.float16)
    return rounded
