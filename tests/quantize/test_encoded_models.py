"""Models of every type that the quantizer writes: the engine opens them.

What they predict stays close to the original.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pymixtral import Mixtral
from pymixtral.evaluation.perplexity import perplexity
from pymixtral.files.gguf import GGUFFile
from pymixtral.quantize import quantize
from pymixtral.quantize.recipe import TENSOR_TYPES

TEXT = "Once upon a time there was a little girl who lived in a house at the edge of the wood. " * 12
MOST_DIVERGENCE = {
    "f32": 1e-8, "bf16": 1e-8, "f16": 1e-8, "q8_0": 5e-4, "q6_k": 2.5e-3, "q5_k": 2.5e-3, "q5_1": 2.5e-3,
    "q5_0": 4e-3, "q4_k": 0.015, "iq4_nl": 0.012, "iq4_xs": 0.012, "q4_1": 0.012, "q4_0": 0.015,
    "q3_k": 0.04, "q2_k": 0.14, "iq3_s": 0.036, "iq3_xxs": 0.06, "iq2_s": 0.09, "iq2_xs": 0.14, "iq2_xxs": 0.21,
}  # fmt: skip
"""Nats, about twice what was measured."""


@pytest.fixture(scope="module")
def base(tiny_f32: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "base"
    with Mixtral(tiny_f32) as model:
        perplexity(model, TEXT, n_ctx=64, save_base=path, progress=False)
    return path


@pytest.mark.parametrize("name", TENSOR_TYPES)
def test_a_model_of_one_type(tiny_checkpoint: Path, tmp_path: Path, base: Path, name: str) -> None:
    quantize(tiny_checkpoint, tmp_path / "m.gguf", "f32", tensors=[("*", name)], progress=False)
    with GGUFFile(tmp_path / "m.gguf") as file:
        matrices = [
            tensor.type
            for tensor in file.tensors.values()
            if len(tensor.shape) > 1 and "ffn_gate_inp" not in tensor.name
        ]
    assert set(matrices) == {TENSOR_TYPES[name]}
    with Mixtral(tmp_path / "m.gguf") as model:
        kl = perplexity(model, TEXT, n_ctx=64, kl_against=base, progress=False).kl
        assert kl is not None
        assert kl.mean <= MOST_DIVERGENCE[name]
        assert model.generate("Once upon a time", max_tokens=4).text
