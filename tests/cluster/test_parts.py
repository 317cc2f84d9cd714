"""Models cut into parts."""

from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymixtral.cluster.parts import layer_bytes, layer_ranges, mapped_bytes, part_bytes
from pymixtral.errors import InvalidArgumentError
from pymixtral.files.gguf import GGUFFile


@given(st.lists(st.integers(1, 100), min_size=1, max_size=9), st.integers(0, 200), st.data())
def test_the_largest_part_is_as_small_as_can_be(sizes: list[int], beside: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(sizes)))
    found = layer_ranges(sizes, beside, n)
    assert [i for part in found for i in part] == list(range(len(sizes)))
    assert len(found) == n
    assert all(found)
    every = (
        [range(a, b) for a, b in pairwise((0, *cuts, len(sizes)))] for cuts in combinations(range(1, len(sizes)), n - 1)
    )
    assert max(part_bytes(found, sizes, beside)) == min(max(part_bytes(parts, sizes, beside)) for parts in every)


@pytest.mark.parametrize(("n", "expected"), [(1, [32]), (2, [16, 16]), (3, [10, 11, 11]), (5, [6, 6, 6, 7, 7])])
def test_equal_layers_are_shared_evenly(n: int, expected: list[int]) -> None:
    assert sorted(map(len, layer_ranges([800] * 32, 200, n))) == expected


@pytest.mark.parametrize("n", [0, 5])
def test_a_part_has_a_layer_or_more(n: int) -> None:
    with pytest.raises(InvalidArgumentError, match=f"expected 1 to 4 hosts for a model of 4 layers, found {n}"):
        layer_ranges([1] * 4, 0, n)


def test_every_byte_of_a_file_is_in_one_part(tiny_q8_0: Path) -> None:
    with GGUFFile(tiny_q8_0) as file:
        sizes, beside = layer_bytes(file, 4)
        parts = layer_ranges(sizes, beside, 3)
        mapped = [mapped_bytes(file, part) for part in parts]
        assert [sum(map(len, arrays)) for arrays in mapped] == part_bytes(parts, sizes, beside)
        begins = [array.ctypes.data for arrays in mapped for array in arrays]
        assert sorted(begins) == sorted(tensor.data.ctypes.data for tensor in file.tensors.values())
        assert sum(sizes) + beside == sum(tensor.data.nbytes for tensor in file.tensors.values())
