"""An adapter as a folder that PEFT reads, with the names of transformers 4, which both versions take."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from pymixtral.arrays import F32
from pymixtral.errors import OutputError
from pymixtral.files.atomic import check_space, replacing_all
from pymixtral.files.names import FFN_STEMS, TensorName
from pymixtral.model.adapter import Adapter, LowRank, adapted_shape
from pymixtral.model.config import ModelConfig

from .pairs import A, B, rope_rows
from .peft import EXPERT_MODULES, MODULES, PREFIX, WEIGHTS
from .peft_config import FILE

_EXPERT_NAMES = {stem: module for module, stem in EXPERT_MODULES.items()}
_NAMES = {stem: module for module, stem in MODULES.items() if module != "mlp.gate"}


def paths(directory: Path) -> tuple[Path, Path]:
    """The two files of a folder."""
    return directory / FILE, directory / WEIGHTS


def write(adapter: Adapter, config: ModelConfig, directory: Path, *, force: bool) -> None:
    """Write an adapter.

    lora_alpha is the rank, so that the scale is 1: that of each pair is in its lora_B. Router
    and experts all have one rank, and a layer that has an expert's pair has those of all experts, with
    zeros for what is missing: PEFT with transformers 5 fuses them. Where other ranks differ,
    rank_pattern and alpha_pattern say so.

    Args:
        adapter: one that fits the model.
        config: the model's numbers.
        directory: the folder; it is made if it is not there.
        force: replace files that exist.

    Raises:
        OutputError: it cannot be written.
    """
    pairs = _filled(adapter, config)
    header, n_bytes = _header(pairs, config)
    made = _made(directory)
    try:
        check_space(directory / WEIGHTS, len(header) + n_bytes)
        with replacing_all(paths(directory), force=force) as (settings, weights):
            with weights.open("wb") as out:
                out.write(len(header).to_bytes(8, "little") + header)
                for _, array in _tensors(pairs, config):
                    out.write(array.reshape(-1).data)
            settings.write_text(json.dumps(_settings(pairs, config), indent=2) + "\n", encoding="utf-8")
    except BaseException:
        if made:
            with suppress(OSError):  # something else is there now
                directory.rmdir()
        raise


def _made(directory: Path) -> bool:
    """Makes the folder; False if it is there already."""
    try:
        directory.mkdir()
    except FileExistsError:
        return False
    except OSError as error:
        raise OutputError(
            f"{directory}: expected to make the folder, found an error ({error.strerror}): choose another place"
        ) from error
    return True


def _filled(adapter: Adapter, config: ModelConfig) -> dict[TensorName, LowRank]:
    """The pairs, with those that PEFT needs beside them."""
    fused = [name for name in adapter.pairs if name.expert is not None or name.stem == "ffn_gate_inp"]
    rank = max((len(adapter.pairs[name].a) for name in fused), default=0)
    found = dict(adapter.pairs)
    for layer in {name.layer for name in fused if name.expert is not None}:
        for expert in range(config.n_experts):
            for stem in FFN_STEMS:
                name = TensorName(stem, layer, expert=expert)
                rows, cols = adapted_shape(name, config) or (0, 0)
                found.setdefault(name, LowRank(np.zeros((rank, cols), np.float32), np.zeros((rank, rows), np.float32)))
    for name in fused:
        found[name] = LowRank(*(np.pad(array, ((0, rank - len(array)), (0, 0))) for array in found[name]))
    return {name: found[name] for name in sorted(found, key=str)}


def _module(name: TensorName, config: ModelConfig) -> str:
    """The name of a module of the model."""
    layer = f"model.layers.{name.layer}"
    if name.expert is not None and config.n_experts > 1:
        return f"{layer}.block_sparse_moe.experts.{name.expert}.{_EXPERT_NAMES[name.stem]}"
    return f"{layer}.{_NAMES[name.stem]}"


def _tensors(pairs: Mapping[TensorName, LowRank], config: ModelConfig) -> Iterator[tuple[str, F32]]:
    """Names and float32 [rank, cols] or [rows, rank], rows in the order of Hugging Face."""
    for name, (a, b) in pairs.items():
        module = PREFIX + _module(name, config)
        yield module + A, a.astype("<f4", copy=False)
        heads = {"attn_q": config.n_heads, "attn_k": config.n_kv_heads}.get(name.stem)
        rows = b.T
        if heads:
            rows = np.empty_like(rows)
            rows[rope_rows(heads, len(rows))] = b.T
        yield module + B, np.ascontiguousarray(rows, "<f4")


def _header(pairs: Mapping[TensorName, LowRank], config: ModelConfig) -> tuple[bytes, int]:
    """The header of the tensors' file, padded to 8 bytes, and the bytes of its data."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (a, b) in pairs.items():
        module = PREFIX + _module(name, config)
        for key, shape in ((module + A, a.shape), (module + B, b.shape[::-1])):
            end = offset + 4 * shape[0] * shape[1]
            entries[key] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}
            offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8), offset


def _settings(pairs: Mapping[TensorName, LowRank], config: ModelConfig) -> dict[str, object]:
    ranks = {_module(name, config): len(pair.a) for name, pair in pairs.items()}
    fused = [len(pair.a) for name, pair in pairs.items() if name.expert is not None]
    ((rank, _),) = Counter(fused or ranks.values()).most_common(1)
    others = {module: found for module, found in ranks.items() if found != rank}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": _targets(ranks, config),
    }


def _targets(ranks: Mapping[str, int], config: ModelConfig) -> list[str]:
    """The ends of the modules' names where all layers and experts have them, else the whole names."""
    found = Counter(module.rpartition(".")[2] for module in ranks)
    each = {end: config.n_experts if end in EXPERT_MODULES else 1 for end in found}
    if all(n == config.n_layers * each[end] for end, n in found.items()):
        return sorted(found)
    return list(ranks)
