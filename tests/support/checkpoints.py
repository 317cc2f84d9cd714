"""Hugging Face checkpoints of any small shape, written without torch: input for the quantizer's and
the model's tests.

The weights come from integers of PCG64 alone, so that a seed gives the same bytes with every NumPy
on every machine; the goldens in tests/goldens depend on it.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sentencepiece import sentencepiece_model_pb2

from pymixtral.arrays import F32, F64, I64
from support.paths import DATA

TINY_MIXTRAL = DATA / "tiny-mixtral"
"""A small Mixtral trained on fairy tales: 4 layers x 256, 8 experts, bfloat16, with its
SentencePiece vocabulary of 4096.
"""

TINY_MIXTRAL_VOCAB = 4096

ONE_TYPE = ("f32", "bf16", "f16", "q8_0", "q5_k", "q4_k", "q3_k")
"""The recipes that give all matrices one type."""


@dataclass(frozen=True)
class Shape:
    """The numbers of a config.json. The defaults suit every weight type (multiples of 32) and use
    tiny-mixtral's vocabulary.
    """

    hidden: int = 64
    ffn: int = 96
    n_layers: int = 2
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 16
    n_experts: int = 4
    """0: a dense Mistral."""
    n_experts_used: int = 2
    n_vocab: int = TINY_MIXTRAL_VOCAB
    n_ctx: int = 1024
    window: int = 0
    """Sliding window in positions; 0: none."""
    rope_base: float = 1e6
    rms_eps: float = 1e-5
    rope_scaling: tuple[str, float, int] | None = None
    """Kind, factor, positions before scaling."""


GOLDEN_MODELS: dict[str, tuple[Shape, int, int]] = {
    "mixtral-5x3": (
        Shape(
            hidden=160,
            ffn=352,
            n_layers=3,
            n_heads=6,
            n_kv_heads=2,
            head_dim=32,
            n_experts=5,
            n_experts_used=3,
            n_vocab=320,
        ),
        11,
        200,
    ),
    "mixtral-2x1": (Shape(n_experts=2, n_experts_used=1, n_vocab=320), 12, 120),
    "mixtral-16x4": (Shape(n_experts=16, n_experts_used=4, n_vocab=320), 13, 120),
    "mistral-window": (
        Shape(
            hidden=96,
            ffn=160,
            n_layers=3,
            n_heads=8,
            n_kv_heads=2,
            head_dim=16,
            n_experts=0,
            n_vocab=320,
            window=70,
            rope_base=1e4,
        ),
        14,
        200,
    ),
    "llama-linear": (
        Shape(
            hidden=96,
            ffn=160,
            n_heads=6,
            n_kv_heads=6,
            n_experts=0,
            n_vocab=320,
            rope_base=1e4,
            rope_scaling=("linear", 4.0, 256),
        ),
        15,
        120,
    ),
    "mistral-yarn": (
        Shape(
            hidden=96,
            ffn=160,
            n_heads=4,
            n_kv_heads=2,
            head_dim=32,
            n_experts=0,
            n_vocab=320,
            rope_base=1e4,
            rope_scaling=("yarn", 8.0, 1024),
        ),
        16,
        200,
    ),
    "mixtral-llama3": (
        Shape(
            hidden=96,
            ffn=160,
            n_heads=4,
            n_kv_heads=2,
            head_dim=32,
            n_vocab=320,
            rope_base=5e5,
            rope_scaling=("llama3", 8.0, 256),
        ),
        17,
        200,
    ),
}
"""Name of the file in tests/goldens: shape, seed and number of tokens. Beside them
tests/goldens/tiny-mixtral.npz is TINY_MIXTRAL's.
"""


def config_json(shape: Shape, *, dtype: str = "float32") -> dict[str, object]:
    """config.json as Mixtral's and Mistral's published checkpoints write it."""
    dense = shape.n_experts == 0
    config: dict[str, object] = {
        "architectures": ["MistralForCausalLM" if dense else "MixtralForCausalLM"],
        "model_type": "mistral" if dense else "mixtral",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.ffn,
        "max_position_embeddings": shape.n_ctx,
        "num_attention_heads": shape.n_heads,
        "num_hidden_layers": shape.n_layers,
        "num_key_value_heads": shape.n_kv_heads,
        "rms_norm_eps": shape.rms_eps,
        "rope_theta": shape.rope_base,
        "sliding_window": shape.window or None,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "vocab_size": shape.n_vocab,
    }
    if shape.rope_scaling:
        kind, factor, before = shape.rope_scaling
        config["rope_scaling"] = {
            "rope_type": kind,
            "factor": factor,
            **({"original_max_position_embeddings": before} if kind != "linear" else {}),
            **({"low_freq_factor": 1.0, "high_freq_factor": 4.0} if kind == "llama3" else {}),
        }
    if not dense:
        config |= {"num_local_experts": shape.n_experts, "num_experts_per_tok": shape.n_experts_used}
    return config


def tensor_shapes(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of all tensors, in the order in which make_checkpoint fills and writes them."""
    query, key_value = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
    yield "model.embed_tokens.weight", (shape.n_vocab, shape.hidden)
    for n in range(shape.n_layers):
        layer = f"model.layers.{n}"
        yield f"{layer}.input_layernorm.weight", (shape.hidden,)
        yield f"{layer}.self_attn.q_proj.weight", (query, shape.hidden)
        yield f"{layer}.self_attn.k_proj.weight", (key_value, shape.hidden)
        yield f"{layer}.self_attn.v_proj.weight", (key_value, shape.hidden)
        yield f"{layer}.self_attn.o_proj.weight", (shape.hidden, query)
        yield f"{layer}.post_attention_layernorm.weight", (shape.hidden,)
        if shape.n_experts == 0:
            yield f"{layer}.mlp.gate_proj.weight", (shape.ffn, shape.hidden)
            yield f"{layer}.mlp.up_proj.weight", (shape.ffn, shape.hidden)
            yield f"{layer}.mlp.down_proj.weight", (shape.hidden, shape.ffn)
            continue
        yield f"{layer}.block_sparse_moe.gate.weight", (shape.n_experts, shape.hidden)
        for e in range(shape.n_experts):
            expert = f"{layer}.block_sparse_moe.experts.{e}"
            yield f"{expert}.w1.weight", (shape.ffn, shape.hidden)
            yield f"{expert}.w2.weight", (shape.hidden, shape.ffn)
            yield f"{expert}.w3.weight", (shape.ffn, shape.hidden)
    yield "model.norm.weight", (shape.hidden,)
    yield "lm_head.weight", (shape.n_vocab, shape.hidden)


def bell(generator: np.random.PCG64, size: tuple[int, ...]) -> F64:
    """Nearly normal values of mean 0 and standard deviation 1, of which the largest is 3.46.

    Each is the sum of four 16-bit uniforms, and nothing that a math library could round in its own
    way.
    """
    raw = np.asarray(generator.random_raw(math.prod(size)))
    total: I64 = raw.view(np.uint16).reshape(*size, 4).sum(axis=-1, dtype=np.int64)
    values: F64 = (total - 2 * 65535).astype(np.float64) * (math.sqrt(3) / 65536)
    return values


def make_tensors(shape: Shape, *, seed: int) -> dict[str, F32]:
    """The weights of a checkpoint, float32: standard deviation 1/sqrt(fan-in), embedding rows 1,
    norms 1 +- 0.1.
    """
    generator = np.random.PCG64(seed)

    tensors: dict[str, F32] = {}
    for name, size in tensor_shapes(shape):
        if len(size) == 1:
            values = 1 + 0.1 * bell(generator, size)
        elif "embed" in name:
            values = bell(generator, size)
        else:
            values = bell(generator, size) / math.sqrt(size[1])
        tensors[name] = values.astype(np.float32)
    return tensors


def _f32(values: F32) -> bytes:
    return values.astype("<f4").tobytes()


def _f16(values: F32) -> bytes:
    return values.astype("<f2").tobytes()


def _bf16(values: F32) -> bytes:
    bits: NDArray[np.uint32] = values.astype("<f4").view("<u4")
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.dtype("<u2")).tobytes()


_ENCODINGS: dict[str, tuple[str, Callable[[F32], bytes]]] = {
    "float32": ("F32", _f32),
    "float16": ("F16", _f16),
    "bfloat16": ("BF16", _bf16),
}


def write_safetensors(path: Path, tensors: dict[str, F32], *, dtype: str = "float32") -> None:
    """One safetensors file: 8 bytes of header length, the JSON header, the data without gaps in the
    order of `tensors`.

    dtype: "float32", "float16" or "bfloat16", rounded to nearest even.
    """
    name_of_type, encode = _ENCODINGS[dtype]
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    chunks: list[bytes] = []
    end = 0
    for name, values in tensors.items():
        chunks.append(encode(values))
        begin, end = end, end + len(chunks[-1])
        header[name] = {"dtype": name_of_type, "shape": list(values.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(b"".join([struct.pack("<Q", len(text)), text, *chunks]))


def make_checkpoint(
    directory: Path, shape: Shape, *, seed: int, dtype: str = "float32", shards: int = 1
) -> dict[str, F32]:
    """Writes a Hugging Face Mixtral (a Mistral when n_experts is 0) with random weights into
    `directory`, made if need be.

    config.json, the weights in one file or in shards with their index, and tokenizer.model:
    tiny-mixtral's where the vocabulary has its size, one of characters where it is smaller. Returns
    the weights as they were before rounding to `dtype`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tensors = make_tensors(shape, seed=seed)
    (directory / "config.json").write_text(json.dumps(config_json(shape, dtype=dtype), indent=2))
    if shape.n_vocab == TINY_MIXTRAL_VOCAB:
        shutil.copy(TINY_MIXTRAL / "tokenizer.model", directory)
    elif shape.n_vocab < TINY_MIXTRAL_VOCAB:
        write_tokenizer(directory, shape.n_vocab)
    if shards == 1:
        write_safetensors(directory / "model.safetensors", tensors, dtype=dtype)
        return tensors
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[len(names) * i // shards : len(names) * (i + 1) // shards]}
        write_safetensors(directory / file, part, dtype=dtype)
        weight_map |= dict.fromkeys(part, file)
    total = sum(values.size for values in tensors.values()) * (4 if dtype == "float32" else 2)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return tensors


def write_tokenizer(directory: Path, n_vocab: int) -> None:
    """Writes a tokenizer.model whose pieces are single characters."""
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # protobuf makes it at import
    model.trainer_spec.model_type = model.trainer_spec.BPE
    model.normalizer_spec.remove_extra_whitespaces = False
    for i in range(n_vocab):
        piece, kind = {0: ("<unk>", 2), 1: ("<s>", 3), 2: ("</s>", 3), 3: ("\u2581", 1)}.get(i, (chr(93 + i), 1))
        model.pieces.add(piece=piece, score=-i, type=kind)
    (directory / "tokenizer.model").write_bytes(model.SerializeToString())


def read_tensors(directory: Path) -> dict[str, F32]:
    """All tensors of a checkpoint directory (F32, F16 or BF16, single or sharded), widened to
    float32.
    """
    tensors: dict[str, F32] = {}
    for path in sorted(directory.glob("*.safetensors")):
        raw = path.read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        header = json.loads(raw[8 : 8 + length])
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            data = raw[8 + length + begin : 8 + length + end]
            if entry["dtype"] == "BF16":
                values = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
            else:
                values = np.frombuffer(data, {"F32": "<f4", "F16": "<f2"}[entry["dtype"]]).astype(np.float32)
            tensors[name] = values.reshape(entry["shape"])
    return tensors
