"""Adapters of PEFT: a folder with adapter_config.json and adapter_model.safetensors.

Experts have the names of transformers 4, a module for each matrix, or of transformers 5, where those
of a layer are two parameters of three dimensions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pymixtral.arguments import shown
from pymixtral.errors import AdapterError
from pymixtral.files.names import FUSED_PARTS, TensorName
from pymixtral.files.safetensors import read_safetensors
from pymixtral.files.stored import StoredTensor
from pymixtral.model.adapter import Adapter, LowRank
from pymixtral.model.config import ModelConfig

from .pairs import LAYER, A, B, Module, Shapes, adapter_of, paired, reading, scaled, simple_pair
from .peft_config import FILE, PeftConfig

WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"

PREFIX = "base_model.model."
"""What PEFT puts before the names of the model's modules."""

_LAYER = re.compile(rf"(?:model\.)?layers\.{LAYER}\.(.+)", re.ASCII)
_EXPERT = re.compile(rf"block_sparse_moe\.experts\.{LAYER}\.(w[123])", re.ASCII)
_FUSED = ("mlp.experts", "mlp.experts.base_layer")
"""Modules of transformers 5 with two parameters. PEFT wraps one of these in the other, so that the
name does not tell which it is: the shapes do."""

MODULES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "mlp.gate": "ffn_gate_inp",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""GGUF's stem of each module of a layer."""

EXPERT_MODULES = {"w1": "ffn_gate", "w3": "ffn_up", "w2": "ffn_down"}
"""The same of an expert's."""

_OTHER_TENSORS = (
    ("lora_magnitude_vector", "the magnitudes of DoRA"),
    ("lora_embedding_", "a pair of an embedding"),
    ("token_adapter", "embeddings of tokens that were trained too"),
    (".bias", "a bias"),
    ("lm_head", "a change of the output matrix"),
    ("embed_tokens", "a change of the embedding"),
)
"""What names of tensors have that are not computed."""


def read(directory: Path, config: ModelConfig) -> Adapter:
    """Read an adapter.

    Args:
        directory: the folder.
        config: the numbers of the model that it is for.

    Returns:
        The adapter.

    Raises:
        AdapterError: it is broken, does not fit the model, or means what is not computed.
    """
    if not (directory / WEIGHTS).exists():
        if (directory / PICKLE).exists():
            raise pickled(directory / PICKLE)
        raise AdapterError(f"{directory / WEIGHTS}: expected it beside {FILE}, found none: download it, too")
    with reading(directory / FILE, directory / WEIGHTS):
        meaning = PeftConfig.read(directory / FILE)
        tensors = read_safetensors(directory / WEIGHTS)
        source = str(directory / WEIGHTS)
        for tensor in tensors:
            _check_name(source, tensor)
        pairs: dict[TensorName, LowRank] = {}
        for module, a, b in paired(source, tensors):
            for name, pair in _pairs(Shapes(source, config), meaning, module, a, b):
                if name in pairs:
                    raise AdapterError(f"{source}: {shown(module)}: expected one pair for {name}, found two")
                pairs[name] = pair
    if not pairs:
        raise AdapterError(f"{source}: expected pairs of lora_A and lora_B, found none")
    return adapter_of(pairs, str(directory))


def pickled(path: Path) -> AdapterError:
    """The error of a file that is a pickle, with the way to convert it."""
    target = path.with_suffix(".safetensors").name
    return AdapterError(
        f"{path}: expected {WEIGHTS}, found a Python pickle, which can run any code when it is read: convert it where "
        "you trust it, with torch and safetensors: python -c 'import torch, safetensors.torch as s; "
        f's.save_file(torch.load("{path.name}", "cpu", weights_only=1), "{target}")\''
    )


def _check_name(source: str, name: str) -> None:
    known = name.startswith(PREFIX) and name.endswith((A, B))
    for part, what in _OTHER_TENSORS:
        if part in name:
            raise AdapterError(f"{source}: tensor {shown(name)}: expected pairs, found {what}, which is not computed")
    if not known:
        raise AdapterError(
            f"{source}: tensor {shown(name)}: expected names from {PREFIX} to {A} or {B}, found this one, which is not "
            "computed"
        )


def _pairs(
    shapes: Shapes, meaning: PeftConfig, tensor: str, a: StoredTensor, b: StoredTensor
) -> Iterator[tuple[TensorName, LowRank]]:
    """The pairs of one module: of all experts in the form of transformers 5."""
    config, path = shapes.config, tensor.removeprefix(PREFIX)
    match = _LAYER.fullmatch(path)
    if not match:
        raise _unknown(shapes, tensor)
    layer, module = int(match[1]), match[2]
    if meaning.layers is not None and layer not in meaning.layers:
        raise AdapterError(
            f"{shapes.source}: tensor {shown(tensor)}: expected the layers of layers_to_transform, found this one"
        )
    if module in _FUSED and config.n_experts > 1:
        yield from _fused_pairs(shapes, meaning, layer, tensor, a, b)
        return
    if expert := _EXPERT.fullmatch(module):
        found = Module(TensorName(EXPERT_MODULES[expert[2]], layer, expert=int(expert[1])))
    elif module in MODULES:
        heads = {"attn_q": config.n_heads, "attn_k": config.n_kv_heads}.get(MODULES[module], 0)
        found = Module(TensorName(MODULES[module], layer), heads)
    else:
        raise _unknown(shapes, tensor)
    yield found.name, simple_pair(shapes, found, tensor, a, b, lambda rank: meaning.scale(path, rank))


def _unknown(shapes: Shapes, tensor: str) -> AdapterError:
    return AdapterError(
        f"{shapes.source}: tensor {shown(tensor)}: expected attention, router, experts or feed-forward of a layer, "
        "found a module that is not computed"
    )


def _fused_pairs(
    shapes: Shapes, meaning: PeftConfig, layer: int, tensor: str, a: StoredTensor, b: StoredTensor
) -> Iterator[tuple[TensorName, LowRank]]:
    """The pairs of all experts.

    A holds [n_experts * rank, cols], the experts outermost; B [rows, rank * n_experts], the experts
    innermost. gate_up_proj has the rows of gate, then those of up. PEFT before 0.19 took rows for
    columns, so that A is of the rows and B of the columns.
    """
    c, n = shapes.config, shapes.config.n_experts
    shapes.of(TensorName("ffn_down", layer, expert=0), tensor)
    forms = {"gate_up_proj": (2 * c.ffn, c.hidden), "down_proj": (c.hidden, c.ffn)}
    found = (b.shape[0], a.shape[1]) if len(a.shape) == len(b.shape) == 2 else (0, 0)
    fitting = [
        (parameter, swapped)
        for parameter, (rows, cols) in forms.items()
        for swapped in (False, True)
        if found == ((cols, rows) if swapped else (rows, cols))
    ]
    if not fitting:
        expected = " or ".join(f"{rows} x {cols}" for rows, cols in forms.values())
        raise AdapterError(
            f"{shapes.source}: tensor {shown(tensor)}: expected a pair for experts of {expected}, found shapes "
            f"{list(a.shape)} and {list(b.shape)}: use the adapter's own base model"
        )
    rank, rest = divmod(a.shape[0], n)
    if rest or b.shape[1] != a.shape[0]:
        raise AdapterError(
            f"{shapes.source}: tensor {shown(tensor)}: expected a rank for each of {n} experts, found shapes "
            f"{list(a.shape)} and {list(b.shape)}: use the adapter's own base model"
        )
    shapes.check_rank(rank, tensor)
    # Both ways fit where the experts are square, or half as wide as the model.
    parameter, swapped = next((one for one in fitting if one[1] == meaning.swapped), fitting[0])
    factor = meaning.scale(f"model.layers.{layer}.mlp.experts.{parameter}", rank)
    every_a = a.floats().reshape(n, rank, a.shape[1])
    every_b = b.floats().reshape(b.shape[0], rank, n)
    stems = FUSED_PARTS if parameter == "gate_up_proj" else ("ffn_down",)
    part = forms[parameter][0] // len(stems)
    for e in range(n):
        inner, outer = every_a[e], every_b[:, :, e].T
        if swapped:
            inner, outer = np.ascontiguousarray(outer), inner
        for i, stem in enumerate(stems):
            yield (
                TensorName(stem, layer, expert=e),
                LowRank(inner, scaled(outer[:, i * part : (i + 1) * part], factor)),
            )
