"""The whole way, from a Hugging Face checkpoint through the quantizer and a GGUF file, against
Hugging Face's own float32 results.

The goldens are those of tests/goldens/make_hf_goldens.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pymixtral.files.gguf import GGUFFile
from pymixtral.model.config import ModelConfig
from pymixtral.model.forward import Model
from pymixtral.model.weights import load_weights
from pymixtral.quantize import quantize
from support.checkpoints import GOLDEN_MODELS, TINY_MIXTRAL, make_checkpoint
from support.paths import GOLDENS

NAMES = ["tiny-mixtral", *GOLDEN_MODELS]


@dataclass(frozen=True)
class Case:
    golden: dict[str, NDArray[Any]]
    model: Model


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    name: str = request.param
    directory = tmp_path_factory.mktemp(name)
    checkpoint = TINY_MIXTRAL
    if name in GOLDEN_MODELS:
        shape, seed, _ = GOLDEN_MODELS[name]
        checkpoint = directory / "checkpoint"
        make_checkpoint(checkpoint, shape, seed=seed)
    quantize(checkpoint, directory / "model.gguf", "f32", progress=False)
    with GGUFFile(directory / "model.gguf") as file:
        config = ModelConfig.from_gguf(file)
        model = Model(load_weights(file, config), config)
    with np.load(GOLDENS / f"{name}.npz") as arrays:
        return Case(dict(arrays), model)


def test_every_golden_is_compared() -> None:
    assert {path.stem for path in GOLDENS.glob("*.npz")} == set(NAMES)


def test_logits_are_those_of_hugging_face(case: Case, record_property: Callable[[str, object], None]) -> None:
    g = case.golden
    kv = case.model.new_cache(len(g["tokens"]), "f32")
    logits = case.model.logits(case.model.forward(g["tokens"], [(kv.new_sequence(), len(g["tokens"]))], kv))
    rows = g["rows"]
    difference = float(np.abs(logits[rows] - g["logits"]).max() / np.abs(g["logits"]).max())
    record_property("relative_difference", difference)
    print(f"largest difference over largest logit: {difference:.2e}")
    assert difference < 1e-4
    clear = g["margins"] > 1e-3
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(logits.argmax(axis=1)[clear], g["argmax"][clear])


def test_the_greedy_continuation_is_that_of_hugging_face(case: Case) -> None:
    g = case.golden
    assert g["greedy_margin"] > 1e-4  # no near tie decides
    kv = case.model.new_cache(len(g["prompt"]) + len(g["greedy"]), "f32")
    sequence, tokens, found = kv.new_sequence(), g["prompt"], []
    for _ in g["greedy"]:
        hidden = case.model.forward(tokens, [(sequence, len(tokens))], kv)
        found.append(int(case.model.logits(hidden[-1:])[0].argmax()))
        tokens = np.array(found[-1:], np.int32)
    assert found == g["greedy"].tolist()
