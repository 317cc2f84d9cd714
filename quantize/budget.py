"""Types for a size: bits where they are worth most.

Each matrix (all experts of a projection together, since a merged tensor has one type) may have one of CANDIDATES. The choice minimizes

    sum over matrices of  sensitivity * e^2,       e^2 = sum_i energy_i * sum_j w_ij * (x_ij - decoded_ij)^2
                                                         -----------------------------------------------------
                                                         sum_i energy_i * sum_j w_ij * x_ij^2

under a number of bytes: e is the error of the matrix's output relative to the output, as far as the importance matrix tells: w_ij is the
importance of column j for expert i (else 1), energy_i the expert's mean squared input times the part of the tokens that it sees (else
equal). e is measured by encoding sampled rows. SENSITIVITY says what an error is worth in divergence.

The minimum is found on each matrix's lower convex hull of (bytes, error): steps along the hulls are taken in the order of error saved per
byte, which is the Lagrangian optimum for the bytes used; steps that no longer fit are passed over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray
from tqdm import tqdm

from pymixtral import ops
from pymixtral.errors import InvalidArgumentError
from pymixtral.imatrix import Importance

from .checkpoint import Checkpoint
from .encoding import decode, encode, part_rows
from .layout import Target
from .recipe import fit, kept_f32, row_bytes

Type = GGMLQuantizationType

CANDIDATES = (Type.Q2_K, Type.Q3_K, Type.IQ4_XS, Type.Q4_K, Type.Q5_K, Type.Q6_K, Type.Q8_0)

SENSITIVITY: dict[str, float] = {}

SAMPLED_ROWS = 64
"""Of each matrix, spread over its experts and evenly over their rows."""


@dataclass(frozen=True)
class Choice:
    """types: by tensor name. errors: the relative error e of each matrix. objective: the sum that was minimized."""

    types: dict[str, Type]
    errors: dict[str, float]
    objective: float


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
    """The types of all tensors in at most `budget` bytes of data. fixed: types that are decided; norms and routers are f32.

    Raises InvalidArgumentError if the budget is too small for the smallest types.
    """
    options: dict[str, list[_Option]] = {}
    types: dict[str, Type] = {}
    for target in tqdm(checkpoint.targets, desc="measuring", unit="tensors", disable=None if progress else True):
        if kept_f32(target):
            types[target.name] = Type.F32
        elif target.name in fixed:
            types[target.name] = fit(target, fixed[target.name])
        else:
            options[target.name] = _hull(list(_options(context, checkpoint, target, importance.get(target.name))))
    spent = sum(_n_bytes(target, types[target.name]) for target in checkpoint.targets if target.name in types)
    chosen = _spend(options, budget - spent)
    types |= {name: option.type for name, option in chosen.items()}
    return Choice(types, {name: option.error for name, option in chosen.items()}, sum(option.cost for option in chosen.values()))


def _spend(options: Mapping[str, list[_Option]], budget: int) -> dict[str, _Option]:
    at = dict.fromkeys(options, 0)
    left = budget - sum(hull[0].n_bytes for hull in options.values())
    if left < 0:
        raise InvalidArgumentError(f"target: the smallest types need {-left} bytes more; expected a larger target")
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


def _options(context: ops.Context, checkpoint: Checkpoint, target: Target, importance: Importance | None) -> Iterator[_Option]:
    n_sources = len(target.sources)
    n_rows = min(target.rows, max(4, SAMPLED_ROWS // n_sources))
    rows = np.linspace(0, target.rows - 1, n_rows).astype(np.int64)
    samples = [part_rows(checkpoint, target, source, rows) for source in target.sources]
    energy = importance.energy if importance else np.ones(n_sources)
    weights = [importance.weights[i] if importance else None for i in range(n_sources)]
    signal = sum(energy[i] * _energy(x, weights[i]) for i, x in enumerate(samples))
    sensitivity = SENSITIVITY.get(target.name.split(".")[-2], 1.0)
    for kind in dict.fromkeys(fit(target, candidate) for candidate in CANDIDATES):
        noise = 0.0
        for i, (source, x) in enumerate(zip(target.sources, samples, strict=True)):
            data = encode(context, kind, x, source, weights[i])
            noise += energy[i] * _energy(x - decode(context, kind, data), weights[i])
        squared = float(noise / signal) if signal > 0 else 0.0
        yield _Option(kind, _n_bytes(target, kind), sensitivity * squared, squared**0.5)


def _energy(x: NDArray[np.float32], weights: NDArray[np.float32] | None) -> float:
    squares = np.square(x, dtype=np.float64)
    return float((squares * weights).sum() if weights is not None else squares.sum())


def _n_bytes(target: Target, kind: Type) -> int:
    return prod(target.shape) // target.cols * row_bytes(kind, target.cols)
