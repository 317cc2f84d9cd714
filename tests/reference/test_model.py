"""The oracle's forward pass against Hugging Face's implementation: goldens of
tests/goldens/make_hf_goldens.py.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from pymixtral.arrays import F32
from pymixtral.errors import NonFiniteError
from pymixtral.files.types import Matrix
from pymixtral.model.config import ModelConfig
from pymixtral.model.rope import RopeScaling, llama3_factors
from pymixtral.model.weights import LayerWeights, ModelWeights
from pymixtral.reference import oracle
from support.checkpoints import GOLDEN_MODELS, TINY_MIXTRAL, Shape, config_json, make_tensors, read_tensors
from support.paths import GOLDENS


def rope_scaling(found: dict[str, Any] | None, base: float, head_dim: int) -> RopeScaling:
    if found is None:
        return RopeScaling()
    factor, before = found["factor"], found.get("original_max_position_embeddings", 0)
    if found["rope_type"] == "llama3":
        low, high = found["low_freq_factor"], found["high_freq_factor"]
        return RopeScaling(factors=llama3_factors(base, head_dim, factor, low, high, before))
    return RopeScaling(found["rope_type"], factor, n_ctx_original=before)


def float32_model(config: dict[str, Any], tensors: dict[str, F32]) -> tuple[ModelWeights, ModelConfig]:
    """A Hugging Face checkpoint as float32 weights in GGUF's order."""
    n_heads, n_kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // n_heads
    n_experts = config.get("num_local_experts", 0)

    def matrix(name: str) -> Matrix:
        return Matrix.from_float(tensors[name])

    def adjacent(name: str, heads: int) -> Matrix:
        # Hugging Face rotates element i with i + head_dim/2; GGUF keeps the two side by side.
        halves = tensors[name].reshape(heads, 2, head_dim // 2, -1)
        return Matrix.from_float(np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(heads * head_dim, -1))

    layers = []
    for n in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{n}."
        attn, moe = prefix + "self_attn.", prefix + "block_sparse_moe."
        names = [f"{prefix}mlp.{part}_proj.weight" for part in ("gate", "up", "down")]
        experts = [(matrix(names[0]), matrix(names[1]), matrix(names[2]))] if n_experts == 0 else []
        for e in range(n_experts):
            gate, down, up = (matrix(f"{moe}experts.{e}.{part}.weight") for part in ("w1", "w2", "w3"))
            experts.append((gate, up, down))
        layers.append(
            LayerWeights(
                attn_norm=tensors[prefix + "input_layernorm.weight"],
                ffn_norm=tensors[prefix + "post_attention_layernorm.weight"],
                q=adjacent(attn + "q_proj.weight", n_heads),
                k=adjacent(attn + "k_proj.weight", n_kv_heads),
                v=matrix(attn + "v_proj.weight"),
                output=matrix(attn + "o_proj.weight"),
                router=matrix(moe + "gate.weight") if n_experts else None,
                experts=experts,
            )
        )
    weights = ModelWeights(
        embedding=matrix("model.embed_tokens.weight"),
        output_norm=tensors["model.norm.weight"],
        head=matrix("lm_head.weight"),
        layers=layers,
    )
    return weights, ModelConfig(
        name="test",
        n_vocab=config["vocab_size"],
        n_ctx_train=config["max_position_embeddings"],
        hidden=config["hidden_size"],
        n_layers=config["num_hidden_layers"],
        ffn=config["intermediate_size"],
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        n_experts=max(n_experts, 1),
        n_experts_used=config.get("num_experts_per_tok", 1),
        rms_eps=config["rms_norm_eps"],
        rope_base=config["rope_theta"],
        window=config["sliding_window"] or 0,
        rope_scaling=rope_scaling(config.get("rope_scaling"), config["rope_theta"], head_dim),
    )


def random_model(shape: Shape, seed: int) -> tuple[ModelWeights, ModelConfig]:
    return float32_model(config_json(shape), make_tensors(shape, seed=seed))


def largest_difference(name: str, weights: ModelWeights, config: ModelConfig, n_tokens: int | None = None) -> float:
    """Of the logits from Hugging Face's, relative to the largest logit, over the golden's rows
    among the first n_tokens (all if None).
    """
    golden = np.load(GOLDENS / f"{name}.npz")
    tokens = golden["tokens"][:n_tokens]
    rows = golden["rows"][golden["rows"] < len(tokens)]
    logits = oracle.logits(oracle.forward(weights, config, tokens)[rows], weights, config)
    want = golden["logits"][: len(rows)]
    np.testing.assert_array_equal(want.argmax(axis=1), golden["argmax"][rows])
    return float(np.abs(logits - want).max() / np.abs(want).max())


@pytest.mark.parametrize("name", GOLDEN_MODELS)
def test_logits_of_random_models_are_those_of_hugging_face(name: str) -> None:
    shape, seed, _ = GOLDEN_MODELS[name]
    n_tokens = 97 if shape.window else 49  # past the window; a few rows of the golden
    assert largest_difference(name, *random_model(shape, seed), n_tokens) < 1e-4


def test_logits_of_tiny_mixtral_are_those_of_hugging_face() -> None:
    model = float32_model(json.loads((TINY_MIXTRAL / "config.json").read_text()), read_tensors(TINY_MIXTRAL))
    assert largest_difference("tiny-mixtral", *model, 17) < 1e-4


@pytest.mark.parametrize("n_experts", [4, 0])
@pytest.mark.parametrize("cache_dtype", [np.float32, np.float16, oracle.Q8_0])
def test_a_token_does_not_depend_on_what_follows(n_experts: int, cache_dtype: Any) -> None:
    weights, config = random_model(Shape(n_vocab=64, n_experts=n_experts, head_dim=32), 90)
    tokens = np.random.default_rng(91).integers(0, 64, 70).astype(np.int32)
    hidden = oracle.forward(weights, config, tokens, cache_dtype)
    assert hidden.shape == (70, 64)
    assert hidden.dtype == np.float32
    np.testing.assert_array_equal(oracle.forward(weights, config, tokens[:9], cache_dtype), hidden[:9])
    logits = oracle.logits(hidden[-1:], weights, config)
    assert logits.shape == (1, 64)
    assert logits.std() > 0.3


def test_a_broken_embedding_is_found_in_its_row() -> None:
    weights, config = random_model(Shape(n_vocab=64), 92)
    weights.embedding.data.view(np.float32)[7, 3] = np.nan
    with pytest.raises(NonFiniteError) as caught:
        oracle.forward(weights, config, [1, 2, 7, 3])
    assert caught.value.row == 2
