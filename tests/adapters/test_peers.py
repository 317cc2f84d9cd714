"""PEFT reads what is written here, and makes of it what is made here; a model that PEFT merged its adapter
into has the logits of the model and the adapter beside it.

Run with `pytest -m peers`; needs torch, transformers and peft: in this environment, or in that of the
interpreter that PYMIXTRAL_PEFT_PYTHON names.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from pymixtral import Mixtral
from pymixtral.adapters import gguf_writer, peft_writer
from pymixtral.adapters.opening import open_adapter
from pymixtral.quantize import quantize
from support.adapters import ADAPTERS, case_config, deltas
from support.checkpoints import Shape, make_checkpoint
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


N_TOKENS = 256
BOUND = 1e-4
"""The largest difference of a logit, over the largest logit."""

MIXTRAL = Shape(hidden=128, ffn=224, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=32, n_experts=8, n_vocab=320)
DENSE = replace(MIXTRAL, n_experts=0)


def test_logits_are_those_of_the_model_that_peft_merged(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """The cases of the versions that PYTHON has, in float32; in pymixtral nothing is merged."""
    checkpoints = {"mixtral": MIXTRAL, "dense": DENSE}
    for seed, (name, shape) in enumerate(checkpoints.items()):
        make_checkpoint(tmp_path / name, shape, seed=seed)
        quantize(tmp_path / name, tmp_path / f"{name}.gguf", "f32", progress=False)
    tokens = np.random.default_rng(1).integers(3, MIXTRAL.n_vocab, N_TOKENS).astype(np.int32)
    (out := tmp_path / "out").mkdir()
    np.save(out / "tokens.npy", tokens)
    script = GOLDENS / "merged_logits.py"
    subprocess.run([str(PYTHON), script, *(tmp_path / name for name in checkpoints), out], check=True)
    goldens = sorted(out.glob("*.npz"))
    assert goldens
    for golden in goldens:
        name = "dense" if golden.stem.startswith("dense-") else "mixtral"
        with np.load(golden) as theirs, Mixtral(tmp_path / f"{name}.gguf", n_ctx=N_TOKENS, kv_type="f32") as model:
            model.load_adapter("it", golden.with_suffix(""))
            largest = np.abs(theirs["merged"]).max()
            alone = float(np.abs(model.logits(tokens) - theirs["alone"]).max() / largest)
            adapted = float(np.abs(model.logits(tokens, adapter="it") - theirs["merged"]).max() / largest)
            changed = float(np.abs(theirs["merged"] - theirs["alone"]).max() / largest)
        print(f"{golden.stem:>16}: alone {alone:.1e}, adapted {adapted:.1e}; the adapter changes {changed:.2f}")
        record_property(golden.stem, adapted)
        assert max(alone, adapted) < BOUND, golden.stem
        assert changed > 100 * BOUND, golden.stem
