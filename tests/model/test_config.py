"""The model's numbers from metadata: what Mixtral and Mistral files say, what makes no sense."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFValueType, GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pymixtral.errors import InvalidArgumentError, ModelConfigError, PymixtralError, UnsupportedError
from pymixtral.files.gguf import GGUFFile
from pymixtral.model.config import ModelConfig, context_length
from pymixtral.model.keys import FEATURES
from support.configs import DENSE, MIXTRAL, YARN, read
from support.ggufs import finish

V = GGUFValueType


def test_mixtral(tmp_path: Path) -> None:
    assert read(tmp_path, MIXTRAL) == ModelConfig(
        name="Mixtral 8x7B",
        n_vocab=32000,
        n_ctx_train=32768,
        hidden=4096,
        n_layers=32,
        ffn=14336,
        n_heads=32,
        n_kv_heads=8,
        head_dim=128,
        n_experts=8,
        n_experts_used=2,
        rms_eps=float(np.float32(1e-5)),
        rope_base=1e6,
        window=0,
    )


def test_dense_mistral(tmp_path: Path) -> None:
    config = read(tmp_path, DENSE)
    assert (config.n_experts, config.n_experts_used, config.window) == (1, 1, 0)
    assert read(tmp_path, {**DENSE, "llama.expert_count": 0, "llama.expert_used_count": 0}) == config


@pytest.mark.parametrize("window", [0, 4096])
def test_what_is_written_is_read_again(tmp_path: Path, window: int) -> None:
    general = {"general.architecture": "llama", "general.name": "Mixtral 8x7B"}
    mixtral, dense = read(tmp_path, MIXTRAL), replace(read(tmp_path, DENSE), head_dim=64, window=window)
    for config in (mixtral, dense):
        assert read(tmp_path, general | config.to_gguf()) == config


def test_optional_keys(tmp_path: Path) -> None:
    optional = ["general.name", "llama.attention.head_count_kv", "llama.rope.dimension_count", "llama.rope.freq_base"]
    config = read(tmp_path, {key: value for key, value in MIXTRAL.items() if key not in optional})
    assert (config.name, config.n_kv_heads, config.head_dim, config.rope_base) == ("model", 32, 128, 10000.0)


def test_a_window_counts_in_dense_files_only(tmp_path: Path) -> None:
    assert read(tmp_path, {**DENSE, "llama.attention.sliding_window": 4096}).window == 4096
    assert read(tmp_path, {**MIXTRAL, "llama.attention.sliding_window": 4096}).window == 0


def test_explicit_head_dimension(tmp_path: Path) -> None:
    keys = {
        "llama.embedding_length": 160,
        "llama.attention.head_count": 6,
        "llama.attention.head_count_kv": 2,
        "llama.rope.dimension_count": 32,
    }
    lengths = {"llama.attention.key_length": 32, "llama.attention.value_length": 32}
    assert read(tmp_path, {**MIXTRAL, **keys, **lengths}).head_dim == 32
    with pytest.raises(ModelConfigError, match=r"head_count.*divisor of the embedding length 160.*found 6"):
        read(tmp_path, {**MIXTRAL, **keys})


def test_the_size_of_the_vocabulary(tmp_path: Path) -> None:
    tokens = {**MIXTRAL, "tokenizer.ggml.tokens": ["a", "b", "c"]}
    assert read(tmp_path, tokens).n_vocab == 32000
    del tokens["llama.vocab_size"]
    assert read(tmp_path, tokens).n_vocab == 3

    writer = GGUFWriter(tmp_path / "embedding.gguf", "llama")
    for key, value in MIXTRAL.items():
        if isinstance(value, int) and key != "llama.vocab_size":
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
    writer.add_tensor("token_embd.weight", np.zeros((5, 8), np.float32))
    finish(writer)
    assert ModelConfig.from_gguf(GGUFFile(tmp_path / "embedding.gguf")).n_vocab == 5

    del tokens["tokenizer.ggml.tokens"]
    with pytest.raises(ModelConfigError, match=r"vocabulary's size is unknown.*llama\.vocab_size"):
        read(tmp_path, tokens)


@pytest.mark.parametrize(
    "key",
    [key for key in MIXTRAL if not key.startswith(("general.name", "llama.vocab", "llama.rope")) and "_kv" not in key],
)
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    metadata = {k: v for k, v in MIXTRAL.items() if k != key}
    if key == "llama.expert_count":  # then the file is dense, and experts used contradict it
        with pytest.raises(ModelConfigError, match=r"llama\.expert_used_count.*from 0 to 0, found 2"):
            read(tmp_path, metadata)
    else:
        with pytest.raises(ModelConfigError, match=f"'{key}' is missing"):
            read(tmp_path, metadata)


@pytest.mark.parametrize("wrong", [True, "8", [8], [8, 9], 8.5, -8])
@pytest.mark.parametrize(
    "key", [*(k for k, v in MIXTRAL.items() if isinstance(v, int)), "llama.attention.sliding_window"]
)
def test_row_4_integers_of_the_wrong_type(tmp_path: Path, key: str, wrong: Any) -> None:
    with pytest.raises(ModelConfigError, match=rf"model\.gguf: metadata key '{key}': expected an integer"):
        read(tmp_path, {**MIXTRAL, key: wrong})


@pytest.mark.parametrize("wrong", [True, "1", [1.0], [1, 2], 1])
@pytest.mark.parametrize(
    "key", ["llama.attention.layer_norm_rms_epsilon", "llama.rope.freq_base", "llama.rope.scaling.factor"]
)
def test_row_4_floats_of_the_wrong_type(tmp_path: Path, key: str, wrong: Any) -> None:
    with pytest.raises(ModelConfigError, match=f"'{key}': expected a floating-point number"):
        read(tmp_path, {**MIXTRAL, key: wrong})


@pytest.mark.parametrize("wrong", [1, [1, 2], ["a", "b"]])
@pytest.mark.parametrize("key", ["general.architecture", "general.name", "llama.rope.scaling.type"])
def test_row_4_strings_of_the_wrong_type(tmp_path: Path, key: str, wrong: Any) -> None:
    with pytest.raises(ModelConfigError, match=f"'{key}': expected a string, found "):
        read(tmp_path, {**MIXTRAL, key: wrong})


# What is read beyond the keys above, and only where a file has it.
OPTIONAL = (
    *FEATURES,
    "tokenizer.ggml.tokens",
    "llama.attention.key_length",
    "llama.attention.value_length",
    "llama.rope.scale_linear",
    *(f"llama.rope.scaling.{key}" for key in ("factor", "attn_factor", "original_context_length")),
    *(
        f"llama.rope.scaling.yarn_{key}"
        for key in ("ext_factor", "attn_factor", "beta_fast", "beta_slow", "log_multiplier")
    ),
)


@pytest.mark.parametrize("wrong", [[1, 2], [1.5, 2.5], 7])
@pytest.mark.parametrize("key", OPTIONAL)
def test_row_4_optional_keys_of_the_wrong_type(tmp_path: Path, key: str, wrong: Any) -> None:
    metadata = {**MIXTRAL, key: wrong}
    if ".scaling." in key:
        metadata = {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0} | metadata
    if key == "tokenizer.ggml.tokens":
        del metadata["llama.vocab_size"]
    if wrong == 7 and key.endswith("original_context_length"):
        assert read(tmp_path, metadata).rope_scaling.n_ctx_original == 7
        return
    with pytest.raises(PymixtralError, match=f"'{key}'"):
        read(tmp_path, metadata)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.block_count", 0),
        ("llama.block_count", 100000),
        ("llama.embedding_length", 0),
        ("llama.feed_forward_length", 0),
        ("llama.vocab_size", 0),
        ("llama.attention.head_count", 0),
        ("llama.attention.head_count_kv", 0),
        ("llama.attention.head_count_kv", 7),
        ("llama.attention.head_count_kv", 64),
        ("llama.expert_count", 1),
        ("llama.expert_count", 65),
        ("llama.expert_used_count", 0),
        ("llama.expert_used_count", 9),
        ("llama.context_length", 0),
        ("llama.context_length", 2**20 + 1),
        ("llama.rope.dimension_count", 64),
        ("llama.attention.key_length", 64),
        ("llama.attention.key_length", 12),
        ("llama.attention.key_length", 1032),
        ("llama.attention.value_length", 64),
        *(("llama.attention.layer_norm_rms_epsilon", x) for x in (0.0, -1e-5, math.nan, math.inf)),
        *(("llama.rope.freq_base", x) for x in (0.0, -1.0, math.nan, math.inf, 0.5)),
        *(("llama.rope.scaling.factor", x) for x in (-1.0, math.nan, math.inf, 0.5)),
    ],
)
def test_row_11_values_that_make_no_sense(tmp_path: Path, key: str, value: float) -> None:
    with pytest.raises(ModelConfigError, match=r"model\.gguf: metadata key '.*': expected .*, found") as caught:
        read(tmp_path, {**MIXTRAL, key: value})
    assert key in str(caught.value) or key == "llama.attention.key_length"  # which rope.dimension_count contradicts


def test_head_dimensions_that_no_kernel_runs(tmp_path: Path) -> None:
    keys = {"llama.embedding_length": 32 * 12, "llama.rope.dimension_count": 12}
    with pytest.raises(ModelConfigError, match=r"multiple of 8, from 8 to 1024, found 12"):
        read(tmp_path, {**MIXTRAL, **keys})
    with pytest.raises(ModelConfigError, match=r"multiple of 8, from 8 to 1024, found 2048"):
        read(tmp_path, {**MIXTRAL, "llama.attention.head_count": 2, "llama.attention.head_count_kv": 2})


@pytest.mark.parametrize("name", ["gemma3", "", "LLAMA", "x" * 1000])
def test_other_architectures_are_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsupportedError, match=f"general.architecture.*found '{name[:60]}") as caught:
        read(tmp_path, {**MIXTRAL, "general.architecture": name})
    assert len(str(caught.value)) < len(str(tmp_path)) + 300


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention.causal", False),
        ("attention.scale", 0.1),
        ("logit_scale", 0.5),
        ("final_logit_softcapping", 30.0),
        ("final_logit_softcapping", [30]),
        ("expert_gating_func", 2),
        ("expert_shared_count", 1),
        ("expert_weights_norm", False),
    ],
)
def test_features_that_are_not_computed_are_refused_by_name(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(UnsupportedError, match=rf"'llama\.{key}': expected none or .*not supported"):
        read(tmp_path, {**MIXTRAL, f"llama.{key}": value})


def test_features_at_values_that_change_nothing(tmp_path: Path) -> None:
    neutral = {
        "attention.causal": True,
        "attention.scale": 0.0,
        "logit_scale": 1.0,
        "expert_gating_func": 1,
        "expert_shared_count": 0,
    }
    assert read(tmp_path, {**MIXTRAL, **{f"llama.{key}": value for key, value in neutral.items()}}) == read(
        tmp_path, MIXTRAL
    )


# --- Fuzzing --------------------------------------------------------------------------------------

values = (
    st.integers(-(2**31), 2**32 - 1)
    | st.sampled_from([0, 1, 2, 8, 64, 2**20])
    | st.floats(width=32)
    | st.booleans()
    | st.text(max_size=5)
    | st.lists(st.integers(0, 9), min_size=1, max_size=3)
)
known = st.sampled_from(
    [
        *MIXTRAL,
        "llama.attention.key_length",
        "llama.attention.value_length",
        "llama.attention.sliding_window",
        "llama.rope.scaling.factor",
        "llama.rope.scaling.type",
        "llama.rope.scaling.attn_factor",
        "llama.rope.scaling.original_context_length",
        "llama.rope.scaling.yarn_beta_fast",
        "llama.rope.scaling.yarn_log_multiplier",
        "tokenizer.ggml.tokens",
    ]
)


@settings(max_examples=500, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(known, st.none() | values, max_size=4), scaling=st.sampled_from([{}, YARN]))
def test_any_metadata_gives_a_model_that_makes_sense_or_one_error(
    tmp_path: Path, changes: dict[str, Any], scaling: dict[str, Any]
) -> None:
    try:
        config = read(tmp_path, {**MIXTRAL, **scaling, **changes})
    except PymixtralError:
        return
    assert min(config.n_vocab, config.n_ctx_train, config.hidden, config.n_layers, config.ffn) >= 1
    assert config.n_heads % config.n_kv_heads == 0
    assert config.head_dim % 8 == 0
    assert 1 <= config.n_experts_used <= config.n_experts <= 64
    assert np.float32(config.rms_eps) > 0
    frequencies = config.rope_frequencies()
    assert np.all(np.isfinite(frequencies))
    assert np.all((frequencies >= 0) & (frequencies <= 1))
    assert 0 < config.rope_factor() < 1e6


@pytest.mark.parametrize("n_ctx", [10**4000, "8\n" * 100, np.zeros(2), 0])
def test_a_context_that_cannot_be_is_refused_in_one_line(tmp_path: Path, n_ctx: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="expected n_ctx") as caught:
        context_length(read(tmp_path, MIXTRAL), n_ctx)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200
