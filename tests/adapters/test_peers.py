"""PEFT reads what is written here, and makes of it what is made here.

Run with `pytest -m peers`; needs torch, transformers and peft: in this environment, or in that of the
interpreter that PYMIXTRAL_PEFT_PYTHON names.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from pymixtral.adapters import gguf_writer, peft_writer
from pymixtral.adapters.opening import open_adapter
from support.adapters import ADAPTERS, case_config, deltas
from support.paths import GOLDENS

PYTHON = os.environ.get("PYMIXTRAL_PEFT_PYTHON") or (sys.executable if find_spec("peft") else None)
pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(PYTHON is None, reason="not run: needs peft, here or where PYMIXTRAL_PEFT_PYTHON points"),
]


@pytest.mark.parametrize("case", sorted(path.name for path in ADAPTERS.iterdir()))
def test_peft_makes_the_same_sums_of_what_is_converted(tmp_path: Path, case: str) -> None:
    """From PEFT to GGUF and back: all numbers of all matrices."""
    config = case_config(case)
    adapter = open_adapter(ADAPTERS / case, config)
    gguf_writer.write(adapter, config, tmp_path / "a.gguf", force=False)
    peft_writer.write(open_adapter(tmp_path / "a.gguf", config), config, tmp_path / "peft", force=False)
    script, out = GOLDENS / "make_adapter_goldens.py", tmp_path / "out.npz"
    subprocess.run([str(PYTHON), script, case, tmp_path / "peft", out], check=True, capture_output=True)
    expected = deltas(adapter)
    with np.load(out) as found:
        assert set(found) == set(expected)
        for name in found:
            assert np.abs(found[name] - expected[name]).max() < 1e-6
