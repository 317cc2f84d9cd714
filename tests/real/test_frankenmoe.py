"""A real model with language skill: its answers, its perplexity, and transformers' logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pymixtral import Mixtral
from pymixtral.arrays import F64
from pymixtral.evaluation.base import log_softmax
from pymixtral.files.gguf import GGUFFile
from pymixtral.quantize import quantize
from support import frankenmoe
from support.paths import DATA

pytestmark = pytest.mark.real

Golden = dict[str, NDArray[Any]]
OfType = Callable[[str], Path]

TEXTS = ("tale", "program")
CHAT = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"


def greedy(model: Mixtral, prompt: list[int], n: int) -> list[int]:
    answer: list[int] = []
    for _ in range(n):
        answer.append(int(model.logits([*prompt, *answer], last_only=True).argmax()))
    return answer


def scores(model: Mixtral, windows: NDArray[np.int32]) -> tuple[F64, NDArray[np.int64]]:
    """-log(probability) of each token of each window but the first, and the likeliest tokens."""
    found, likeliest = [], []
    for window in windows:
        logits = model.logits(window)
        likeliest.append(logits.argmax(axis=1))
        for begin in range(0, len(window) - 1, 64):
            rows = logits[begin : min(begin + 64, len(window) - 1)]
            log_p = log_softmax(rows)
            found.append(-log_p[np.arange(len(rows)), window[begin + 1 : begin + 1 + len(rows)]])
    return np.concatenate(found).reshape(len(windows), -1), np.array(likeliest)


def test_the_dense_model_knows_the_capital_of_france(smollm2: Path) -> None:
    with Mixtral(smollm2, n_ctx=64) as model:
        answer = model.generate(CHAT, max_tokens=20, temperature=0, parse_special=True)
    assert answer.text == "The capital of France is Paris."


@pytest.mark.parametrize("name", TEXTS)
def test_texts_have_the_tokens_of_tokenizers(smollm2: Path, golden: Golden, name: str) -> None:
    text = (DATA / "texts" / f"{name}.txt").read_text(encoding="utf-8")
    with Mixtral(smollm2, n_ctx=64) as model:
        assert model.tokenize(text)[: golden[f"{name}_tokens"].size] == golden[f"{name}_tokens"].ravel().tolist()
        assert model.tokenize(CHAT, parse_special=True) == golden["prompt"].tolist()


@pytest.mark.parametrize("name", TEXTS)
def test_logits_are_those_of_transformers(of_type: OfType, golden: Golden, name: str) -> None:
    window = golden[f"{name}_tokens"][0]
    with Mixtral(of_type("f16"), n_ctx=512, kv_type="f32") as model:
        logits = model.logits(window)
        answer = greedy(model, golden["prompt"].tolist(), len(golden["answer"]))
    expected = golden[f"{name}_logits"]
    difference = np.abs(logits[np.ix_(golden["rows"], golden["cols"])] - expected).max() / np.abs(expected).max()
    print(f"{name}: largest difference over largest logit {difference:.2e}")
    assert difference < 1e-5
    clear = golden[f"{name}_margins"][0] > 1e-2
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(logits.argmax(axis=1)[clear], golden[f"{name}_argmax"][0][clear])
    assert golden["answer_margin"] > 0.1
    assert answer == golden["answer"].tolist()


BOUNDS = {"q8_0": (0.02, 0.94), "q4_k_m": (0.10, 0.84), "q4_0": (0.25, 0.70)}
"""By type, how far the perplexity may be from transformers' in float32, as a part of it, and the part
of the tokens for which the likeliest next token is the same, at least. The int8 activations of the
kernels alone cost up to 1% and 4%, as docs/numerics.md says."""


@pytest.mark.parametrize("kind", BOUNDS)
def test_perplexity_is_what_quantization_explains(of_type: OfType, golden: Golden, kind: str) -> None:
    most, least = BOUNDS[kind]
    with Mixtral(of_type(kind), n_ctx=512) as model:
        for name in TEXTS:
            found, likeliest = scores(model, golden[f"{name}_tokens"])
            ratio = float(np.exp(np.mean(found - golden[f"{name}_scores"])))
            agreement = float(np.mean(likeliest == golden[f"{name}_argmax"]))
            print(
                f"{kind}, {name}: perplexity {np.exp(found.mean()):.3f}, ratio {ratio:.4f}, agreement {agreement:.3f}"
            )
            assert abs(ratio - 1) < most
            assert agreement > least


@pytest.mark.parametrize("kind", BOUNDS)
def test_the_frankenmoe_knows_the_capital_of_france(of_type: OfType, kind: str) -> None:
    with Mixtral(of_type(kind), n_ctx=64) as model:
        answer = model.generate(CHAT, max_tokens=20, temperature=0, parse_special=True)
    assert answer.text.startswith("The capital of France is Paris")
    assert (answer.finish_reason == "stop") == (kind != "q4_0")  # which tells more of Paris


def test_the_vocabulary_is_the_dense_model_s(of_type: OfType, smollm2: Path) -> None:
    """On the way it was a tokenizer.json and a tokenizer_config.json."""
    keys = ("model", "pre", "tokens", "token_type", "merges", "bos_token_id", "eos_token_id", "add_bos_token")
    with GGUFFile(of_type("q4_0")) as found, GGUFFile(smollm2) as expected:
        for key in (*(f"tokenizer.ggml.{key}" for key in keys), "tokenizer.chat_template"):
            assert np.array_equal(found.metadata[key], expected.metadata[key]), key


def test_copies_of_an_expert_are_the_dense_model(tmp_path: Path, smollm2: Path, golden: Golden) -> None:
    """Whatever the router says, its weights add up to 1."""
    n_layers, n_experts = 10, 4
    routers = np.random.default_rng(1).standard_normal((n_layers, n_experts, 576)).astype(np.float32)
    frankenmoe.make_dense(smollm2, tmp_path / "dense", n_layers=n_layers)
    frankenmoe.make_frankenmoe(smollm2, tmp_path / "moe", routers, noise=(0.0,) * n_experts, n_layers=n_layers)
    found = []
    for name in ("dense", "moe"):
        quantize(tmp_path / name, tmp_path / f"{name}.gguf", "f16", progress=False)
        with Mixtral(tmp_path / f"{name}.gguf", n_ctx=512, kv_type="f32") as model:
            found.append(model.logits(golden["tale_tokens"][0][:128]))
    difference = np.abs(found[0] - found[1]).max() / np.abs(found[0]).max()
    print(f"largest difference over largest logit {difference:.2e}")
    assert difference < 1e-5
