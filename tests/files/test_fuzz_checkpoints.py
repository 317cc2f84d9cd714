"""A moment of tests/support/fuzz_checkpoints.py; by hand it goes on for as long as you like."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.fuzz_checkpoints import PARSERS, fuzz


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")  # of signalling NaN
@pytest.mark.parametrize("parser", PARSERS)
def test_mutated_files_are_read_or_refused(
    parser: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # where inputs are kept that break the rules
    assert fuzz(parser, 0.1, 1) == 0, capsys.readouterr().out
