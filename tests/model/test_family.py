"""Every model of the family in small, in every layout of files: each opens, is mapped, and has the
oracle's logits to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from pymixtral import Mixtral
from pymixtral.files.gguf import GGUFFile
from pymixtral.files.layout import convert_layout
from pymixtral.model.config import ModelConfig
from pymixtral.model.weights import ModelWeights, load_weights
from pymixtral.quantize import quantize
from pymixtral.reference import oracle
from support.checkpoints import Shape, make_checkpoint
from support.ggufs import is_mapped, rewrite

Type = GGMLQuantizationType
TINY = Shape(n_vocab=320)


@dataclass(frozen=True)
class Member:
    """shape: the model's in small. keys: metadata of its files beside what the shape says; None:
    keys that its files leave out.
    """

    shape: Shape
    keys: dict[str, Any] = field(default_factory=dict)
    tied: bool = False
    n_tokens: int = 12


def mixtral(n_experts: int, used: int, *, n_tokens: int = 12, **numbers: Any) -> Member:
    moe = {"n_vocab": 320, "hidden": 64, "ffn": 96, "n_experts": n_experts, "n_experts_used": used}
    return Member(Shape(**(moe | numbers)), n_tokens=n_tokens)


def dense(keys: dict[str, Any] | None = None, *, tied: bool = False, n_tokens: int = 12, **numbers: Any) -> Member:
    shape = Shape(
        **({"n_vocab": 320, "hidden": 128, "ffn": 448, "n_heads": 8, "n_kv_heads": 2, "n_experts": 0} | numbers)
    )
    return Member(shape, keys or {}, tied, n_tokens)


SCALED = "llama.rope.scaling"
FAMILY = {
    # name: the original has 4 query heads for one of keys, ffn 3.5 times the width, 8 experts of
    # which 2 are used
    "mixtral-8x7b": mixtral(8, 2, hidden=128, ffn=448, n_heads=8, n_kv_heads=2),
    # 56 layers, 6 query heads for one of keys, ffn 8/3 times the width
    "mixtral-8x22b": mixtral(8, 2, hidden=96, ffn=256, n_layers=56, n_heads=6, n_kv_heads=1, n_vocab=328),
    "mistral-7b-v0.1": dense({"llama.attention.sliding_window": 70}, rope_base=1e4, n_tokens=160),
    "mistral-7b-v0.1-of-llama.cpp": dense(rope_base=1e4),  # its converter leaves the window out
    "mistral-7b-v0.2": dense(n_ctx=32768),
    "mistral-7b-v0.3": dense(n_ctx=32768, n_vocab=328),
    "mistral-nemo": dense(hidden=160, n_heads=8, head_dim=16),  # heads that are narrower than the width together
    "llama-2-7b": dense(
        {"llama.attention.head_count_kv": None, "llama.rope.freq_base": None}, n_kv_heads=8, rope_base=1e4
    ),
    "llama-tied": dense(tied=True, rope_base=1e4),
    "llama-linear": dense({f"{SCALED}.type": "linear", f"{SCALED}.factor": 4.0}, rope_base=1e4),
    "llama-linear-of-2023": dense({"llama.rope.scale_linear": 4.0}, rope_base=1e4),
    "mistral-yarn": dense(
        {f"{SCALED}.type": "yarn", f"{SCALED}.factor": 16.0, f"{SCALED}.original_context_length": 64},
        rope_base=1e4,
        n_tokens=80,
    ),
    "mixtral-yarn": Member(
        Shape(n_vocab=320),
        {
            f"{SCALED}.type": "yarn",
            f"{SCALED}.factor": 4.0,
            f"{SCALED}.original_context_length": 256,
            f"{SCALED}.attn_factor": 0.9,
        },
    ),
    "llama-3.1": dense(rope_scaling=("llama3", 8.0, 64), rope_base=5e5, n_tokens=80),
    "llama-3.1-moe": mixtral(4, 2, rope_scaling=("llama3", 8.0, 64), rope_base=5e5, n_tokens=80),
    **{
        f"franken-{n}x{k}": mixtral(n, k)
        for n, k in [(2, 1), (2, 2), (4, 1), (4, 2), (4, 4), (8, 1), (8, 3), (16, 2), (16, 16), (64, 6)]
    },
}


def opened(path: Path) -> tuple[ModelConfig, ModelWeights]:
    with GGUFFile(path) as file:
        config = ModelConfig.from_gguf(file)
        weights = load_weights(file, config)
        assert is_mapped(file, weights)
        return config, weights


def by_oracle(path: Path, tokens: np.ndarray[Any, np.dtype[np.int32]]) -> Any:
    config, weights = opened(path)
    return oracle.logits(oracle.forward(weights, config, tokens, np.float16), weights, config)


def text(n_vocab: int, n: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.random.default_rng(n).integers(0, n_vocab, n).astype(np.int32)


@pytest.mark.parametrize("name", FAMILY)
def test_each_model_has_the_oracle_s_logits(tmp_path: Path, name: str) -> None:
    member = FAMILY[name]
    make_checkpoint(tmp_path / "hf", member.shape, seed=3)
    quantize(tmp_path / "hf", tmp_path / "whole.gguf", "q8_0", progress=False)
    path = rewrite(
        tmp_path / "whole.gguf",
        tmp_path / "model.gguf",
        keys=member.keys,
        without=("output.weight",) if member.tied else (),
    )
    tokens = text(member.shape.n_vocab, member.n_tokens)
    with Mixtral(path) as model:
        c, s = model.config, member.shape
        assert (c.n_layers, c.hidden, c.ffn, c.n_heads, c.n_kv_heads) == (
            s.n_layers,
            s.hidden,
            s.ffn,
            s.n_heads,
            s.n_kv_heads,
        )
        assert (c.n_experts, c.n_experts_used) == (max(s.n_experts, 1), s.n_experts_used if s.n_experts else 1)
        assert (c.n_vocab, c.rope_base, c.head_dim) == (s.n_vocab, s.rope_base, s.head_dim)
        found = model.logits(tokens)
    np.testing.assert_array_equal(found, by_oracle(path, tokens))


def test_keys_of_the_family_change_the_result(tmp_path: Path) -> None:
    """What the parametrized test above compares is not the same model under several names."""
    make_checkpoint(tmp_path / "hf", FAMILY["llama-tied"].shape, seed=3)
    quantize(tmp_path / "hf", tmp_path / "m.gguf", "q8_0", progress=False)
    tokens, seen = text(320, 160), []
    for name in ("mistral-7b-v0.1", "mistral-7b-v0.1-of-llama.cpp", "llama-linear", "mistral-yarn"):
        with Mixtral(tmp_path / "m.gguf", overrides=FAMILY[name].keys) as model:
            seen.append(model.logits(tokens, last_only=True))
    assert len({logits.tobytes() for logits in seen}) == 4


# --- Layouts ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("layouts")
    make_checkpoint(directory / "hf", TINY, seed=4)
    quantize(directory / "hf", directory / "merged.gguf", "q8_0", progress=False)
    return directory / "merged.gguf"


OPTIONAL = (
    *("general.name", "general.file_type", "llama.vocab_size", "llama.rope.dimension_count"),
    *("llama.attention.key_length", "llama.attention.value_length"),
)
LAYOUTS: dict[str, Callable[[Path, Path], Path]] = {
    "split": lambda source, to: rewrite(source, to, split=True),
    "version 2": lambda source, to: rewrite(source, to, version=2),
    "shards": lambda source, to: rewrite(source, to, shard_tensors=5),
    "shards of version 2": lambda source, to: rewrite(source, to, shard_tensors=5, version=2),
    "shards of split experts": lambda source, to: rewrite(source, to, split=True, shard_tensors=7),
    "convert-layout": lambda source, to: convert_layout(
        source, to, layout="split", max_shard_bytes=20_000, progress=False
    )[-1],
    "no optional keys": lambda source, to: rewrite(source, to, keys=dict.fromkeys(OPTIONAL)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_has_the_same_logits(merged: Path, tmp_path: Path, layout: str) -> None:
    path = LAYOUTS[layout](merged, tmp_path / "m.gguf")
    tokens = text(320, 12)
    opened(path)
    with Mixtral(merged) as expected, Mixtral(path) as model:
        np.testing.assert_array_equal(model.logits(tokens), expected.logits(tokens))
    np.testing.assert_array_equal(by_oracle(path, tokens), by_oracle(merged, tokens))


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("kind", [Type.F16, Type.BF16, Type.F32])
@pytest.mark.parametrize("what", ["ffn_gate_inp", "norm"])
def test_routers_and_norms_of_every_float_type(
    merged: Path, tmp_path: Path, what: str, kind: Type, split: bool
) -> None:
    """Routers in f16 are those of the files of December 2023."""
    path = rewrite(merged, tmp_path / "m.gguf", types={what: kind}, split=split)
    _, weights = opened(path)
    router = weights.layers[0].router
    assert router is not None
    assert router.type == (kind if what == "ffn_gate_inp" else Type.F32)
    tokens = text(320, 12)
    with Mixtral(path) as model:
        np.testing.assert_array_equal(model.logits(tokens), by_oracle(path, tokens))
    widened = rewrite(path, tmp_path / "f32.gguf", types={what: Type.F32})
    with Mixtral(widened) as model:
        np.testing.assert_array_equal(model.logits(tokens), by_oracle(path, tokens))  # the types are widened exactly


def test_types_that_differ_between_the_experts_of_a_layer(merged: Path, tmp_path: Path) -> None:
    split = rewrite(merged, tmp_path / "split.gguf", split=True)
    path = rewrite(
        split,
        tmp_path / "m.gguf",
        types={"ffn_up.0.": Type.F16, "ffn_down.1.": Type.Q4_0, "blk.1.ffn_gate.2.": Type.BF16},
    )
    assert [expert[1].type for expert in opened(path)[1].layers[0].experts] == [
        Type.F16,
        Type.Q8_0,
        Type.Q8_0,
        Type.Q8_0,
    ]
    tokens = text(320, 24)
    with Mixtral(path, experts_used=4) as model:
        found = model.logits(tokens)
    with GGUFFile(path) as file:
        file.metadata["llama.expert_used_count"] = 4
        config = ModelConfig.from_gguf(file)
        weights = load_weights(file, config)
        expected = oracle.logits(oracle.forward(weights, config, tokens, np.float16), weights, config)
    np.testing.assert_array_equal(found, expected)


# --- Tokenizer keys -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [True, False, None])
@pytest.mark.parametrize("bos", [True, False, None])
def test_tokenizer_keys_are_honoured_and_optional(
    tiny_q8_0: Path, tmp_path: Path, prefix: bool | None, bos: bool | None
) -> None:
    keys = {"tokenizer.ggml.add_space_prefix": prefix, "tokenizer.ggml.add_bos_token": bos}
    path = rewrite(tiny_q8_0, tmp_path / "m.gguf", keys=keys)
    with Mixtral(path) as model, Mixtral(tiny_q8_0) as usual:
        expected = usual.tokenize("the king", add_bos=False)
        if prefix is False:
            assert usual.tokenize("a the king", add_bos=False)[1:] == expected  # the space is of the text
            expected = model.tokenize("the king", add_bos=False)
            assert expected != usual.tokenize("the king", add_bos=False)
            assert model.tokenize(" the king", add_bos=False) == usual.tokenize("the king", add_bos=False)
        assert model.tokenize("the king") == ([] if bos is False else [1]) + expected
        assert model.detokenize(model.tokenize("the king")) == "the king"
