"""config.json: published forms are read, nonsense is refused by name."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gguf import LlamaFileType

from pymixtral.errors import CheckpointError, PymixtralError, UnsupportedError
from pymixtral.files.gguf import GGUFFile
from pymixtral.model.config import ModelConfig
from pymixtral.model.rope import RopeScaling, llama3_factors
from pymixtral.quantize.header import make_header
from pymixtral.quantize.sources.checkpoint import Checkpoint
from pymixtral.quantize.sources.huggingface import read_config
from support.checkpoints import Shape, config_json


def read(tmp_path: Path, *, dense: bool = False, without: str = "", **changes: Any) -> ModelConfig:
    values = config_json(Shape(n_experts=0 if dense else 4)) | changes
    values.pop(without, None)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    return read_config(path)[0]


def test_tiny_mixtral(tiny_checkpoint: Path) -> None:
    expected = ModelConfig(
        name="tiny-mixtral",
        hidden=256,
        ffn=512,
        n_layers=4,
        n_heads=8,
        n_kv_heads=2,
        head_dim=32,
        n_experts=8,
        n_experts_used=2,
        n_vocab=4096,
        n_ctx_train=2048,
        rms_eps=1e-5,
        rope_base=1e6,
        window=0,
    )
    assert read_config(tiny_checkpoint / "config.json") == (expected, False, ())


def test_head_dim_may_differ_from_hidden_over_heads(tmp_path: Path) -> None:
    assert read(tmp_path, head_dim=32, num_attention_heads=6, num_key_value_heads=2, hidden_size=160).head_dim == 32


@pytest.mark.parametrize("without", ["", "head_dim"])
def test_head_dim_null_or_absent_is_hidden_over_heads(tmp_path: Path, without: str) -> None:
    assert read(tmp_path, head_dim=None, without=without, hidden_size=128, num_attention_heads=4).head_dim == 32


def test_dense_mistral_keeps_its_window(tmp_path: Path) -> None:
    config = read(tmp_path, dense=True, sliding_window=4096)
    assert (config.n_experts, config.n_experts_used, config.window) == (1, 1, 4096)
    assert read(tmp_path, dense=True, sliding_window=None).window == 0


def test_mixtral_ignores_a_window(tmp_path: Path) -> None:
    assert read(tmp_path, sliding_window=4096).window == 0


def test_dense_config_that_does_not_say_has_the_window_of_its_class(tmp_path: Path) -> None:
    assert read(tmp_path, dense=True, without="sliding_window").window == 4096
    assert read(tmp_path, dense=True, without="sliding_window", sliding_window=None).window == 4096


def test_rope_theta_in_rope_parameters(tmp_path: Path) -> None:
    config = read(tmp_path, without="rope_theta", rope_parameters={"rope_theta": 5e5, "rope_type": "default"})
    assert config.rope_base == 5e5


@pytest.mark.parametrize(
    "scaling",
    [
        *({"type": "default"}, {"rope_type": "default", "rope_theta": 1e6}, {}, None),
        *(
            {"type": "linear", "factor": 1.0},
            {"rope_type": "linear", "factor": 1},
            {"rope_type": "default", "partial_rotary_factor": 1.0},
        ),
    ],
)
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_a_rope_scaling_that_scales_nothing_is_none(tmp_path: Path, key: str, scaling: dict[str, Any] | None) -> None:
    assert read(tmp_path, **{key: scaling}).rope_base == 1e6
    assert read(tmp_path) == read(tmp_path, **{key: scaling})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architectures": ["Qwen2ForCausalLM"]}, "Qwen2ForCausalLM"),
        ({"architectures": ["LlamaForCausalLM", "MixtralForCausalLM"]}, "architectures"),
        ({"architectures": [["LlamaForCausalLM"]]}, "architectures"),
        ({"architectures": []}, "architectures"),
        ({"architectures": "MixtralForCausalLM"}, "architectures"),
        ({"rope_scaling": {"type": "dynamic", "factor": 1.0}}, "dynamic"),
        ({"rope_scaling": {"type": ["default"]}}, "default"),
        ({"rope_parameters": {"rope_theta": 1e6, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "longrope", "factor": 4.0}}, "longrope"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "truncate": False}}, "truncate"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"attention_bias": True}, "attention_bias: expected False, found True"),
        ({"mlp_bias": True}, "mlp_bias"),
    ],
)
def test_other_models_are_unsupported_by_name(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedError, match=named):
        read(tmp_path, **changes)


COUNTS = [
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "num_local_experts",
    "num_experts_per_tok",
    "max_position_embeddings",
    "vocab_size",
]


@pytest.mark.parametrize("key", COUNTS)
@pytest.mark.parametrize("value", [0, -1, 2**31, 2**64, 1.0, True, "8", [8], {}])
def test_counts_are_positive_whole_numbers(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=key):
        read(tmp_path, **{key: value})


@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta"])
@pytest.mark.parametrize("value", [0, -1e-5, 1e40, 10**400, True, None, "1e-5"])
def test_numbers_are_positive(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=key):
        read(tmp_path, **{key: value})


def test_architectures_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(PymixtralError, match="architectures is missing"):
        read(tmp_path, without="architectures")


def test_a_llama_is_dense_and_has_no_window(tmp_path: Path) -> None:
    llama = read(tmp_path, dense=True, architectures=["LlamaForCausalLM"], sliding_window=64, attention_bias=False)
    assert llama == replace(read(tmp_path, dense=True, sliding_window=None), window=0)


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        ({"type": "linear", "factor": 2}, RopeScaling("linear", 2.0)),
        (LLAMA3, RopeScaling(factors=llama3_factors(1e6, 16, 8.0, 1.0, 4.0, 256))),
        (YARN, RopeScaling("yarn", 4.0, n_ctx_original=256)),
        ({"type": "yarn", "factor": 4.0, "beta_fast": None}, RopeScaling("yarn", 4.0, n_ctx_original=1024)),
        (YARN | {"beta_fast": 16, "beta_slow": 2.0}, RopeScaling("yarn", 4.0, 1.0, 256, 16.0, 2.0)),
    ],
)
def test_rope_scalings(tmp_path: Path, key: str, scaling: dict[str, Any], expected: RopeScaling) -> None:
    config = read(tmp_path, **{key: scaling})
    assert config.rope_scaling == expected
    assert config == read(tmp_path, rope_scaling=scaling, rope_parameters=scaling)
    checkpoint = Checkpoint(tmp_path, config, (), {}, ())
    (tmp_path / "m.gguf").write_bytes(make_header(checkpoint, None, [], LlamaFileType.ALL_F32))
    with GGUFFile(tmp_path / "m.gguf") as file:  # the factors are a tensor
        assert ModelConfig.from_gguf(file).rope_scaling == replace(expected, factors=())


@pytest.mark.parametrize(
    ("given", "factor"),
    [
        ({}, 1 + 0.1 * math.log(4)),
        ({"attention_factor": 1.25}, 1.25),
        ({"attention_factor": 1.25, "mscale": 1.0, "mscale_all_dim": 1.0}, 1.25),
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, 1.0),
        ({"mscale": 0.5, "mscale_all_dim": 2.0}, (1 + 0.05 * math.log(4)) / (1 + 0.2 * math.log(4))),
        ({"mscale": 0.5}, 1 + 0.1 * math.log(4)),
    ],
)
def test_the_attention_factor_of_yarn(tmp_path: Path, given: dict[str, float], factor: float) -> None:
    """The cases of transformers' _compute_yarn_parameters."""
    config = read(tmp_path, rope_scaling=YARN | given)
    assert config.rope_factor() == pytest.approx(factor, rel=1e-14)


@pytest.mark.parametrize(
    ("scaling", "named"),
    [
        ({"type": "linear"}, "rope_scaling: factor is missing"),
        ({"type": "linear", "factor": 0.5}, "factor: expected a number of at least 1, found 0.5"),
        ({"type": "linear", "factor": "2"}, "factor: expected a number"),
        (LLAMA3 | {"factor": 1e9}, "factor: expected a number"),
        (LLAMA3 | {"low_freq_factor": 4.0}, "high_freq_factor: expected more than low_freq_factor, which is 4"),
        (LLAMA3 | {"low_freq_factor": 0}, "low_freq_factor: expected"),
        (LLAMA3 | {"original_max_position_embeddings": 0}, "original_max_position_embeddings: expected"),
        ({"type": "llama3", "factor": 8.0}, "low_freq_factor is missing"),
        (YARN | {"beta_fast": -1}, "beta_fast: expected"),
        (YARN | {"attention_factor": 0}, "attention_factor: expected"),
        (YARN | {"original_max_position_embeddings": 2**21}, "original_max_position_embeddings: expected"),
    ],
)
def test_rope_scalings_that_make_no_sense(tmp_path: Path, scaling: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        read(tmp_path, rope_scaling=scaling)


def test_scalings_that_contradict_each_other(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="rope_parameters: expected the scaling of rope_scaling"):
        read(tmp_path, rope_scaling=LLAMA3, rope_parameters=YARN)
    with pytest.raises(CheckpointError, match="expected a rope_theta of more than 1 for yarn"):
        read(tmp_path, rope_scaling=YARN, rope_theta=1.0)


MIXTRAL_8X7B = ModelConfig("x", 32000, 131072, 4096, 32, 14336, 32, 8, 128, 8, 2, 1e-5, 1e6, 0)
"""What transformers' MixtralConfig() is, and below MistralConfig()."""


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("MixtralForCausalLM", MIXTRAL_8X7B),
        (
            "MistralForCausalLM",
            replace(MIXTRAL_8X7B, n_experts=1, n_experts_used=1, rms_eps=1e-6, rope_base=1e4, window=4096),
        ),
        (
            "LlamaForCausalLM",
            ModelConfig("x", 32000, 2048, 4096, 32, 11008, 32, 32, 128, 1, 1, 1e-6, 1e4, 0),
        ),
    ],
)
def test_missing_keys_have_the_defaults_of_their_class(
    tmp_path: Path, architecture: str, expected: ModelConfig
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"architectures": [architecture]}))
    config, tied, (note,) = read_config(path)
    assert (replace(config, name="x"), tied) == (expected, False)
    for words in (
        f"num_key_value_heads ({None if architecture == 'LlamaForCausalLM' else 8})",
        f"rms_norm_eps ({expected.rms_eps})",
        "tie_word_embeddings (False)",
        "defaults were taken",
    ):
        assert words in note


@pytest.mark.parametrize("key", [key for key in COUNTS if key != "head_dim"] + ["rms_norm_eps", "rope_theta"])
def test_a_default_that_was_taken_is_noted(tmp_path: Path, key: str) -> None:
    values = config_json(Shape(n_experts=4))
    values.pop(key)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values | ({"num_attention_heads": 8} if key == "num_key_value_heads" else {})))
    _, _, (note,) = read_config(path)
    assert note.startswith(f"config.json does not have {key} (")
    assert note.count("(") == 1


def test_rope_theta_in_rope_parameters_is_no_default(tmp_path: Path) -> None:
    values = config_json(Shape(n_experts=4))
    (tmp_path / "config.json").write_text(
        json.dumps(values | {"rope_parameters": {"rope_theta": values.pop("rope_theta")}})
    )
    assert read_config(tmp_path / "config.json")[2] == ()


def test_key_value_heads_of_null_are_the_heads(tmp_path: Path) -> None:
    assert read(tmp_path, num_key_value_heads=None).n_kv_heads == 4


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_attention_heads": 6, "num_key_value_heads": 4}, "num_key_value_heads: .*which is 6, found 4"),
        ({"head_dim": None, "hidden_size": 65}, "hidden_size: .*found 65"),
        ({"head_dim": 15}, "multiple of 8"),
        ({"num_local_experts": 65}, "num_local_experts"),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok"),
        ({"num_hidden_layers": 100_000}, "num_hidden_layers"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings"),
        ({"rope_parameters": []}, "rope_parameters"),
    ],
)
def test_contradictions_are_named(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        read(tmp_path, **changes)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"a": 1, "a": 2}', b"\xff\xfe", b'{"rms_norm_eps": Infinity}', b"[" * 100_000]
)
def test_what_is_no_json_object_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_config(path)


@pytest.mark.parametrize(
    ("key", "highest"),
    [
        ("hidden_size", 2**17),
        ("intermediate_size", 2**20),
        ("num_hidden_layers", 1024),
        ("num_attention_heads", 1024),
        ("num_local_experts", 64),
        ("head_dim", 1024),
        ("max_position_embeddings", 2**20),
        ("vocab_size", 2**24),
        ("rms_norm_eps", 1.0),
        ("rope_theta", 9.9e29),
    ],
)
def test_limits_are_those_of_who_reads_the_file(tmp_path: Path, key: str, highest: float) -> None:
    config = read(tmp_path, **{key: highest})
    checkpoint = Checkpoint(tmp_path, config, (), {}, ())
    (tmp_path / "m.gguf").write_bytes(make_header(checkpoint, None, [], LlamaFileType.ALL_F32))
    with GGUFFile(tmp_path / "m.gguf") as file:
        ModelConfig.from_gguf(file)
    with pytest.raises(CheckpointError, match=f"{key}: expected"):
        read(tmp_path, **{key: highest * 1.02 if isinstance(highest, float) else highest + 8})


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_local_experts", 1), ("head_dim", 4), ("head_dim", 12), ("rope_theta", 0.5), ("rms_norm_eps", 1e-31)],
)
def test_what_no_reader_takes_is_refused(tmp_path: Path, key: str, value: float) -> None:
    with pytest.raises(CheckpointError, match=f"{key}: expected"):
        read(tmp_path, **{key: value})


def test_absent_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_config(tmp_path / "config.json")
