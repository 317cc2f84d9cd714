"""Files of llama.cpp's quantizer run here as they do there, and files written here run there;
docs/interoperation.md has the whole table.

Run with `pytest -m peers`; needs llama-cpp-python: in this environment, or in that of the
interpreter that PYMIXTRAL_PEER_PYTHON names.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from pymixtral import Mixtral, convert_layout, prune
from pymixtral.quantize import quantize
from support.checkpoints import GOLDEN_MODELS, make_checkpoint
from support.paths import GOLDENS

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import adapter_formats
from agreement import KL, Passage, Peer, RefusedError, agreement

PYTHON = os.environ.get("PYMIXTRAL_PEER_PYTHON") or (sys.executable if find_spec("llama_cpp") else None)
pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(
        PYTHON is None, reason="not run: needs llama-cpp-python, here or where PYMIXTRAL_PEER_PYTHON points"
    ),
]

TOP1 = 0.97
"""Not 99%: the small model's best tokens lie near each other. docs/interoperation.md has what exact
arithmetic says to that.
"""

FILE_TYPES = {
    "q4_0": 2,
    "q8_0": 7,
    "q2_k": 10,
    "q4_k_m": 15,
    "q6_k": 18,
    "iq4_nl": 25,
    "iq4_xs": 30,
}  # numbers of llama_ftype


@pytest.fixture(scope="module")
def peer() -> Peer:
    return Peer(str(PYTHON), 1)


@pytest.fixture(scope="module")
def passage(tiny_q8_0: Path) -> Passage:
    """What the model itself tells, so that it is at home in it."""
    with Mixtral(tiny_q8_0, n_ctx=256) as model:
        tales = [
            model.generate(start, max_tokens=240, seed=7).text
            for start in ("Once upon a time", "The king", "There was", "In a wood")
        ]
    return Passage(" ".join(tales), 128, 6)


@pytest.mark.parametrize("kind", FILE_TYPES)
@pytest.mark.parametrize("writer", ["pymixtral", "llama.cpp"])
def test_both_engines_agree(
    tiny_f32: Path, tmp_path: Path, peer: Peer, passage: Passage, writer: str, kind: str
) -> None:
    path = tmp_path / "model.gguf"
    if writer == "pymixtral":
        quantize(tiny_f32, path, kind, progress=False)
    else:
        peer("quantize", source=tiny_f32, dest=path, kind=FILE_TYPES[kind], imatrix=None)
    found = agreement(peer, passage, path, path, tmp_path)
    assert found.mapped
    assert found.same_tokens
    assert found.kl < KL
    assert found.top1 >= TOP1
    assert found.exact_kl["pymixtral"] < KL


def test_split_experts_run_here_and_not_there(tiny_q8_0: Path, tmp_path: Path, peer: Peer, passage: Passage) -> None:
    (split,) = convert_layout(tiny_q8_0, tmp_path / "split.gguf", layout="split", progress=False)
    with pytest.raises(RefusedError, match="ffn_down_exps"):
        peer("open", model=split)
    found = agreement(peer, passage, split, tiny_q8_0, tmp_path)
    assert found.mapped
    assert found.kl < KL
    assert found.top1 >= TOP1


@pytest.mark.parametrize("kind", ["q8_0", "q4_k_m"])
def test_pruned_models_run_there(tiny_f32: Path, tmp_path: Path, peer: Peer, passage: Passage, kind: str) -> None:
    quantize(tiny_f32, tmp_path / "whole.gguf", kind, progress=False)
    pruned = tmp_path / "pruned.gguf"
    prune(tmp_path / "whole.gguf", pruned, n_experts=6, texts=[("tales", passage.text)], n_ctx=128, progress=False)
    found = agreement(peer, passage, pruned, pruned, tmp_path)
    assert found.mapped
    assert found.same_tokens
    assert found.kl < KL
    assert found.top1 >= TOP1


@pytest.mark.parametrize("case", adapter_formats.CASES)
def test_adapters_change_the_same_there(
    tiny_f32: Path, tmp_path: Path, peer: Peer, passage: Passage, case: str
) -> None:
    """The adapter beside the model in both; then a converted one there, and the merged model here."""
    size = adapter_formats.SIZE
    ways = list(adapter_formats.compared(peer, passage, tiny_f32, case, size, tmp_path, merging=True))
    assert [how for how, _, _ in ways] == ["beside it", "merged"]
    for _, found, changed in ways:
        assert changed > 0.05
        assert found.kl < KL
        assert found.top1 >= TOP1


@pytest.mark.parametrize("name", ["llama-linear", "mistral-yarn", "mixtral-llama3"])
def test_scalings_of_config_json_mean_the_same_there(tmp_path: Path, peer: Peer, name: str) -> None:
    """llama.cpp's logits of the quantizer's file are transformers' of the checkpoint."""
    shape, seed, _ = GOLDEN_MODELS[name]
    make_checkpoint(tmp_path / "hf", shape, seed=seed)
    quantize(tmp_path / "hf", tmp_path / "m.gguf", "f32", progress=False)
    with np.load(GOLDENS / f"{name}.npz") as golden:
        tokens, rows, expected = golden["tokens"], golden["rows"], golden["logits"]
    np.save(tmp_path / "windows.npy", np.append(tokens, 0)[None].astype(np.int32))  # the last predicts nothing
    files = {"model": tmp_path / "m.gguf", "windows": tmp_path / "windows.npy", "out": tmp_path / "out.npy"}
    peer("logits", **files, first=0, text="")
    found = np.load(tmp_path / "out.npy")[0][rows]
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()  # its cache is f16
