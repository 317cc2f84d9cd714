"""The GGUF file: metadata, tensors as other readers see them, replacing the destination, memory."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, quants
from numpy.typing import NDArray

import pymixtral
from pymixtral import ops
from pymixtral.errors import CheckpointError, InvalidArgumentError, OutputError
from pymixtral.files.gguf import GGUFFile
from pymixtral.quantize import quantize, writer
from pymixtral.quantize.encoders import formats
from pymixtral.quantize.recipe import TENSOR_TYPES
from pymixtral.quantize.sources.targets import rope_order
from support.checkpoints import (
    ONE_TYPE,
    TINY_MIXTRAL,
    Shape,
    make_checkpoint,
    make_tensors,
    read_tensors,
    write_safetensors,
)

SMALL = Shape(n_vocab=64, n_layers=1)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    make_checkpoint(tmp_path / "hf", SMALL, seed=2)
    return tmp_path / "hf"


def encoded(weights: NDArray[np.float32], kind: GGMLQuantizationType) -> NDArray[Any]:
    try:
        return quants.quantize(weights, kind)
    except NotImplementedError:
        return formats.encode(kind, weights.reshape(-1, weights.shape[-1]))


def metadata(path: Path) -> dict[str, Any]:
    reader = GGUFReader(path)
    return {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}


def test_metadata_of_tiny_mixtral(tiny_q8_0: Path) -> None:
    found = metadata(tiny_q8_0)
    assert len(found.pop("tokenizer.ggml.tokens")) == 4096
    assert len(found.pop("tokenizer.ggml.scores")) == 4096
    assert found.pop("tokenizer.ggml.token_type")[:4] == [2, 3, 3, 6]
    assert found.pop("llama.attention.layer_norm_rms_epsilon") == np.float32(1e-5)
    assert found == {
        "general.architecture": "llama",
        "general.name": "tiny-mixtral",
        "general.file_type": 7,
        "general.quantization_version": 2,
        "llama.vocab_size": 4096,
        "llama.context_length": 2048,
        "llama.embedding_length": 256,
        "llama.block_count": 4,
        "llama.feed_forward_length": 512,
        "llama.attention.head_count": 8,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 32,
        "llama.attention.value_length": 32,
        "llama.rope.dimension_count": 32,
        "llama.rope.freq_base": 1e6,
        "llama.expert_count": 8,
        "llama.expert_used_count": 2,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": True,
    }


def test_metadata_of_a_dense_model_has_a_window_and_no_experts(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "hf", Shape(n_experts=0, window=512, n_vocab=64), seed=2)
    quantize(tmp_path / "hf", tmp_path / "m.gguf", "f16", no_tokenizer=True, progress=False)
    found = metadata(tmp_path / "m.gguf")
    assert found["llama.attention.sliding_window"] == 512
    assert found["general.file_type"] == 1
    assert not [key for key in found if "expert" in key or "tokenizer" in key]


@pytest.mark.parametrize("kind", ONE_TYPE)
def test_gguf_s_own_reader_sees_the_tensors(tmp_path: Path, kind: str) -> None:
    """Every tensor equals the checkpoint's, encoded by the gguf package.

    Where that has no encoder, the definition in NumPy encodes it.
    """
    quantize(TINY_MIXTRAL, tmp_path / "m.gguf", kind, progress=False)
    source = read_tensors(TINY_MIXTRAL)
    tensors = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "m.gguf").tensors}
    assert len(tensors) == 3 + 4 * 10
    experts = [source[f"model.layers.2.block_sparse_moe.experts.{expert}.w2.weight"] for expert in range(8)]
    for name, weights in {
        "token_embd.weight": source["model.embed_tokens.weight"],
        "output.weight": source["lm_head.weight"],
        "blk.3.attn_q.weight": source["model.layers.3.self_attn.q_proj.weight"][rope_order(8, 32)],
        "blk.2.ffn_down_exps.weight": np.stack(experts),
    }.items():
        tensor = tensors[name]
        assert tensor.tensor_type == TENSOR_TYPES[kind]
        assert tensor.shape.tolist() == list(weights.shape[::-1])
        np.testing.assert_array_equal(
            tensor.data.reshape(-1), encoded(weights, TENSOR_TYPES[kind]).view(tensor.data.dtype).reshape(-1)
        )
    for name in ("blk.0.attn_norm.weight", "blk.0.ffn_gate_inp.weight", "output_norm.weight"):
        assert tensors[name].tensor_type == TENSOR_TYPES["f32"]


@pytest.mark.parametrize("kind", ONE_TYPE)
def test_same_bytes_for_any_threads_chunks_and_shards(
    small: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantize(small, tmp_path / "a.gguf", kind, n_threads=1, progress=False)
    make_checkpoint(tmp_path / "sharded" / "hf", SMALL, seed=2, shards=3)
    monkeypatch.setattr(writer, "CHUNK_WEIGHTS", 5 * SMALL.hidden)
    quantize(tmp_path / "sharded" / "hf", tmp_path / "b.gguf", kind, n_threads=3, progress=False)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_bundled_model_is_what_the_quantizer_makes(tiny_q8_0: Path) -> None:
    """pymixtral/data/tiny-mixtral-q8_0.gguf was made by

    pymixtral quantize tests/data/tiny-mixtral pymixtral/data/tiny-mixtral-q8_0.gguf --type q8_0
    --force
    """
    bundled = Path(pymixtral.__file__).parent / "data" / "tiny-mixtral-q8_0.gguf"
    assert bundled.read_bytes() == tiny_q8_0.read_bytes()


def refused(error: type[Exception], source: Path, dest: Path, *words: str, **options: Any) -> None:
    before = sorted(path.name for path in dest.parent.iterdir()) if dest.parent.is_dir() else None
    with pytest.raises(error) as caught:
        quantize(source, dest, progress=False, **options)
    for word in words:
        assert word in str(caught.value)
    if before is not None:
        assert sorted(path.name for path in dest.parent.iterdir()) == before


def test_existing_destination(small: Path, tmp_path: Path) -> None:
    dest = tmp_path / "m.gguf"
    dest.write_bytes(b"old")
    refused(OutputError, small, dest, "exists", "force=True")
    assert dest.read_bytes() == b"old"
    quantize(small, dest, force=True, progress=False)
    assert dest.read_bytes()[:4] == b"GGUF"


@pytest.mark.parametrize("force", [False, True])
def test_destination_that_belongs_to_the_source(small: Path, tmp_path: Path, force: bool) -> None:
    refused(OutputError, small, small, "directory", force=force)
    refused(OutputError, small, small / "model.safetensors", "read or written otherwise", force=force)
    (tmp_path / "link.gguf").symlink_to(small / "model.safetensors")
    refused(OutputError, small, tmp_path / "link.gguf", "read or written otherwise", force=force)


def test_destination_in_a_missing_directory(small: Path, tmp_path: Path) -> None:
    refused(OutputError, small, tmp_path / "absent" / "m.gguf", "absent", "create")


def test_destination_that_is_a_device(small: Path) -> None:
    with pytest.raises(OutputError, match="expected a regular file"):
        quantize(small, "/dev/null", force=True, progress=False)


def test_unknown_type_and_threads(small: Path, tmp_path: Path) -> None:
    refused(InvalidArgumentError, small, tmp_path / "m.gguf", "q4", type="q4")
    refused(InvalidArgumentError, small, tmp_path / "m.gguf", n_threads=0)


def test_too_little_disk_space(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    refused(OutputError, small, tmp_path / "m.gguf", "found 1000")


def test_disk_that_fills_up_leaves_nothing(small: Path, tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes write fail with an OSError as a full disk does."""
    code = (
        "import resource, signal, sys; from pymixtral.errors import OutputError; from pymixtral.quantize import "
        "quantize\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: quantize(sys.argv[1], sys.argv[2], 'f32', progress=False)\n"
        "except OutputError as error: print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(small), str(tmp_path / "m.gguf")], capture_output=True, text=True, check=True
    )
    assert "found an error (File too large)" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("old", [None, b"old"])
def test_failure_midway_leaves_the_destination_as_it_was(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], old: bytes | None
) -> None:
    dest = tmp_path / "m.gguf"
    if old is not None:
        dest.write_bytes(old)
    encode, calls = ops.encode, []

    def failing(*arguments: Any) -> Any:
        calls.append(len(list(tmp_path.iterdir())))
        if len(calls) == 7:
            raise error
        return encode(*arguments)

    monkeypatch.setattr(ops, "encode", failing)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error):
        quantize(small, dest, force=True, progress=False)
    assert calls[-1] == len(before) + 1  # there was a temporary file
    assert sorted(tmp_path.iterdir()) == before
    assert old is None or dest.read_bytes() == old


def test_kill_midway_leaves_no_destination(small: Path, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pymixtral import ops; from pymixtral.quantize import quantize\n"
        "encode, calls = ops.encode, []\n"
        "def killing(*arguments):\n"
        "    calls.append(None)\n"
        "    if len(calls) == 7: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return encode(*arguments)\n"
        "ops.encode = killing\n"
        "quantize(sys.argv[1], sys.argv[2], progress=False)\n"
    )
    result = subprocess.run([sys.executable, "-c", code, str(small), str(tmp_path / "m.gguf")], check=False)
    assert result.returncode == -9
    assert not (tmp_path / "m.gguf").exists()
    assert len(list(tmp_path.glob(".pymixtral-*.tmp"))) == 1
    quantize(small, tmp_path / "m.gguf", progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "m.gguf"]  # what was left is gone


@pytest.mark.parametrize("kind", ONE_TYPE)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.0.block_sparse_moe.experts.2.w2.weight"])
def test_non_finite_weight_is_refused_by_name(small: Path, tmp_path: Path, kind: str, value: float, name: str) -> None:
    tensors = make_tensors(SMALL, seed=2)
    tensors[name].reshape(-1)[33] = value
    write_safetensors(small / "model.safetensors", tensors)
    refused(CheckpointError, small, tmp_path / "m.gguf", name, "NaN or infinity", type=kind)


@pytest.mark.parametrize(
    "options", [{"type": kind} for kind in ("f32", "bf16", "q8_0", "q4_0")] + [{"target_bpw": 5.5}], ids=str
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_row_20_non_finite_weights_become_0_when_asked_for(
    small: Path, tmp_path: Path, options: dict[str, Any], dtype: str
) -> None:
    tensors = make_tensors(SMALL, seed=2)
    names = ("input_layernorm", "self_attn.q_proj", "block_sparse_moe.experts.2.w2")
    norm, query, expert = (f"model.layers.0.{name}.weight" for name in names)
    at = {norm: [(5, np.nan)], query: [(0, np.inf), (64 * 17 + 3, -np.inf)], expert: [(i, np.nan) for i in range(96)]}
    files = {}
    for name in ("damaged", "zeros"):
        for tensor, values in at.items():
            for i, value in values:
                tensors[tensor].reshape(-1)[i] = value if name == "damaged" else 0
        write_safetensors(small / "model.safetensors", tensors, dtype=dtype)
        files[name] = quantize(small, tmp_path / name, zero_nonfinite=True, progress=False, **options)
    assert (tmp_path / "damaged").read_bytes() == (tmp_path / "zeros").read_bytes()
    assert f"and are 0: 1 of {norm}, 2 of {query}, 96 of {expert}" in str(files["damaged"].notes)
    counts = {tensor.name: tensor.n_zeroed for tensor in files["damaged"].tensors if tensor.n_zeroed}
    assert counts == {"blk.0.attn_norm.weight": 1, "blk.0.attn_q.weight": 2, "blk.0.ffn_down_exps.weight": 96}
    assert "are 0" not in str(files["zeros"].notes)
    assert not any(tensor.n_zeroed for tensor in files["zeros"].tensors)


def test_row_20_a_tensor_without_a_single_number(small: Path, tmp_path: Path) -> None:
    tensors = make_tensors(SMALL, seed=2)
    tensors["lm_head.weight"][:] = np.nan
    write_safetensors(small / "model.safetensors", tensors)
    refused(CheckpointError, small, tmp_path / "m.gguf", "lm_head.weight", "zero_nonfinite=True")
    report = quantize(small, tmp_path / "m.gguf", target_bpw=6, zero_nonfinite=True, progress=False)
    assert f"{64 * 64} of lm_head.weight" in report.notes[-1]
    with GGUFFile(tmp_path / "m.gguf") as file:
        output = file.tensors["output.weight"]
        assert not quants.dequantize(output.data, output.type).any()


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0"])
def test_weight_beyond_f16_is_refused_by_name(small: Path, tmp_path: Path, kind: str) -> None:
    tensors = make_tensors(SMALL, seed=2)
    tensors["lm_head.weight"][3, 5] = 1e9
    write_safetensors(small / "model.safetensors", tensors)
    refused(CheckpointError, small, tmp_path / "m.gguf", "lm_head.weight", "1e+09", "use f32", type=kind)
    quantize(small, tmp_path / "m.gguf", "f32", progress=False)


def test_memory_does_not_grow_with_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight experts of 1 MB a matrix, chunks of 256 KB: 100 MB of model, some chunks of memory."""
    monkeypatch.setattr(writer, "CHUNK_WEIGHTS", 1 << 16)
    shape = Shape(hidden=256, ffn=1024, n_heads=4, head_dim=64, n_experts=8, n_layers=4, n_vocab=64)
    make_checkpoint(tmp_path / "hf", shape, seed=3)
    quantize(tmp_path / "hf", tmp_path / "warm.gguf", "f32", progress=False)
    tracemalloc.start()
    try:
        quantize(tmp_path / "hf", tmp_path / "m.gguf", "q8_0", progress=False)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "hf" / "model.safetensors").stat().st_size > 100_000_000
    assert peak < 4_000_000


def test_file_is_aligned_and_has_no_tail(tiny_q4_0: Path) -> None:
    with GGUFFile(tiny_q4_0) as file:
        assert file.alignment == 32
        assert sum(-(-tensor.data.nbytes // 32) * 32 for tensor in file.tensors.values()) < tiny_q4_0.stat().st_size
    last = GGUFReader(tiny_q4_0).tensors[-1]
    assert last.data_offset + last.n_bytes == tiny_q4_0.stat().st_size
    assert last.data_offset % 32 == 0
