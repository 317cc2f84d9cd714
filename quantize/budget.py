"""Types for a size: bits where they are worth most.

Each matrix (all experts of a projection together, since a merged tensor has one type) may have one
of CANDIDATES. The choice minimizes

    sum over matrices of  sensitivity * e^2

           sum_i energy_i * sum_j w_ij * (x_ij - decoded_ij)^2
    e^2 =  ---------------------------------------------------
           sum_i energy_i * sum_j w_ij * x_ij^2

under a number of bytes: e is the error of the matrix's output relative to the output, as far as the
importance matrix tells. w_ij is the importance of column j for expert i (else 1), energy_i the
expert's mean squared input times the part of the tokens that it sees (else equal). e is measured by
encoding sampled rows. Where experts have tensors of their own, each may have another type: its term
of the sum over i is chosen by itself.

The sensitivity says what the error does to the model's predictions, relative to one of the output
matrix, which has 1. For a matrix of a layer it is SENSITIVITY times the share that its half of the
layer (attention, or the experts) has in the residual stream. With an importance matrix the share is
that of the root mean square of what the half adds, the denominator above for attn_output and
ffn_down over all rows. Without one, halves share equally, but in the first and the last eighth of
the layers they count double. A tenth of the sum is shared equally in any case.

The minimum is found on each matrix's lower convex hull of (bytes, error): steps along the hulls are
taken in the order of error saved per byte, which is the Lagrangian optimum for the bytes used;
steps that no longer fit are passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, prod

import numpy as np
from gguf import GGMLQuantizationType

from pymixtral import ops
from pymixtral.arrays import F32
from pymixtral.errors import InvalidArgumentError
from pymixtral.files.importance import Importance
from pymixtral.files.names import TensorName, merged_name
from pymixtral.files.types import row_bytes
from pymixtral.progress import progress_bar
from pymixtral.units import show_bytes

from .encoding import decode, encode, part_rows
from .recipe import fit, kept_f32
from .sources.checkpoint import Checkpoint
from .sources.targets import Target

Type = GGMLQuantizationType

CANDIDATES = (
    *(Type.IQ2_XXS, Type.IQ2_XS, Type.IQ2_S, Type.Q2_K, Type.IQ3_XXS, Type.IQ3_S, Type.Q3_K),
    *(Type.IQ4_XS, Type.Q4_K, Type.Q5_K, Type.Q6_K, Type.Q8_0),
)

NEED_IMPORTANCE = frozenset({Type.IQ2_XXS, Type.IQ2_XS, Type.IQ2_S})
"""Types whose errors, measured without an importance matrix, promise more than the model keeps: where
ffn_down of a mixture of SmolLM2 was in iq2_s, its KL divergence was 0.91, and with q2_k, whose error
is larger, 0.61; with a matrix they were 0.149 and 0.153. Without one they are chosen only where
nothing else fits the size."""

SENSITIVITY = {
    "attn_q": 0.17,
    "attn_k": 0.27,
    "attn_v": 0.38,
    "attn_output": 0.32,
    "ffn_gate": 0.24,
    "ffn_up": 0.18,
    "ffn_down": 0.54,
}
"""Divergence for each e^2, relative to the output matrix and to a share of 1. It was measured on
tests/data/tiny-mixtral with all matrices of a kind in q4_0, or q2_k, and all else in f32, on its
training text. The shares that follow from an importance matrix order the eight halves of its layers
as their measured sensitivities do, but for two pairs of neighbours."""

EMBEDDING_SENSITIVITY = 0.8
"""Of the embedding, measured likewise; it is divided by the number of layers, as what the embedding
adds to the stream is the input of the first."""

SAMPLED_ROWS = 64
"""Rows of each tensor that are encoded to measure e, spread over its experts and evenly over their
rows; at least _ROWS_OF_EXPERT of each expert."""

_ROWS_OF_EXPERT = 4


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        types: by tensor name.
        errors: the relative error e of each tensor whose type was chosen.
        objective: the sum that was minimized.
    """

    types: dict[str, Type]
    errors: dict[str, float]
    objective: float


@dataclass(frozen=True)
class _Measured:
    """What was measured of one tensor.

    types: type, bytes and noise, the numerator of e^2, of each candidate. signal: the denominator,
    over all rows. known: whether there is importance, so that it tells how large outputs are.
    """

    types: list[tuple[Type, int, float]]
    signal: float
    known: bool


@dataclass(frozen=True)
class _Option:
    type: Type
    n_bytes: int
    cost: float
    error: float


def choose(
    context: ops.Context,
    checkpoint: Checkpoint,
    fixed: Mapping[str, Type],
    importance: Mapping[str, Importance],
    budget: int,
    progress: bool,
) -> Choice:
    """Chooses the types of all tensors.

    Args:
        context: the threads that encode.
        checkpoint: the weights.
        fixed: types by tensor name that are decided already; norms and routers are f32.
        importance: by tensor name.
        budget: bytes of data, at most.
        progress: a bar on stderr, when that is a terminal.

    Returns:
        The choice.

    Raises:
        InvalidArgumentError: the budget is too small for the smallest types.
    """
    measured: dict[str, _Measured] = {}
    types: dict[str, Type] = {}
    for target in progress_bar(checkpoint.targets, label="measuring", unit=" tensors", shown=progress):
        if kept_f32(target):
            types[target.name] = Type.F32
        else:
            measured[target.name] = _measure(context, checkpoint, target, importance.get(target.name))
    types |= {target.name: fit(target, fixed[target.name]) for target in checkpoint.targets if target.name in fixed}
    price = _prices(measured)
    spent = sum(_n_bytes(target, types[target.name]) for target in checkpoint.targets if target.name in types)
    free = {name: found for name, found in measured.items() if name not in fixed}
    for left_out in (NEED_IMPORTANCE, frozenset[Type]()):
        options = {
            name: _hull(
                [
                    _Option(kind, n_bytes, price[name] * noise, _ratio(noise, found.signal) ** 0.5)
                    for kind, n_bytes, noise in found.types
                    if found.known or kind not in left_out
                ]
            )
            for name, found in free.items()
        }
        least = spent + sum(hull[0].n_bytes for hull in options.values())
        if least <= budget:
            break
    else:
        bits = ceil(8000 * least / sum(prod(target.shape) for target in checkpoint.targets)) / 1000
        raise InvalidArgumentError(
            f"expected a target of at least {show_bytes(least)} of tensors, {bits} bits per weight, which the smallest "
            f"types take, found one that leaves {least - budget} bytes less: ask for a larger one"
        )
    chosen = _spend(options, budget - spent)
    types |= {name: option.type for name, option in chosen.items()}
    errors = {name: option.error for name, option in chosen.items()}
    return Choice(types, errors, sum(option.cost for option in chosen.values()))


def _spend(options: Mapping[str, list[_Option]], budget: int) -> dict[str, _Option]:
    at = dict.fromkeys(options, 0)
    left = budget - sum(hull[0].n_bytes for hull in options.values())
    steps = sorted(
        ((hull[i].cost - hull[i + 1].cost) / (hull[i + 1].n_bytes - hull[i].n_bytes), name, i)
        for name, hull in options.items()
        for i in range(len(hull) - 1)
    )
    for _, name, i in reversed(steps):
        needed = options[name][i + 1].n_bytes - options[name][i].n_bytes
        if at[name] == i and needed <= left:
            at[name], left = i + 1, left - needed
    return {name: hull[at[name]] for name, hull in options.items()}


def _hull(options: list[_Option]) -> list[_Option]:
    """The lower convex hull, fewest bytes first, each with less error than the one before."""
    hull: list[_Option] = []
    for option in sorted(options, key=lambda option: (option.n_bytes, option.cost)):
        if hull and option.cost >= hull[-1].cost:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], option):
            hull.pop()
        hull.append(option)
    return hull


def _slope(a: _Option, b: _Option) -> float:
    return (b.cost - a.cost) / (b.n_bytes - a.n_bytes)


def _prices(measured: Mapping[str, _Measured]) -> dict[str, float]:
    """What the noise of each tensor costs: the sensitivity of its matrix over the signal of that.

    The matrix of an expert's tensor is the merged one of all experts.
    """
    matrices = {name: _matrix(name) for name in measured}
    signals: dict[TensorName, float] = {}
    for name, found in measured.items():
        signals[matrices[name]] = signals.get(matrices[name], 0.0) + found.signal
    halves = [matrix for matrix in signals if matrix.stem in ("attn_output", "ffn_down")]
    amplitudes = [signals[matrix] ** 0.5 for matrix in halves]
    known = all(found.known for name, found in measured.items() if matrices[name] in halves)
    if not known or sum(amplitudes) == 0:
        edge = 2 * max(1, len(halves) // 16)
        amplitudes = [2.0 if i < edge or i >= len(halves) - edge else 1.0 for i in range(len(halves))]
    shares = {
        _half(matrix): 0.9 * amplitude / sum(amplitudes) + 0.1 / len(halves)
        for matrix, amplitude in zip(halves, amplitudes, strict=True)
    }
    tied = all(matrix.stem != "output" for matrix in signals)  # then the embedding is the output matrix too
    fixed = {"token_embd": EMBEDDING_SENSITIVITY / (len(halves) // 2) + tied, "output": 1.0}
    sensitivity = {
        matrix: fixed[matrix.stem] if matrix.stem in fixed else SENSITIVITY[matrix.stem] * shares[_half(matrix)]
        for matrix in signals
    }
    return {name: _ratio(sensitivity[matrix], signals[matrix]) for name, matrix in matrices.items()}


def _matrix(name: str) -> TensorName:
    matrix = TensorName.parse(merged_name(name))
    assert matrix is not None  # opening the checkpoint refused all other names
    return matrix


def _half(matrix: TensorName) -> tuple[int | None, str]:
    """The half of a layer that a matrix is in: its layer, and attn or ffn."""
    return matrix.layer, matrix.stem.partition("_")[0]


def _measure(context: ops.Context, checkpoint: Checkpoint, target: Target, importance: Importance | None) -> _Measured:
    n_sources = len(target.sources)
    n_rows = min(target.rows, max(_ROWS_OF_EXPERT, SAMPLED_ROWS // n_sources))
    rows = np.linspace(0, target.rows - 1, n_rows).astype(np.int64)
    samples = [part_rows(checkpoint, target, source, rows)[0] for source in target.sources]
    energy = importance.energy if importance else np.ones(n_sources)
    weights = [importance.weights[i] if importance else None for i in range(n_sources)]
    scale = target.rows / n_rows
    types = []
    for kind in dict.fromkeys(fit(target, candidate) for candidate in CANDIDATES):
        noise = 0.0
        for i, (source, x) in enumerate(zip(target.sources, samples, strict=True)):
            data = encode(context, kind, x, source, weights[i])
            noise += energy[i] * _energy(x - decode(context, kind, data), weights[i])
        types.append((kind, _n_bytes(target, kind), scale * noise))
    signal = sum(energy[i] * _energy(x, weights[i]) for i, x in enumerate(samples))
    return _Measured(types, float(scale * signal), importance is not None)


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else 0.0


def _energy(x: F32, weights: F32 | None) -> float:
    squares = np.square(x, dtype=np.float64)
    return float((squares * weights).sum() if weights is not None else squares.sum())


def _n_bytes(target: Target, kind: Type) -> int:
    return row_bytes(kind, prod(target.shape))
