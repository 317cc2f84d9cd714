"""Adapters by their names, a model that has some of them, and one that has all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pymixtral import Adapter, Mixtral
from support.low_rank import adapter_for


@pytest.fixture(scope="module")
def of(tiny_q8_0: Path) -> dict[str, Adapter]:
    with Mixtral(tiny_q8_0, n_ctx=64) as model:
        return {name: adapter_for(model.config, seed) for seed, name in enumerate("abc")}


@pytest.fixture(scope="module")
def model(tiny_q8_0: Path, of: dict[str, Adapter]) -> Iterator[Mixtral]:
    with Mixtral(tiny_q8_0, n_ctx=512, n_threads=2, adapters={"a": of["a"], "b": of["b"]}) as model:
        yield model


@pytest.fixture(scope="module")
def alone(tiny_q8_0: Path, of: dict[str, Adapter]) -> Iterator[Mixtral]:
    """A model that computes one text at a time, without a cache of earlier ones."""
    with Mixtral(tiny_q8_0, n_ctx=512, n_threads=1, max_batch=1, adapters=of) as model:
        yield model
