"""PEFT's adapter_config.json: which scale each pair has, and what is not computed.

Format: PEFT's LoraConfig, up to version 0.21.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pymixtral.arguments import shown
from pymixtral.errors import AdapterError
from pymixtral.files.strict_json import read_object
from pymixtral.model.adapter import MAX_RANK

from .patterns import Pattern, PatternError

FILE = "adapter_config.json"

MAX_PATTERNS = 4096
"""Of alpha_pattern. EVA writes one for each module: a Mixtral 8x22B has 1624."""

MAX_MATCHED = 16
"""Of these, patterns that are more than the name of a module. People write a few."""

_MAX_ALPHA = 1e6

_REFUSED = {
    "use_dora": "DoRA, which scales the rows of the sum",
    "bias": "biases that were trained too",
    "lora_bias": "biases of the pairs",
    "modules_to_save": "whole modules that were trained too",
    "fan_in_fan_out": "transposed weights",
    "layer_replication": "layers that occur several times",
    "trainable_token_indices": "embeddings of tokens that were trained too",
    "alora_invocation_tokens": "an adapter that begins at certain tokens (aLoRA)",
    "use_qalora": "pairs over groups of columns (QALoRA)",
    "use_bdlora": "block-diagonal pairs (BD-LoRA)",
    "arrow_config": "routing among adapters (Arrow)",
    "kasa_config": "KaSA",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
    "megatron_config": "layers of Megatron",
    "ensure_weight_tying": "tied embeddings that were trained too",
}
"""What changes the computation, with what it is."""

_IGNORED = frozenset(
    (
        "peft_type",
        "task_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "r",
        "target_modules",
        "exclude_modules",
        "lora_alpha",
        "lora_dropout",
        "use_rslora",
        "init_lora_weights",
        "layers_to_transform",
        "layers_pattern",
        "rank_pattern",
        "alpha_pattern",
        "megatron_core",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "qalora_group_size",
        "target_parameters",
        "runtime_config",
    )
)
"""What is read elsewhere, or tells of the training alone."""

_KEEPING_INITS = ("gaussian", "eva", "orthogonal", "mica")
"""Initializations that leave the base model's weights as they are."""

_PARTS = frozenset(
    (
        "model",
        "layers",
        "self_attn",
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "block_sparse_moe",
        "gate",
        "experts",
        "w1",
        "w2",
        "w3",
        "mlp",
        "gate_proj",
        "up_proj",
        "down_proj",
        "gate_up_proj",
        "base_layer",
        "weight",
    )
)
"""What the names of modules consist of, beside numbers."""


@dataclass(frozen=True)
class PeftConfig:
    """What an adapter's tensors mean.

    Attributes:
        source: the file, for messages.
        ranks: those that a pair may have.
        alpha: of modules that no pattern matches.
        root: whether alpha is over the root of the rank (rsLoRA).
        layers: those that are adapted; None: any.
        swapped: whether PEFT wrote it before 0.19, which took the rows of experts' parameters of three dimensions
            for columns.
        named: alpha of modules by name, or by the end of it, with its place among all patterns.
        patterns: other patterns with their alpha, likewise.
    """

    source: str
    ranks: frozenset[int]
    alpha: float
    root: bool
    layers: frozenset[int] | None
    swapped: bool
    named: Mapping[str, tuple[int, float]]
    patterns: tuple[tuple[int, Pattern, float], ...]

    @classmethod
    def read(cls, path: Path) -> PeftConfig:
        """Read adapter_config.json.

        Args:
            path: the file.

        Raises:
            AdapterError: a value makes no sense, or means what is not computed.
            CheckpointError: it is no JSON.
        """
        values, source = read_object(path), str(path)
        _refuse(values, source)
        alpha, root = values.get("lora_alpha", 8), values.get("use_rslora", False)
        if type(root) is not bool:
            raise _wrong(source, "use_rslora", "true or false", root)
        rank_pattern, alpha_pattern = (_object(values, source, key) for key in ("rank_pattern", "alpha_pattern"))
        ranks = [_rank(source, "r", values.get("r", 8))]
        ranks += [_rank(source, "rank_pattern", rank) for rank in rank_pattern.values()]
        named, patterns = _patterns(alpha_pattern, source)
        return cls(
            source,
            frozenset(ranks),
            _alpha(source, "lora_alpha", alpha),
            root,
            _layers(values.get("layers_to_transform"), source),
            _is_old(values.get("peft_version")),
            named,
            patterns,
        )

    def scale(self, module: str, rank: int) -> float:
        """What the product of a pair is multiplied by.

        Args:
            module: the name of the module or parameter in the model, such as model.layers.0.self_attn.q_proj.
            rank: of the pair.

        Raises:
            AdapterError: for a rank that the file does not have, and patterns that take too long.
        """
        if rank not in self.ranks:
            known = ", ".join(map(str, sorted(self.ranks)[:8])) + ", ..." * (len(self.ranks) > 8)
            raise AdapterError(
                f"{self.source}: r, rank_pattern: expected the rank of {module} among {known}, found {rank} in the "
                "tensors: the two files do not belong together"
            )
        begins = [0, *(i + 1 for i, character in enumerate(module) if character == ".")]
        found = [self.named[module[i:]] for i in begins if module[i:] in self.named]
        try:
            found += [(place, alpha) for place, pattern, alpha in self.patterns if pattern.matches(module, begins)]
        except PatternError as error:
            raise AdapterError(f"{self.source}: alpha_pattern: {error}: name the modules") from None
        alpha = min(found)[1] if found else self.alpha  # the first that matches
        return alpha / (math.sqrt(rank) if self.root else rank)


def _refuse(values: Mapping[str, Any], source: str) -> None:
    kind = values.get("peft_type")
    if kind != "LORA":
        raise _wrong(source, "peft_type", "'LORA', the only one that is computed", kind)
    for key, value in values.items():
        neutral = not value or (key == "bias" and value == "none")
        if key in _REFUSED and not neutral:
            raise _wrong(source, key, "none", value, f": {_REFUSED[key]}: this is not computed")
        if key not in _REFUSED and key not in _IGNORED and not neutral:
            raise _wrong(source, key, "keys of LoRA in PEFT 0.21", value, ", which may change what is computed")
    init = values.get("init_lora_weights", True)
    if type(init) is not bool and init is not None and init not in _KEEPING_INITS:
        raise _wrong(
            source,
            "init_lora_weights",
            f"true, false or one of {', '.join(_KEEPING_INITS)}",
            init,
            ", which changes the base model's weights too: save the adapter with PEFT's "
            "path_initial_model_for_weight_conversion",
        )


def _wrong(source: str, key: str, expected: str, found: object, more: str = "") -> AdapterError:
    return AdapterError(f"{source}: {shown(key)}: expected {expected}, found {shown(found)}{more}")


def _object(values: Mapping[str, Any], source: str, key: str) -> Mapping[str, Any]:
    value = values.get(key) or {}
    if not isinstance(value, dict):
        raise _wrong(source, key, "an object", value)
    return value


def _rank(source: str, key: str, value: object) -> int:
    if type(value) is not int or not 1 <= value <= MAX_RANK:
        raise _wrong(source, key, f"ranks from 1 to {MAX_RANK}", value)
    return value


def _alpha(source: str, key: str, value: object) -> float:
    if type(value) not in (int, float) or not abs(value) <= _MAX_ALPHA:  # type: ignore[arg-type]
        raise _wrong(source, key, f"numbers from {-_MAX_ALPHA:g} to {_MAX_ALPHA:g}", value)
    return float(value)  # type: ignore[arg-type]


def _layers(value: object, source: str) -> frozenset[int] | None:
    if value is None or value == []:
        return None
    layers = value if isinstance(value, list) else [value]
    if not all(type(layer) is int and layer >= 0 for layer in layers):
        raise _wrong(source, "layers_to_transform", "numbers of layers", value)
    return frozenset(layers)


def _is_old(version: object) -> bool:
    """Whether this is a version of PEFT before 0.19; before 0.18 none was written."""
    match = re.match(r"0\.(\d{1,4})\.", version, re.ASCII) if isinstance(version, str) else None
    return version is None or (match is not None and int(match[1]) < 19)


def _patterns(
    values: Mapping[str, Any], source: str
) -> tuple[dict[str, tuple[int, float]], tuple[tuple[int, Pattern, float], ...]]:
    if len(values) > MAX_PATTERNS:
        raise AdapterError(f"{source}: alpha_pattern: expected at most {MAX_PATTERNS} patterns, found {len(values)}")
    named: dict[str, tuple[int, float]] = {}
    patterns: list[tuple[int, Pattern, float]] = []
    for place, (key, value) in enumerate(values.items()):
        alpha = _alpha(source, "alpha_pattern", value)
        # A dot stands for any character, but in no name does another one than a dot fit here.
        if all(part in _PARTS or (part.isascii() and part.isdecimal()) for part in key.split(".")):
            named[key] = place, alpha
            continue
        try:
            patterns.append((place, Pattern(key), alpha))
        except PatternError as error:
            raise AdapterError(
                f"{source}: alpha_pattern: {shown(key)}: expected a plain pattern, but {error}: name the modules"
            ) from None
    if len(patterns) > MAX_MATCHED:
        raise AdapterError(
            f"{source}: alpha_pattern: expected names of modules and at most {MAX_MATCHED} other patterns, found "
            f"{len(patterns)}: name the modules"
        )
    return named, tuple(patterns)
