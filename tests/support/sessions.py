"""Session files that a model refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from pymixtral import Mixtral
from pymixtral.errors import SessionFileError


def refused(model: Mixtral, path: Path, match: str) -> None:
    before = model.stats()
    with pytest.raises(SessionFileError, match=match) as caught:
        model.load_session(path)
    assert str(caught.value).isprintable()
    assert str(caught.value).startswith(str(path))
    assert model.stats().cached_pages == before.cached_pages
