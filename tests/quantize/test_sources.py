"""The forms in which a model is published: each gives the same tensors, byte for byte.

Each can be broken in ways that are refused.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pymixtral.arrays import F32
from pymixtral.errors import CheckpointError, OutputError, PymixtralError, UnsupportedError
from pymixtral.files.gguf import GGUFFile
from pymixtral.model.rope import llama3_factors
from pymixtral.quantize import quantize
from pymixtral.quantize.sources.mistral import read_params
from pymixtral.quantize.sources.opening import open_checkpoint
from pymixtral.quantize.sources.targets import rope_order
from support.checkpoints import (
    TINY_MIXTRAL,
    Shape,
    config_json,
    make_checkpoint,
    make_tensors,
    read_tensors,
    write_safetensors,
    write_tokenizer,
)
from support.ggufs import contents, rewrite

Tensors = dict[str, F32]
SMALL = Shape(n_vocab=64, n_layers=2)
DENSE = Shape(n_vocab=64, n_layers=2, n_experts=0, window=512, rope_base=1e4)


def fused(tensors: Tensors, shape: Shape) -> Tensors:
    """As transformers 5 holds the experts: gate rows before up rows, one tensor for all experts."""
    result = {
        re.sub(r"block_sparse_moe\.gate", "mlp.gate", name): x for name, x in tensors.items() if ".experts." not in name
    }
    for n in range(shape.n_layers):
        old, new = f"model.layers.{n}.block_sparse_moe.experts", f"model.layers.{n}.mlp.experts"
        w1, w2, w3 = (np.stack([tensors[f"{old}.{e}.w{i}.weight"] for e in range(shape.n_experts)]) for i in (1, 2, 3))
        result |= {f"{new}.gate_up_proj": np.concatenate([w1, w3], axis=1), f"{new}.down_proj": w2}
    return result


_MISTRAL = {
    "model.embed_tokens.weight": "tok_embeddings.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "output.weight",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "block_sparse_moe": "feed_forward",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
}


def consolidated(tensors: Tensors, shape: Shape) -> Tensors:
    """Mistral's names, and rows of queries and keys in the order in which pairs are rotated."""
    result = {}
    for name, x in tensors.items():
        for n_heads, kind in ((shape.n_heads, "q_proj"), (shape.n_kv_heads, "k_proj")):
            if kind in name:
                x = x[rope_order(n_heads, shape.head_dim)]
        for theirs, ours in _MISTRAL.items():
            name = name.replace(theirs, ours)
        result[name.removeprefix("model.")] = x
    return result


def stacked(tensors: Tensors, shape: Shape) -> Tensors:
    """As Mixtral's first release has them: all experts of a layer in three tensors, w2 transposed."""
    own = consolidated(tensors, shape)
    result = {name.replace("feed_forward", "block_sparse_moe"): x for name, x in own.items() if ".experts." not in name}
    for n in range(shape.n_layers):
        for w in ("w1", "w2", "w3"):
            experts = [own[f"layers.{n}.feed_forward.experts.{e}.{w}.weight"] for e in range(shape.n_experts)]
            result[f"layers.{n}.block_sparse_moe.{w}"] = np.concatenate([x.T if w == "w2" else x for x in experts])
    return result


def of_mlx(tensors: Tensors, shape: Shape) -> Tensors:
    """As MLX has them: each matrix of all experts in one tensor."""
    result = {name: x for name, x in tensors.items() if ".experts." not in name}
    for n in range(shape.n_layers):
        block = f"model.layers.{n}.block_sparse_moe"
        for w, name in (("w1", "gate"), ("w2", "down"), ("w3", "up")):
            experts = [tensors[f"{block}.experts.{e}.{w}.weight"] for e in range(shape.n_experts)]
            result[f"{block}.switch_mlp.{name}_proj.weight"] = np.stack(experts)
    return result


def params(shape: Shape) -> dict[str, Any]:
    values: dict[str, Any] = {
        "dim": shape.hidden,
        "n_layers": shape.n_layers,
        "head_dim": shape.head_dim,
        "hidden_dim": shape.ffn,
        "n_heads": shape.n_heads,
        "n_kv_heads": shape.n_kv_heads,
        "norm_eps": shape.rms_eps,
        "vocab_size": shape.n_vocab,
        "rope_theta": shape.rope_base,
    }
    if shape.window:
        values["sliding_window"] = shape.window
    if shape.n_experts:
        values["moe"] = {"num_experts": shape.n_experts, "num_experts_per_tok": shape.n_experts_used}
    return values


def write_fused(directory: Path, tensors: Tensors, shape: Shape, dtype: str = "float32") -> Path:
    directory.mkdir()
    write_tokenizer(directory, shape.n_vocab)
    (directory / "config.json").write_text(json.dumps(config_json(shape)))
    write_safetensors(directory / "model.safetensors", fused(tensors, shape), dtype=dtype)
    return directory


def write_consolidated(
    directory: Path, tensors: Tensors, shape: Shape, dtype: str = "float32", shards: int = 1
) -> Path:
    directory.mkdir()
    write_tokenizer(directory, shape.n_vocab)
    (directory / "params.json").write_text(json.dumps(params(shape)))
    own = list(consolidated(tensors, shape).items())
    for i in range(shards):
        name = "consolidated.safetensors" if shards == 1 else f"consolidated.{i:02}-of-{shards:02}.safetensors"
        write_safetensors(
            directory / name, dict(own[len(own) * i // shards : len(own) * (i + 1) // shards]), dtype=dtype
        )
    return directory


def quantized(source: Path, dest: Path, kind: str = "q4_0", **options: Any) -> dict[str, Any]:
    quantize(source, dest, kind, progress=False, **options)
    return contents(dest)


TINY = Shape(hidden=256, ffn=512, n_layers=4, n_heads=8, n_kv_heads=2, head_dim=32, n_experts=8, n_ctx=2048)


@pytest.fixture(scope="module")
def tiny_tensors() -> Tensors:
    return read_tensors(TINY_MIXTRAL)


_FORMS = ["fused", "mlx", "stacked", "no index", "consolidated", "consolidated in three files"]


@pytest.mark.parametrize("form", [*_FORMS, "f32", "bf16", "split", "sharded", "fused gguf"])
def test_each_form_of_tiny_mixtral_gives_the_same_bytes(
    tmp_path: Path, tiny_q4_0: Path, tiny_tensors: Tensors, form: str
) -> None:
    """Its weights are bfloat16, so that f32 and bf16 hold them exactly."""
    if form == "fused":
        source = write_fused(tmp_path / "source", tiny_tensors, TINY, "bfloat16")
    elif form == "mlx":
        source = write_fused(tmp_path / "source", tiny_tensors, TINY, "bfloat16")
        write_safetensors(source / "model.safetensors", of_mlx(tiny_tensors, TINY), dtype="bfloat16")
    elif form == "stacked":
        source = write_consolidated(tmp_path / "source", tiny_tensors, TINY, "bfloat16")
        write_safetensors(source / "consolidated.safetensors", stacked(tiny_tensors, TINY), dtype="bfloat16")
    elif form == "no index":
        source = tmp_path / "source"
        source.mkdir()
        for name in ("config.json", "tokenizer.model"):
            shutil.copy(TINY_MIXTRAL / name, source)
        names = list(tiny_tensors)
        for i in range(3):
            part = {name: tiny_tensors[name] for name in names[i::3]}
            write_safetensors(source / f"model-{i + 1:05}-of-00003.safetensors", part, dtype="bfloat16")
    elif form.startswith("consolidated"):
        source = write_consolidated(tmp_path / "source", tiny_tensors, TINY, "bfloat16", 3 if "three" in form else 1)
    else:
        source = tmp_path / "source.gguf"
        quantize(TINY_MIXTRAL, source, "bf16" if form == "bf16" else "f32", progress=False)
        if form in ("split", "sharded"):
            source = rewrite(
                source, tmp_path / "other.gguf", split=form == "split", shard_tensors=9 if form == "sharded" else 0
            )
        elif form == "fused gguf":
            source = rewrite(source, tmp_path / "other.gguf", fused=True)
    assert quantized(source, tmp_path / "m.gguf") == contents(tiny_q4_0)


@pytest.mark.parametrize("shards", [1, 2])
def test_dense_model_in_mistral_s_form(tmp_path: Path, shards: int) -> None:
    tensors = make_checkpoint(tmp_path / "hf", DENSE, seed=4)
    expected = quantized(tmp_path / "hf", tmp_path / "a.gguf", "f16")
    assert (
        quantized(write_consolidated(tmp_path / "own", tensors, DENSE, shards=shards), tmp_path / "b.gguf", "f16")
        == expected
    )
    with GGUFFile(tmp_path / "a.gguf") as a, GGUFFile(tmp_path / "b.gguf") as b:
        differing = {"general.name", "llama.context_length"}  # which params.json does not tell
        ours, theirs = ({key: bytes(entry) for key, entry in file.encoded.items()} for file in (a, b))
        assert {key for key in ours | theirs if ours.get(key) != theirs.get(key)} == differing


def test_any_number_of_experts(tmp_path: Path) -> None:
    """As MergeKit makes them."""
    shape = Shape(n_vocab=64, n_layers=1, n_experts=3, n_experts_used=3)
    tensors = make_checkpoint(tmp_path / "hf", shape, seed=4)
    expected = quantized(tmp_path / "hf", tmp_path / "a.gguf")
    assert expected["blk.0.ffn_up_exps.weight"][1] == (3, 96, 64)
    assert quantized(write_fused(tmp_path / "fused", tensors, shape), tmp_path / "b.gguf") == expected


def test_directory_with_both_forms_is_read_once(tmp_path: Path) -> None:
    """Mistral's repositories hold the model twice."""
    tensors = make_checkpoint(tmp_path / "hf", SMALL, seed=4)
    write_consolidated(tmp_path / "own", tensors, SMALL)
    for path in (tmp_path / "own").iterdir():
        shutil.copy(path, tmp_path / "hf")
    assert quantized(tmp_path / "hf", tmp_path / "a.gguf") == quantized(tmp_path / "own", tmp_path / "b.gguf")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.model", "model.safetensors"])
def test_row_18_no_file_of_the_checkpoint_is_overwritten(tmp_path: Path, name: str) -> None:
    make_checkpoint(tmp_path, Shape(n_layers=1), seed=4)
    before = (tmp_path / name).read_bytes()
    with pytest.raises(OutputError, match="found one that is read"):
        quantize(tmp_path, tmp_path / name, force=True, progress=False)
    assert (tmp_path / name).read_bytes() == before
    quantize(tmp_path, tmp_path / "m.gguf", progress=False)
    quantize(tmp_path, tmp_path / "m.gguf", force=True, progress=False)


# --- Rope --------------------------------------------------------------------------------------------------------

LLAMA3 = replace(SMALL, rope_scaling=("llama3", 8.0, 256))


def test_factors_of_llama3_become_a_tensor(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "hf", LLAMA3, seed=4)
    report = quantize(tmp_path / "hf", tmp_path / "a.gguf", "q4_0", progress=False)
    assert [(t.type, t.shape) for t in report.tensors if t.name == "rope_freqs.weight"] == [("f32", (8,))]
    with GGUFFile(tmp_path / "a.gguf") as file:
        assert not any("scaling" in key for key in file.metadata)
        factors = file.tensors["rope_freqs.weight"].data.view(np.float32)
    assert tuple(factors.tolist()) == llama3_factors(LLAMA3.rope_base, 16, 8.0, 1.0, 4.0, 256)
    quantize(tmp_path / "a.gguf", tmp_path / "b.gguf", "q4_0", progress=False)  # a GGUF source keeps them
    assert contents(tmp_path / "b.gguf") == contents(tmp_path / "a.gguf")
    quantize(tmp_path / "hf", tmp_path / "c.gguf", target_bpw=8, per_expert=True, progress=False)
    assert contents(tmp_path / "c.gguf")["rope_freqs.weight"] == contents(tmp_path / "a.gguf")["rope_freqs.weight"]


def test_a_configuration_that_changes_meanwhile_is_noticed(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "hf", LLAMA3, seed=4)
    checkpoint = open_checkpoint(tmp_path / "hf")
    (tmp_path / "hf" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"config\.json.*changed"):
        checkpoint.check_unchanged()


def test_row_17_factors_in_a_tensor_too(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, LLAMA3, seed=4)
    tensors = make_tensors(LLAMA3, seed=4) | {"rope_freqs.weight": np.ones(8, np.float32)}
    write_safetensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match=r"rope_freqs\.weight: expected it once, found it twice"):
        quantize(tmp_path, tmp_path / "m.gguf", progress=False)


def test_a_llama_is_read_and_its_biases_are_refused(tmp_path: Path) -> None:
    shape = replace(DENSE, window=0)
    make_checkpoint(tmp_path / "hf", shape, seed=4)
    expected = quantized(tmp_path / "hf", tmp_path / "a.gguf")
    config = config_json(shape) | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    assert quantized(tmp_path / "hf", tmp_path / "b.gguf") == expected
    name = "model.layers.0.self_attn.q_proj.bias"
    tensors = make_tensors(shape, seed=4) | {name: np.ones(64, np.float32)}
    write_safetensors(tmp_path / "hf" / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match=f"1 unexpected, such as '{name}'"):
        quantize(tmp_path / "hf", tmp_path / "c.gguf", progress=False)


# --- What is no weight -------------------------------------------------------------------------------------------


def frequencies(shape: Shape) -> F32:
    return (shape.rope_base ** (-np.arange(0, shape.head_dim, 2) / shape.head_dim)).astype(np.float32)


def with_buffers(directory: Path, buffers: Tensors, dtype: str = "float32") -> Path:
    make_checkpoint(directory, SMALL, seed=4)
    write_safetensors(directory / "model.safetensors", make_tensors(SMALL, seed=4) | buffers, dtype=dtype)
    return directory


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(
    "names", [["model.rotary_emb.inv_freq"], [f"model.layers.{n}.self_attn.rotary_emb.inv_freq" for n in range(2)]]
)
def test_stored_frequencies_are_compared_and_left_out(tmp_path: Path, names: list[str], dtype: str) -> None:
    make_checkpoint(tmp_path / "hf", SMALL, seed=4, dtype=dtype)
    expected = quantized(tmp_path / "hf", tmp_path / "a.gguf")
    source = with_buffers(tmp_path / "old", dict.fromkeys(names, frequencies(SMALL)), dtype)
    report = quantize(source, tmp_path / "b.gguf", "q4_0", progress=False)
    assert contents(tmp_path / "b.gguf") == expected
    assert [note for note in report.notes if names[0] in note] == [
        f"{len(names)} tensors follow from the configuration and were left out, such as {names[0]}"
    ]


def test_frequencies_before_a_linear_scaling_are_left_out(tmp_path: Path) -> None:
    """transformers of 2023 stored them so, and divided the positions."""
    source = with_buffers(tmp_path, {"model.rotary_emb.inv_freq": frequencies(SMALL)})
    config = config_json(SMALL) | {"rope_scaling": {"type": "linear", "factor": 4.0}}
    (source / "config.json").write_text(json.dumps(config))
    report = quantize(source, tmp_path / "m.gguf", progress=False)
    assert any("1 tensors follow from the configuration" in note for note in report.notes)


@pytest.mark.parametrize("change", [lambda x: x / 2, lambda x: x * 1.02, lambda x: x[:-1], lambda x: x * np.nan])
def test_frequencies_of_another_rope_are_refused(tmp_path: Path, change: Callable[[F32], F32]) -> None:
    name = "model.layers.1.self_attn.rotary_emb.inv_freq"
    source = with_buffers(tmp_path / "hf", {name: np.asarray(change(frequencies(SMALL)), np.float32)})
    with pytest.raises(
        UnsupportedError, match=rf"{re.escape(name)}: expected the 8 frequencies of the base 1e\+06, found others"
    ):
        quantize(source, tmp_path / "m.gguf", progress=False)


def test_masks_are_left_out_and_biases_are_refused(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.bias"
    masks = {
        name: np.ones((1, 1, 8, 8), np.float32),
        "model.layers.0.self_attn.masked_bias": np.full((), -1e9, np.float32),
    }
    source = with_buffers(tmp_path / "a", masks)
    assert any(
        "2 tensors follow from the configuration" in note
        for note in quantize(source, tmp_path / "m.gguf", progress=False).notes
    )
    with pytest.raises(CheckpointError, match=f"1 unexpected, such as '{name}'"):
        quantize(with_buffers(tmp_path / "b", {name: np.ones(64, np.float32)}), tmp_path / "n.gguf", progress=False)


# --- What is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "advice"),
    [("pytorch_model.bin", "save_pretrained"), ("consolidated.00.pth", "save_file"), ("model.pt", "save_pretrained")],
)
@pytest.mark.parametrize("named", [False, True])
def test_pickles_are_refused_with_the_way_to_convert(tmp_path: Path, name: str, advice: str, named: bool) -> None:
    """A pickle that would tell if it were loaded."""
    (tmp_path / "config.json").write_text(json.dumps(config_json(SMALL)))
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR.")
    with pytest.raises(UnsupportedError, match=f"expected safetensors, found {name}, a Python pickle.*({advice})"):
        quantize(tmp_path / name if named else tmp_path, tmp_path / "m.gguf", progress=False)
    assert not (tmp_path / "ran").exists()


def test_what_is_no_checkpoint_is_refused_in_one_sentence(tmp_path: Path, tiny_f16: Path) -> None:
    def refused(source: Path, *words: str) -> None:
        with pytest.raises(PymixtralError) as caught:
            quantize(source, tmp_path / "m.gguf", progress=False)
        assert "\n" not in str(caught.value)
        for word in words:
            assert word in str(caught.value)

    empty = tmp_path / "empty"
    empty.mkdir()
    refused(empty, "expected a checkpoint with model.safetensors, ", "consolidated.safetensors", "GGUF")
    shutil.copy(tiny_f16, empty / "some.gguf")
    refused(empty, "name one of them", "some.gguf")
    refused(TINY_MIXTRAL / "model.safetensors", "name its directory")
    refused(tmp_path / "absent", "no such directory or file")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model.layers.1.mlp.experts.gate_up_proj", lambda x: x.swapaxes(1, 2)),
        ("model.layers.1.mlp.experts.gate_up_proj", lambda x: x[:3]),
        ("model.layers.0.mlp.experts.down_proj", lambda x: x[:, :-1]),
        ("model.layers.0.mlp.experts.down_proj", lambda x: x[0]),
        ("model.layers.0.mlp.gate.weight", lambda x: x[:-1]),
    ],
)
def test_row_17_fused_tensor_of_another_shape(tmp_path: Path, name: str, change: Callable[[F32], F32]) -> None:
    tensors = fused(make_tensors(SMALL, seed=1), SMALL)
    tensors[name] = np.ascontiguousarray(change(tensors[name]))
    (tmp_path / "config.json").write_text(json.dumps(config_json(SMALL)))
    write_safetensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match="expected shape"):
        quantize(tmp_path, tmp_path / "m.gguf", progress=False)


def test_row_17_fused_and_single_experts_together(tmp_path: Path) -> None:
    tensors = make_tensors(SMALL, seed=1)
    (tmp_path / "config.json").write_text(json.dumps(config_json(SMALL)))
    write_safetensors(tmp_path / "model.safetensors", tensors | fused(tensors, SMALL))
    with pytest.raises(CheckpointError, match="found it twice: by itself, and fused with others"):
        quantize(tmp_path, tmp_path / "m.gguf", progress=False)


@pytest.mark.parametrize("kept", [[0, 2], [1, 2], [0, 1]])
def test_row_17_consolidated_file_missing(tmp_path: Path, kept: list[int]) -> None:
    source = write_consolidated(tmp_path / "own", make_tensors(SMALL, seed=1), SMALL, shards=3)
    (missing,) = {0, 1, 2} - set(kept)
    (source / f"consolidated.{missing:02}-of-03.safetensors").unlink()
    with pytest.raises(CheckpointError, match="expected all files" if missing else "expected all files|missing"):
        quantize(source, tmp_path / "m.gguf", progress=False)


@pytest.mark.parametrize(
    "names", [["00001-of-00003", "00003-of-00003"], ["00001-of-99999"], ["00001-of-00002", "00001-of-00003"]]
)
def test_row_17_numbered_files_that_are_not_all(tmp_path: Path, names: list[str]) -> None:
    """No number in a name costs time or memory."""
    for prefix, config in (
        ("model-", ("config.json", config_json(SMALL))),
        ("consolidated.", ("params.json", params(SMALL))),
    ):
        source = tmp_path / prefix
        source.mkdir()
        (source / config[0]).write_text(json.dumps(config[1]))
        for name in names:
            write_safetensors(source / f"{prefix}{name}.safetensors", {})
        with pytest.raises(
            CheckpointError, match=r"expected all files of one checkpoint|expected at most 1024 files, found 99999"
        ):
            quantize(source, tmp_path / "m.gguf", progress=False)
        for path in source.glob("*.safetensors"):
            path.rename(source / f"{prefix}00001-of-{'9' * 200}.safetensors")
        with pytest.raises(CheckpointError, match="expected at most 1024 files"):
            quantize(source, tmp_path / "m.gguf", progress=False)


def test_row_17_stacked_tensor_of_another_shape(tmp_path: Path) -> None:
    tensors = stacked(make_tensors(SMALL, seed=1), SMALL)
    source = write_consolidated(tmp_path / "own", make_tensors(SMALL, seed=1), SMALL)
    name = "layers.1.block_sparse_moe.w2"
    write_safetensors(source / "consolidated.safetensors", tensors | {name: np.ascontiguousarray(tensors[name].T)})
    with pytest.raises(
        CheckpointError, match=rf"{re.escape(name)}: expected shape \[384, 64\], as params.json says, found \[64, 384\]"
    ):
        quantize(source, tmp_path / "m.gguf", progress=False)


def test_row_17_stacked_tensor_beside_single_ones(tmp_path: Path) -> None:
    source = write_consolidated(tmp_path / "own", make_tensors(SMALL, seed=1), SMALL)
    both = consolidated(make_tensors(SMALL, seed=1), SMALL) | stacked(make_tensors(SMALL, seed=1), SMALL)
    write_safetensors(source / "consolidated.safetensors", both)
    with pytest.raises(CheckpointError, match="found it stacked with others and by itself"):
        quantize(source, tmp_path / "m.gguf", progress=False)


def test_row_17_consolidated_tensor_in_two_files(tmp_path: Path) -> None:
    source = write_consolidated(tmp_path / "own", make_tensors(SMALL, seed=1), SMALL, shards=2)
    shutil.copy(source / "consolidated.00-of-02.safetensors", source / "consolidated.01-of-02.safetensors")
    with pytest.raises(CheckpointError, match=r"'tok_embeddings\.weight': expected it in one file"):
        quantize(source, tmp_path / "m.gguf", progress=False)


def test_row_17_consolidated_tensor_missing_or_unexpected(tmp_path: Path) -> None:
    source = write_consolidated(tmp_path / "own", make_tensors(SMALL, seed=1), SMALL)
    tensors = consolidated(make_tensors(SMALL, seed=1), SMALL)
    tensors["layers.0.attention.bias"] = tensors.pop("layers.1.feed_forward.experts.2.w2.weight")
    write_safetensors(source / "consolidated.safetensors", tensors)
    with pytest.raises(
        CheckpointError, match=r"layers\.1\.feed_forward\.experts\.2\.w2\.weight.*'layers\.0\.attention\.bias'"
    ):
        quantize(source, tmp_path / "m.gguf", progress=False)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("dim", 0, "dim: expected a whole number from 1 to 131072, found 0"),
        ("dim", None, "dim: expected a whole number from 1 to 131072, found None"),
        ("n_layers", 10**9, "n_layers"),
        ("n_kv_heads", 3, "n_kv_heads: expected a divisor of n_heads, which is 4, found 3"),
        ("head_dim", 15, "multiple of 8"),
        ("norm_eps", -1, "norm_eps"),
        ("vocab_size", -1, "vocab_size"),
        ("rope_theta", "1e6", "rope_theta"),
        ("sliding_window", 0, "sliding_window"),
        ("moe", [8, 2], "moe: expected an object, found [8, 2]"),
        ("moe", {"num_experts": 8}, "num_experts_per_tok is missing"),
        (
            "moe",
            {"num_experts": 8, "num_experts_per_tok": 9},
            "num_experts_per_tok: expected a whole number from 1 to 8, found 9",
        ),
        (
            "moe",
            {"num_experts": 1, "num_experts_per_tok": 1},
            "num_experts: expected a whole number from 2 to 64, found 1",
        ),
        ("dim", 2**17 + 8, "dim: expected a whole number from 1 to 131072, found 131080"),
        ("n_heads", 1025, "n_heads: expected a whole number from 1 to 1024, found 1025"),
        ("max_seq_len", 2**20 + 1, "max_seq_len: expected a whole number from 1 to 1048576, found 1048577"),
        (
            "moe",
            {"num_experts": 65, "num_experts_per_tok": 2},
            "num_experts: expected a whole number from 2 to 64, found 65",
        ),
    ],
)
def test_row_17_params_that_make_no_sense(tmp_path: Path, key: str, value: object, words: str) -> None:
    (tmp_path / "params.json").write_text(json.dumps(params(SMALL) | {key: value}))
    with pytest.raises(CheckpointError, match=re.escape(words)):
        read_params(tmp_path / "params.json")


def test_params_with_a_feature_that_is_not_computed(tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text(json.dumps(params(SMALL) | {"vision_encoder": {"image_size": 1024}}))
    with pytest.raises(UnsupportedError, match="vision_encoder"):
        read_params(tmp_path / "params.json")


def test_params_left_out_have_mistral_s_defaults(tmp_path: Path) -> None:
    values = params(SMALL)
    del values["rope_theta"], values["head_dim"]
    (tmp_path / "params.json").write_text(json.dumps(values))
    found, _ = read_params(tmp_path / "params.json")
    assert (found.rope_base, found.head_dim, found.n_ctx_train) == (1e6, 16, 32768)
    (tmp_path / "params.json").write_text(json.dumps(params(DENSE) | {"rope_theta": None, "max_seq_len": 4096}))
    found, _ = read_params(tmp_path / "params.json")
    assert (found.rope_base, found.window, found.n_ctx_train) == (1e4, 512, 4096)


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
_JSON = (
    _SCALARS
    | st.lists(_SCALARS, max_size=3)
    | st.dictionaries(st.sampled_from(["num_experts", "num_experts_per_tok"]), _SCALARS)
)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([*params(SMALL), "moe", "sliding_window", "max_seq_len", "tied_embeddings"]), _JSON, max_size=4
    )
)
def test_row_17_any_params_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "params.json"
    path.write_text(json.dumps(params(SMALL) | changes))
    try:
        found, _ = read_params(path)
    except (CheckpointError, UnsupportedError):
        return
    assert found.hidden >= 1
    assert found.n_heads % found.n_kv_heads == 0
    assert found.n_experts_used <= found.n_experts <= 64
