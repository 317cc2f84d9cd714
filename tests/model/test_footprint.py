"""The memory that a model takes, and how many tokens of prompts are computed at once for that."""

from __future__ import annotations

import pytest

from pymixtral.inspection.published import MODELS
from pymixtral.model.footprint import BATCH, Footprint, batch_size, bytes_per_prompt_token, footprint
from pymixtral.ops import PAGE

GB = 10**9


@pytest.mark.parametrize(
    ("model", "weights", "usable", "expected"),
    [
        ("8x7b", 26, 64, BATCH),  # fits
        ("8x7b", 26, 16, 8192),
        ("8x7b", 26, 6, 6080),
        ("8x7b", 26, 2, 1600),
        ("8x7b", 26, 0.3, BATCH),  # never fewer
        ("8x22b", 80, 60, 8192),
    ],
)
def test_tokens_at_once(model: str, weights: int, usable: float, expected: int) -> None:
    config = MODELS[model]
    need = footprint(config, weights * GB, 4096)
    assert batch_size(config, need, int(usable * GB)) == pytest.approx(expected, rel=0.05)


def test_the_last_byte_decides_and_a_quarter_is_never_exceeded() -> None:
    config = MODELS["8x7b"]
    need = Footprint(26 * GB, GB, GB // 10)
    assert batch_size(config, need, need.total) == BATCH
    for usable in range(2 * GB, need.total, GB // 3):
        n_tokens = batch_size(config, need, usable)
        assert n_tokens % PAGE == 0
        assert n_tokens == BATCH or n_tokens * bytes_per_prompt_token(config) <= (usable - need.kv) / 4
