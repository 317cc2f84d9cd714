"""The demo models, each behind its endpoints, once per session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pymixtral import Mixtral, demo_chat_path
from support.api_servers import Served, serving


@pytest.fixture(scope="session")
def story() -> Iterator[Served]:
    """The demo model that writes stories, and has no chat format of its own."""
    with Mixtral(n_threads=1, n_ctx=512) as model, serving(model) as served:
        yield served


@pytest.fixture(scope="session")
def chat() -> Iterator[Served]:
    """The demo model that answers."""
    with Mixtral(demo_chat_path(), n_threads=1) as model, serving(model) as served:
        yield served
