"""The oracle's router and experts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pymixtral.arrays import F32, I32
from pymixtral.errors import NonFiniteError
from pymixtral.files.types import Matrix
from pymixtral.reference.adapters import NONE, Deltas, adapted
from pymixtral.reference.arithmetic import exp, finite, fma
from pymixtral.reference.products import matmul


def route(logits: F32, n_used: int, n_dropped: int = 0, min_p: float = 0.0) -> tuple[I32, F32]:
    """Choose the experts of each token.

    Args:
        logits: of the router, float32 [n_tokens, n_experts].
        n_used: experts to choose, 1 to n_experts.
        n_dropped: how many of these, the least likely, have weight 0; 0 to n_used - 1.
        min_p: experts that are less than this part as likely as the first one have weight 0; 0 to 1.

    Returns:
        The chosen experts in ascending order, int32 [n_tokens, n_used], and their weights, float32
        [n_tokens, n_used]: the softmax of the chosen logits whose weight is not 0.

    Raises:
        NonFiniteError: with the row.
    """
    order = np.argsort(-finite(logits, "the router's logits"), axis=1, kind="stable")
    ids = np.sort(order[:, :n_used], axis=1)
    e = exp(np.take_along_axis(logits, ids, axis=1) - logits.max(axis=1, keepdims=True))
    last = order[:, n_used - n_dropped : n_used]
    e[(ids[:, :, None] == last[:, None]).any(axis=2) | (e < np.float32(min_p))] = 0
    total = e[:, 0]
    for i in range(1, n_used):
        total = total + e[:, i]
    return ids.astype(np.int32), e / total[:, None]


def silu_mul(gate: F32, up: F32) -> F32:
    """Compute (gate / (1 + exp(-gate))) * up, the gated unit of an expert.

    Shazeer 2020, arXiv:2002.05202.

    Args:
        gate: float32 [n_tokens, ffn].
        up: float32 [n_tokens, ffn].

    Returns:
        float32 [n_tokens, ffn].

    Raises:
        NonFiniteError: with the row.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return finite((gate / (np.float32(1) + exp(-gate))) * up, "a gated product")


def feed_forward(
    x: F32, gate: Matrix, up: Matrix, down: Matrix, planes: int = 1, deltas: Deltas = NONE, expert: int = 0
) -> F32:
    """Compute one expert.

    Args:
        x: float32 [n_tokens, hidden].
        gate: ffn x hidden.
        up: ffn x hidden.
        down: hidden x ffn.
        planes: as of matmul().
        deltas: what adapters add.
        expert: the expert's number, for deltas.

    Returns:
        float32 [n_tokens, hidden].

    Raises:
        NonFiniteError: with the row.
    """
    g = adapted(matmul(x, gate, planes), x, deltas.of("ffn_gate", expert))
    u = adapted(matmul(x, up, planes), x, deltas.of("ffn_up", expert))
    h = silu_mul(g, u)
    return adapted(matmul(h, down, planes), h, deltas.of("ffn_down", expert))


def experts(
    x: F32,
    normed: F32,
    ids: I32,
    weights: F32,
    matrices: Sequence[tuple[Matrix, Matrix, Matrix]],
    planes: int = 1,
    deltas: Deltas = NONE,
) -> F32:
    """Add the weighted outputs of the chosen experts to the residual stream.

    Args:
        x: the residual stream, float32 [n_tokens, hidden].
        normed: the experts' input, float32 [n_tokens, hidden].
        ids: the chosen experts, int32 [n_tokens, n_used], ascending.
        weights: their weights, float32 [n_tokens, n_used]; experts of weight 0 are not computed.
        matrices: gate, up (ffn x hidden) and down (hidden x ffn) of each expert.
        planes: as of matmul().
        deltas: what adapters add.

    Returns:
        float32 [n_tokens, hidden].

    Raises:
        NonFiniteError: with the row.
    """
    out = np.zeros((*ids.shape, x.shape[1]), np.float32)
    for e, (gate, up, down) in enumerate(matrices):
        rows, slots = np.nonzero((ids == e) & (weights != 0))
        if not len(rows):
            continue
        try:
            out[rows, slots] = feed_forward(normed[rows], gate, up, down, planes, deltas.rows(rows), e)
        except NonFiniteError as error:
            row = int(rows[error.row])
            raise NonFiniteError(
                f"expected finite numbers, found NaN or infinity in expert {e} for row {row}: check its weights", row
            ) from error
    with np.errstate(over="ignore", invalid="ignore"):
        y = weights[:, 0, None] * out[:, 0]
        for i in range(1, ids.shape[1]):
            y = fma(weights[:, i, None], out[:, i], y)
        return finite(x + y, "the experts' sum")
