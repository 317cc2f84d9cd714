"""Byte-level tokenizers as llama.cpp reads them from files that the quantizer writes.

Run with `pytest -m peers`; needs llama-cpp-python: in this environment, or in that of the
interpreter that PYMIXTRAL_PEER_PYTHON names. benchmarks/tokenization.py does the same with real
vocabularies.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from pymixtral.files.gguf import GGUFFile
from pymixtral.quantize import quantize
from pymixtral.text.tokenizer import Tokenizer
from support.bpe import CUTS, strings, tokenizer_json, trained
from support.checkpoints import Shape, make_checkpoint
from support.paths import ROOT

PYTHON = os.environ.get("PYMIXTRAL_PEER_PYTHON") or (sys.executable if find_spec("llama_cpp") else None)
pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(
        PYTHON is None, reason="not run: needs llama-cpp-python, here or where PYMIXTRAL_PEER_PYTHON points"
    ),
]


@pytest.mark.parametrize("pre", CUTS)
def test_llama_cpp_reads_the_same_ids(tmp_path: Path, pre: str) -> None:
    make_checkpoint(tmp_path / "hf", Shape(n_layers=1, n_vocab=trained(pre).get_vocab_size()), seed=1)
    (tmp_path / "hf" / "tokenizer.model").unlink()
    (tmp_path / "hf" / "tokenizer.json").write_text(json.dumps(tokenizer_json(pre)))
    path = tmp_path / "m.gguf"
    quantize(tmp_path / "hf", path, progress=False)
    texts = [*strings(3000, seed=4)]
    if pre == "tekken":  # where llama.cpp's pattern is an approximation, in scripts without capital letters
        texts = [text for text in texts if text.isascii()]
    assert len(texts) > 300
    done = subprocess.run(
        [str(PYTHON), str(ROOT / "benchmarks" / "tokenization_peer.py"), str(path)],
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with GGUFFile(path) as file:
        ours = Tokenizer.from_metadata(file.metadata, file.path)
    for text, ids in zip(texts, json.loads(done.stdout)["ids"], strict=True):
        assert ours.encode(text, add_bos=False) == ids, ascii(text)
