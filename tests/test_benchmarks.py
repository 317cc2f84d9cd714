"""The programs of benchmarks/ begin: what they need of the library is there. They measure where somebody looks at the
figures, not here.
"""

from __future__ import annotations

from importlib import import_module

import click
import pytest
from click.testing import CliRunner

from support.paths import ROOT

BENCHMARKS = ROOT / "benchmarks"


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHMARKS.glob("*.py")))
def test_a_program_begins(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    main = getattr(import_module(name), "main", None)
    if isinstance(main, click.Command):  # the others are parts of programs
        result = CliRunner().invoke(main, ["--help"])
        assert result.exit_code == 0, result.output
        assert "Usage:" in result.output
