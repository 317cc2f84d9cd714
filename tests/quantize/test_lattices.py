"""The lattices of the encoders: their neighbours, signs, and how near the chosen entries are."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from pymixtral.arrays import F32
from pymixtral.files.types import Matrix, show_type
from pymixtral.quantize.encoders.lattices import LATTICES, NEIGHBOURS, Lattice
from pymixtral.quantize.encoders.search import encode
from pymixtral.reference.blocks import dequantize
from support.variants import generator, normal

every_lattice = pytest.mark.parametrize("lattice", LATTICES.values(), ids=lambda lattice: show_type(lattice.type))
N_ENTRIES = {"IQ2_XXS": 256, "IQ2_XS": 512, "IQ2_S": 1024, "IQ3_XXS": 256, "IQ3_S": 512}


def points(lattice: Lattice) -> F32:
    """[points, group]: their magnitudes in units."""
    n = len(lattice.values)
    return np.array(lattice.values, np.float32)[np.indices((n,) * lattice.group).reshape(lattice.group, -1).T]


@every_lattice
def test_neighbours_are_the_nearest_entries(lattice: Lattice) -> None:
    assert lattice.entries.shape == (N_ENTRIES[lattice.type.name], lattice.group)
    every = points(lattice)
    for point in generator(1).integers(0, len(every), 50):
        distances = np.square(lattice.entries - every[point]).sum(axis=1)
        near = lattice.neighbours[point]
        assert len(set(near)) == NEIGHBOURS
        assert (np.diff(distances[near]) >= 0).all()
        assert distances[near[-1]] <= np.delete(distances, near).min()


@every_lattice
def test_the_first_neighbour_of_an_entry_is_itself(lattice: Lattice) -> None:
    place = {tuple(point): i for i, point in enumerate(points(lattice))}
    for number, entry in enumerate(lattice.entries):
        assert lattice.neighbours[place[tuple(entry)], 0] == number


@every_lattice
@pytest.mark.parametrize("weighted", [False, True])
def test_signs_are_even_at_little_cost(lattice: Lattice, weighted: bool) -> None:
    x = normal(2, 32, 500)
    x[:, 0], x[:, 1] = 0, -1
    w = generator(3).gamma(0.7, size=x.shape).astype(np.float32) if weighted else np.ones_like(x)
    magnitudes, signs = lattice.magnitudes(x, w)
    negative = np.unpackbits(signs[:, None], axis=1, bitorder="little").reshape(x.shape).astype(bool)
    np.testing.assert_array_equal(np.where(negative, -magnitudes, magnitudes), x)
    wrong = (magnitudes < 0).reshape(4, 8, -1).sum(axis=1)
    if not lattice.even:
        assert not wrong.any()
        return
    assert not (negative.reshape(4, 8, -1).sum(axis=1) % 2).any()
    assert wrong.max() == 1
    squares = (w * np.square(x)).reshape(4, 8, -1)
    at = (magnitudes < 0).reshape(4, 8, -1)
    assert ((squares * at).sum(axis=1) <= 1.5 * squares.mean(axis=1)).all()


@every_lattice
@pytest.mark.parametrize("weighted", [False, True])
def test_entries_are_nearly_the_best_of_all(lattice: Lattice, weighted: bool) -> None:
    """The sums are those of the entries; their error is at most 3% above that of the best ones."""
    x = np.abs(generator(4).laplace(size=(32, 100)).astype(np.float32))
    w = generator(5).gamma(0.7, size=x.shape).astype(np.float32) if weighted else np.ones_like(x)
    inverse = np.full(100, 0.9 * lattice.values[-1] * lattice.unit / 3, np.float32)
    entries, qq, xq = lattice.nearest(x, w, inverse)
    q = lattice.values_of(entries).astype(np.float64)
    np.testing.assert_allclose(qq, (w * q * q).sum(axis=0), rtol=1e-5)
    np.testing.assert_allclose(xq, (w * q * x).sum(axis=0), rtol=1e-5)
    every = lattice.entries * lattice.unit
    wanted = (x * inverse).reshape(-1, 1, lattice.group, 100).transpose(0, 3, 1, 2)
    of_all = w.reshape(-1, 1, lattice.group, 100).transpose(0, 3, 1, 2) * np.square(wanted - every)
    least = of_all.sum(axis=3).min(axis=2).sum()
    found = (w * np.square(x * inverse - q)).sum()
    assert least * (1 - 1e-5) <= found < 1.03 * least


@pytest.mark.parametrize("kind", LATTICES, ids=show_type)
@pytest.mark.parametrize("size", [1e-30, 1e-7, 1.0, 1e5])
def test_blocks_are_finite_and_not_larger_than_their_weights_by_much(kind: GGMLQuantizationType, size: float) -> None:
    x = normal(6, 8, 512) * np.float32(size)
    x[3, 40:] = 0
    decoded = dequantize(Matrix(kind, encode(kind, x, None)))
    assert np.isfinite(decoded).all()
    assert np.abs(decoded).max() <= max(1.25 * np.abs(x).max(), 62 * 15.5 * 2.0**-24)


@pytest.mark.parametrize("kind", LATTICES, ids=show_type)
@pytest.mark.parametrize("size", [1e-20, 1e-9, 1e-8, 1e-7, 1.0])
def test_zeros_are_never_nearer(kind: GGMLQuantizationType, size: float) -> None:
    """No entry has a 0: weights far below the least scale of f16 need a scale of 0."""
    x = normal(6, 8, 512) * np.float32(size)
    x[3, 256:] *= np.float32(1e-3)
    decoded = dequantize(Matrix(kind, encode(kind, x, None)))
    errors, squares = (np.square(a.astype(np.float64)).reshape(-1, 256).sum(axis=1) for a in (decoded - x, x))
    assert (errors <= squares).all()
