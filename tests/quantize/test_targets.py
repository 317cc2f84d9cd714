"""Names and row orders: what becomes of each checkpoint tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pymixtral.files.gguf import GGUFFile
from pymixtral.quantize import quantize
from pymixtral.quantize.sources.targets import rope_order
from support.checkpoints import TINY_MIXTRAL, Shape, make_checkpoint, read_tensors

Floats = NDArray[np.floating[Any]]


def test_rope_order_of_a_known_head() -> None:
    # Two heads of six rows: pairs (0, 3), (1, 4), (2, 5) become neighbours, heads stay apart.
    np.testing.assert_array_equal(rope_order(2, 6), [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11])


@pytest.mark.parametrize(("n_heads", "head_dim"), [(1, 2), (6, 32), (32, 128)])
def test_rope_order_interleaves_the_halves(n_heads: int, head_dim: int) -> None:
    order = rope_order(n_heads, head_dim)
    for head in range(n_heads):
        for i in range(head_dim // 2):
            assert order[head * head_dim + 2 * i] == head * head_dim + i
            assert order[head * head_dim + 2 * i + 1] == head * head_dim + i + head_dim // 2
    np.testing.assert_array_equal(np.sort(order), np.arange(n_heads * head_dim))


def floats(file: GGUFFile, name: str) -> Floats:
    return np.ascontiguousarray(file.tensors[name].data).view(np.float32)


def test_attention_scores_are_those_of_rotate_half(tmp_path: Path) -> None:
    """RoPE on adjacent pairs of the file's rows scores as rotate-half does on the checkpoint's."""
    shape = Shape(hidden=96, n_heads=6, n_kv_heads=2, head_dim=24, n_layers=1, n_vocab=64)
    tensors = make_checkpoint(tmp_path / "hf", shape, seed=1)
    quantize(tmp_path / "hf", tmp_path / "m.gguf", "f32", progress=False)
    x = np.random.Generator(np.random.PCG64(2)).standard_normal((2, shape.hidden))
    angles = np.array([[3.0], [11.0]]) * 1e6 ** (-2 * np.arange(shape.head_dim // 2) / shape.head_dim)

    def rotate_half(rows: Floats, angle: Floats) -> Floats:
        a, b = np.split(rows.reshape(-1, shape.head_dim), 2, axis=1)
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], axis=1)

    def rotate_pairs(rows: Floats, angle: Floats) -> Floats:
        a, b = rows.reshape(-1, shape.head_dim)[:, 0::2], rows.reshape(-1, shape.head_dim)[:, 1::2]
        return np.stack([a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)], axis=2).reshape(
            -1, shape.head_dim
        )

    with GGUFFile(tmp_path / "m.gguf") as file:
        q, k = floats(file, "blk.0.attn_q.weight"), floats(file, "blk.0.attn_k.weight")
        ours = [rotate_pairs(q @ x[0], angles[0]), rotate_pairs(k @ x[1], angles[1])]
    attention = "model.layers.0.self_attn"
    theirs = [
        rotate_half(tensors[f"{attention}.q_proj.weight"] @ x[0], angles[0]),
        rotate_half(tensors[f"{attention}.k_proj.weight"] @ x[1], angles[1]),
    ]
    for head in range(shape.n_heads):
        key = head // (shape.n_heads // shape.n_kv_heads)
        np.testing.assert_allclose(ours[0][head] @ ours[1][key], theirs[0][head] @ theirs[1][key], rtol=1e-12)


def test_every_weight_of_a_mixtral_arrives(tiny_f32: Path) -> None:
    source = read_tensors(TINY_MIXTRAL)
    with GGUFFile(tiny_f32) as file:
        assert sum(np.prod(tensor.shape) for tensor in file.tensors.values()) == sum(
            array.size for array in source.values()
        )
        np.testing.assert_array_equal(floats(file, "token_embd.weight"), source["model.embed_tokens.weight"])
        np.testing.assert_array_equal(floats(file, "output_norm.weight"), source["model.norm.weight"])
        np.testing.assert_array_equal(floats(file, "output.weight"), source["lm_head.weight"])
        for n in range(4):
            layer, block = f"model.layers.{n}", f"blk.{n}"
            for ours, theirs, order in (
                ("attn_norm", "input_layernorm", slice(None)),
                ("attn_q", "self_attn.q_proj", rope_order(8, 32)),
                ("attn_k", "self_attn.k_proj", rope_order(2, 32)),
                ("attn_v", "self_attn.v_proj", slice(None)),
                ("attn_output", "self_attn.o_proj", slice(None)),
                ("ffn_norm", "post_attention_layernorm", slice(None)),
                ("ffn_gate_inp", "block_sparse_moe.gate", slice(None)),
            ):
                np.testing.assert_array_equal(
                    floats(file, f"{block}.{ours}.weight"), source[f"{layer}.{theirs}.weight"][order]
                )
            for ours, theirs in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
                merged = floats(file, f"{block}.ffn_{ours}_exps.weight")
                for expert in range(8):
                    np.testing.assert_array_equal(
                        merged[expert], source[f"{layer}.block_sparse_moe.experts.{expert}.{theirs}.weight"]
                    )


def test_every_weight_of_a_dense_mistral_arrives(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "hf", Shape(n_experts=0, window=100, n_vocab=96), seed=4)
    quantize(tmp_path / "hf", tmp_path / "m.gguf", "f32", progress=False)
    with GGUFFile(tmp_path / "m.gguf") as file:
        assert len(file.tensors) == len(source)
        for name in ("gate", "up", "down"):
            np.testing.assert_array_equal(
                floats(file, f"blk.1.ffn_{name}.weight"), source[f"model.layers.1.mlp.{name}_proj.weight"]
            )
