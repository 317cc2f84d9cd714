"""A model, a text, and the session of that text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pymixtral import Mixtral

PROMPT = "Once upon a time there was a king who had three daughters, and the youngest was so fair. "


@pytest.fixture(scope="module")
def model(tiny_q8_0: Path) -> Iterator[Mixtral]:
    with Mixtral(tiny_q8_0, n_ctx=256, n_threads=2) as model:
        yield model


@pytest.fixture(scope="module")
def ids(model: Mixtral) -> list[int]:
    return model.tokenize(PROMPT * 9)[:150]


@pytest.fixture(scope="module")
def saved(model: Mixtral, ids: list[int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sessions") / "150.session"
    model.save_session(path, ids)
    return path
