"""Where there is no Ray."""

from __future__ import annotations

import pytest

from pymixtral import UnsupportedError
from pymixtral.cluster import connection
from pymixtral.cluster.connection import connect
from pymixtral.cluster.pipeline import open_pipeline


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "find_spec", lambda _: None)
    for call in (connect, open_pipeline):
        with pytest.raises(UnsupportedError, match=r"^expected the package ray, found none: .* `pip install 'pymix"):
            call()
