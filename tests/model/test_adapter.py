"""What an adapter is, and which models it fits."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from pymixtral.errors import AdapterError
from pymixtral.files.names import TensorName
from pymixtral.model.adapter import Adapter, LowRank, adapted_shape
from pymixtral.model.config import ModelConfig
from support.layers import Shape, example
from support.low_rank import adapter_for, low_rank

Q, UP = TensorName("attn_q", 0), TensorName("ffn_up", 0, expert=2)
CONFIG: ModelConfig = example(Shape()).config
DENSE: ModelConfig = example(Shape(n_experts=1, n_used=1)).config


def test_numbers_of_an_adapter() -> None:
    adapter = Adapter({UP: low_rank(1, 7, 96, 64), Q: low_rank(3, 2, 128, 64)}, "here")
    assert list(adapter.pairs) == [Q, UP]
    assert adapter.nbytes == 4 * (7 * 160 + 2 * 192)
    assert adapter.rank == 7
    assert (Adapter({}, "empty").nbytes, Adapter({}, "empty").rank) == (0, 0)


def test_a_digest_is_of_names_shapes_and_numbers() -> None:
    a, b = low_rank(1, 6, 64, 64)
    one = Adapter({Q: LowRank(a, b)}, "here")
    assert Adapter({Q: LowRank(a.copy(), b.copy())}, "there").digest == one.digest
    changed = a.copy()
    changed[5, 63] = np.nextafter(changed[5, 63], np.float32(9))
    others: list[dict[TensorName, Any]] = [
        {Q: LowRank(changed, b)},
        {UP: LowRank(a, b)},
        {Q: LowRank(b, a)},
        {Q: LowRank(a.reshape(3, 128), b.reshape(3, 128))},
        {},
    ]
    assert len({one.digest, *(Adapter(pairs, "here").digest for pairs in others)}) == 6


def test_pairs_that_are_none() -> None:
    a, b = low_rank(1, 4, 128, 64)
    large = np.zeros((1025, 1), np.float32)
    shapes = [(a[:3], b), (a[0], b), (a, b[None]), (a[:0], b[:0]), (large, large)]
    for pair in shapes:
        with pytest.raises(AdapterError, match=r"here: blk\.0\.attn_q\.weight: expected a pair"):
            Adapter({Q: LowRank(*pair)}, "here")
    for pair in ((a.astype(np.float64), b), (a, np.asfortranarray(b)), (a[:, ::2], b)):
        with pytest.raises(AdapterError, match="expected C-contiguous float32"):
            Adapter({Q: LowRank(*pair)}, "here")
    for value in (np.nan, np.inf, -np.inf):
        broken = b.copy()
        broken[3, 100] = value
        with pytest.raises(AdapterError, match="expected finite numbers"):
            Adapter({Q: LowRank(a, broken)}, "here")


@pytest.mark.parametrize("config", [CONFIG, DENSE], ids=["mixture", "dense"])
def test_adapters_of_all_matrices_fit(config: ModelConfig) -> None:
    adapter = adapter_for(config, 1)
    assert len(adapter.pairs) == 4 + (13 if config.n_experts > 1 else 3)
    adapter.check(config)


@pytest.mark.parametrize(
    "name",
    [
        TensorName("attn_q", 1),
        TensorName("attn_norm", 0),
        TensorName("token_embd"),
        TensorName("output"),
        TensorName("ffn_up", 0),
        TensorName("ffn_up", 0, merged=True),
        TensorName("ffn_up", 0, expert=4),
        TensorName("attn_q", 0, expert=0),
        TensorName("ffn_gate_up", 0, merged=True),
    ],
    ids=str,
)
def test_matrices_that_a_model_does_not_have(name: TensorName) -> None:
    assert adapted_shape(name, CONFIG) is None
    with pytest.raises(AdapterError, match="expected matrices of a model of 1 layers and 4 experts"):
        Adapter({name: low_rank(1, 2, 64, 64)}, "here").check(CONFIG)


def test_a_dense_model_has_neither_a_router_nor_experts() -> None:
    assert adapted_shape(TensorName("ffn_gate_inp", 0), DENSE) is None
    assert adapted_shape(TensorName("ffn_down", 0, expert=0), DENSE) is None
    assert adapted_shape(TensorName("ffn_down", 0), DENSE) == (64, 96)


def test_an_adapter_of_a_wider_model() -> None:
    wide = dataclasses.replace(CONFIG, ffn=128)
    with pytest.raises(AdapterError, match="expected a pair for 128 x 64, found one for 96 x 64"):
        Adapter({UP: low_rank(1, 2, 96, 64)}, "here").check(wide)
