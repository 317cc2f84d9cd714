"""Where the tests find what is not Python."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
DATA = TESTS / "data"
GOLDENS = TESTS / "goldens"
CSRC = ROOT / "csrc"
