"""Adapters in Mistral's own form: params.json and lora.safetensors, as mistral-finetune writes them.

Names are those of mistral-inference, and rows of queries and keys are in the order that GGUF has too.
"""

from __future__ import annotations

import re
from pathlib import Path

from pymixtral.arguments import shown
from pymixtral.errors import AdapterError
from pymixtral.files.names import TensorName
from pymixtral.files.safetensors import read_safetensors
from pymixtral.files.strict_json import read_object
from pymixtral.model.adapter import MAX_RANK, Adapter, LowRank
from pymixtral.model.config import ModelConfig

from .pairs import LAYER, A, B, Module, Shapes, adapter_of, paired, reading, simple_pair

WEIGHTS = "lora.safetensors"
PARAMS = "params.json"

_MAX_SCALING = 1e6
_LAYER = re.compile(rf"layers\.{LAYER}\.(attention\.w[qkvo]|feed_forward\.(?:gate|w[123]))", re.ASCII)
_EXPERT = re.compile(rf"layers\.{LAYER}\.feed_forward\.experts\.{LAYER}\.(w[123])", re.ASCII)

_FFN = {"w1": "ffn_gate", "w3": "ffn_up", "w2": "ffn_down"}
_STEMS = {
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_output",
    "feed_forward.gate": "ffn_gate_inp",
    **{f"feed_forward.{weight}": stem for weight, stem in _FFN.items()},
}


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
    with reading(directory / PARAMS, directory / WEIGHTS):
        rank, scaling = _read_params(directory / PARAMS)
        tensors = read_safetensors(directory / WEIGHTS)
        source = str(directory / WEIGHTS)
        shapes = Shapes(source, config)
        pairs: dict[TensorName, LowRank] = {}
        modules = {name: _module(source, name) for name in tensors}
        for tensor, a, b in paired(source, tensors):
            found = modules[tensor + A]
            pair = simple_pair(shapes, found, tensor, a, b, lambda _: scaling)
            if len(pair.a) != rank:
                raise AdapterError(
                    f"{source}: tensor {shown(tensor)}: expected rank {rank}, as {PARAMS} says, found {len(pair.a)}"
                )
            pairs[found.name] = pair
    if not pairs:
        raise AdapterError(f"{source}: expected pairs of lora_A and lora_B, found none")
    return adapter_of(pairs, str(directory))


def _read_params(path: Path) -> tuple[int, float]:
    """Rank and scale of all pairs."""
    if not path.exists():
        raise AdapterError(
            f"{path}: expected it beside {WEIGHTS}, found none: its rank and scaling are needed, such as "
            '{"lora": {"rank": 64, "scaling": 2.0}}'
        )
    found = read_object(path).get("lora")
    rank, scaling = (found.get("rank"), found.get("scaling")) if isinstance(found, dict) else (None, None)
    if type(rank) is not int or not 1 <= rank <= MAX_RANK:
        raise AdapterError(f"{path}: lora: expected a rank from 1 to {MAX_RANK}, found {shown(rank)}")
    if type(scaling) not in (int, float) or not abs(scaling) <= _MAX_SCALING:  # type: ignore[arg-type]
        raise AdapterError(
            f"{path}: lora: expected a scaling from {-_MAX_SCALING:g} to {_MAX_SCALING:g}, found {shown(scaling)}"
        )
    return rank, float(scaling)  # type: ignore[arg-type]


def _module(source: str, name: str) -> Module:
    stem = name.removesuffix(A).removesuffix(B)
    if stem != name:
        if match := _EXPERT.fullmatch(stem):
            return Module(TensorName(_FFN[match[3]], int(match[1]), expert=int(match[2])))
        if match := _LAYER.fullmatch(stem):
            return Module(TensorName(_STEMS[match[2]], int(match[1])))
    raise AdapterError(
        f"{source}: tensor {shown(name)}: expected pairs of attention, router, experts or feed-forward of a layer, "
        "found this one, which is not computed"
    )
