"""Tables of experts: as wide as a terminal, whatever the numbers of layers and experts."""

from __future__ import annotations

import re

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from pymixtral.cli.expert_table import table
from pymixtral.escapes import escaped


@given(arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(1, 256)), elements=st.floats(1e-9, 1)))
def test_tables_of_experts_fit_a_terminal(parts: NDArray[np.float64]) -> None:
    shares = parts / parts.sum(axis=1, keepdims=True)
    head, *lines = table(shares).splitlines()
    assert max(map(len, (head, *lines))) < 80
    assert escaped(table(shares), keep="\n") == table(shares)
    n_layers, n_experts = shares.shape
    if n_experts > 12:
        rows = re.findall(r"^ +\d+  ((?:.*)(?:\n {7}.*)*)", "\n".join(lines), re.M)
        assert len(rows) == n_layers
    else:
        assert [int(line.split()[0]) for line in lines] == list(range(n_layers))
        for line, layer in zip(lines, shares, strict=True):
            found = [int(number) for number in re.findall(r"\d+", line)[1:]]
            assert found == [round(100 * share) for share in layer.tolist()]
