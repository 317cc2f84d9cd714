"""Adapters of PEFT, compared with what its merge_and_unload makes of them."""

from __future__ import annotations

import pytest

from pymixtral.adapters.opening import open_adapter
from support.adapters import ADAPTERS, case_config, difference

CASES = sorted(path.name for path in ADAPTERS.iterdir())


@pytest.mark.parametrize("case", CASES)
def test_changes_what_merge_and_unload_changes(case: str) -> None:
    assert difference(open_adapter(ADAPTERS / case, case_config(case)), case) < 1e-6
