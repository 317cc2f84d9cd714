"""The programs of other packages, as far as they need none of them; run.py runs them."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

from support.paths import ROOT

HERE = Path(__file__).parent
PROGRAMS = sorted(HERE.glob("with_*"))


def test_all_are_run_and_told() -> None:
    page = (ROOT / "docs/clients.md").read_text(encoding="utf-8")
    runner = (HERE / "run.py").read_text(encoding="utf-8")
    for program in PROGRAMS:
        assert f'--8<-- "tests/clients/{program.name}"' in page
        assert f'"{program.name}"' in runner


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.name)
def test_a_reader_can_copy_it(program: Path) -> None:
    text = program.read_text(encoding="utf-8")
    assert text.startswith("# needs ")  # so that the tests of the book do not run it
    assert "http://127.0.0.1:8080/v1" in text  # where run.py puts its server's address
    if program.suffix == ".py":
        ast.parse(text)
    else:
        subprocess.run(["bash", "-n", program], check=True)
