"""Adapters of PEFT, compared with what its merge_and_unload makes of them; hostile ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pymixtral import AdapterError
from pymixtral.adapters.opening import open_adapter
from pymixtral.files.names import TensorName
from pymixtral.model.adapter import MAX_RANK, Adapter
from support.adapters import ADAPTERS, CONFIG, case_config, deltas, difference, model_config
from support.checkpoints import write_safetensors

CASES = sorted(path.name for path in ADAPTERS.iterdir())
Q = "base_model.model.model.layers.0.self_attn.q_proj"
Tensors = dict[str, Any]


@pytest.mark.parametrize("case", CASES)
def test_changes_what_merge_and_unload_changes(case: str) -> None:
    assert difference(open_adapter(ADAPTERS / case, case_config(case)), case) < 1e-6


@pytest.mark.parametrize("case", CASES)
def test_every_adapter_fits_its_model(case: str) -> None:
    open_adapter(ADAPTERS / case, case_config(case)).check(case_config(case))


def changed(
    tmp_path: Path,
    case: str,
    settings: dict[str, Any] | None = None,
    change: Callable[[Tensors], object] | None = None,
) -> Path:
    """A copy of an adapter with other settings and tensors."""
    folder = shutil.copytree(ADAPTERS / case, tmp_path / "adapter")
    values = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(values | (settings or {})))
    if change:
        tensors = load_file(folder / "adapter_model.safetensors")
        change(tensors)
        save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def refused(folder: Path, *words: str, case: str = "v4-all") -> None:
    with pytest.raises(AdapterError) as caught:
        open_adapter(folder, case_config(case))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    for word in (str(folder), *words):
        assert word in message, message


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_numbers_of_16_bits_are_widened(tmp_path: Path, dtype: str) -> None:
    folder = shutil.copytree(ADAPTERS / "v4-all", tmp_path / "adapter")
    tensors = load_file(folder / "adapter_model.safetensors")
    write_safetensors(folder / "adapter_model.safetensors", tensors, dtype=dtype)
    found, exact = (deltas(open_adapter(path, case_config("v4-all"))) for path in (folder, ADAPTERS / "v4-all"))
    largest = max(np.abs(found[name] - exact[name]).max() for name in exact)
    assert 0 < largest < 0.01


@pytest.mark.parametrize(("hidden", "ffn"), [(16, 16), (16, 8)])
def test_square_experts_are_read_as_the_version_wrote_them(tmp_path: Path, hidden: int, ffn: int) -> None:
    """Where both orders of rows and columns fit, PEFT's version says which it is."""
    config = model_config(CONFIG | {"hidden_size": hidden, "intermediate_size": ffn})
    random, n = np.random.default_rng(5), config.n_experts
    a, b = random.standard_normal((n, hidden)), random.standard_normal((16, n))
    name = "base_model.model.model.layers.0.mlp.experts"
    stem = "ffn_down" if ffn == hidden else "ffn_gate"
    found = {}
    for version in ("0.18.1", "0.21.2"):
        folder = tmp_path / version
        folder.mkdir()
        settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "peft_version": version}
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        tensors = {f"{name}.lora_A.weight": a.astype(np.float32), f"{name}.lora_B.weight": b.astype(np.float32)}
        save_file(tensors, folder / "adapter_model.safetensors")
        found[version] = deltas(open_adapter(folder, config))[f"blk.0.{stem}.2.weight"]
    whole = np.outer(b[:, 2], a[2])
    assert np.allclose(found["0.21.2"], whole[: config.ffn if stem == "ffn_gate" else None], atol=1e-6)
    assert np.allclose(found["0.18.1"], whole.T[: config.ffn if stem == "ffn_gate" else None], atol=1e-6)


def test_experts_whose_pair_is_zero_have_none(tmp_path: Path) -> None:
    def clear(tensors: Tensors) -> None:
        tensors["base_model.model.model.layers.1.block_sparse_moe.experts.2.w3.lora_B.weight"][:] = 0

    before, after = (
        open_adapter(folder, case_config("v4-all"))
        for folder in (ADAPTERS / "v4-all", changed(tmp_path, "v4-all", change=clear))
    )
    assert set(before.pairs) - set(after.pairs) == {TensorName("ffn_up", 1, expert=2)}


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("peft_type", "LOHA", "LORA"),
        ("peft_type", None, "LORA"),
        ("use_dora", True, "DoRA"),
        ("bias", "all", "biases"),
        ("bias", "lora_only", "biases"),
        ("lora_bias", True, "biases"),
        ("modules_to_save", ["lm_head"], "whole modules"),
        ("fan_in_fan_out", True, "transposed"),
        ("layer_replication", [[0, 2], [1, 2]], "several times"),
        ("trainable_token_indices", [3], "embeddings"),
        ("alora_invocation_tokens", [5, 6], "aLoRA"),
        ("use_qalora", True, "QALoRA"),
        ("arrow_config", {"top_k": 3}, "Arrow"),
        ("init_lora_weights", "pissa", "path_initial_model_for_weight_conversion"),
        ("init_lora_weights", "pissa_niter_4", "path_initial_model_for_weight_conversion"),
        ("init_lora_weights", "olora", "base model's weights"),
        ("init_lora_weights", ["gaussian"], "base model's weights"),
        ("use_something_new", True, "may change what is computed"),
        ("r", 0, "ranks from 1"),
        ("r", True, "ranks from 1"),
        ("r", 10**30, "ranks from 1"),
        ("r", 3, "expected the rank of"),
        ("rank_pattern", [1], "an object"),
        ("rank_pattern", {"w1": "2"}, "ranks from 1"),
        ("lora_alpha", "8", "numbers from"),
        ("lora_alpha", 1e7, "numbers from"),
        ("alpha_pattern", {"w1": None}, "numbers from"),
        ("alpha_pattern", {"(a+)+": 2, "(?=x)": 1}, "plain pattern"),
        ("alpha_pattern", {f"x{i}": 1 for i in range(17)}, "at most 16"),
        ("alpha_pattern", {f"layers.{i}.w1": 1 for i in range(4097)}, "at most 4096"),
        ("use_rslora", 1, "true or false"),
        ("layers_to_transform", [1], "layers_to_transform"),
        ("layers_to_transform", ["0"], "numbers of layers"),
    ],
)
def test_row_26_settings_that_are_not_computed_are_refused_by_name(
    tmp_path: Path, key: str, value: object, words: str
) -> None:
    refused(changed(tmp_path, "v4-all", {key: value}), key, words)


@pytest.mark.parametrize("key", ["use_something_new", "megatron_config", "modules_to_save"])
@pytest.mark.parametrize("value", [None, False, [], {}])
def test_what_is_off_is_no_matter(tmp_path: Path, key: str, value: object) -> None:
    assert difference(open_adapter(changed(tmp_path, "v4-all", {key: value}), case_config("v4-all")), "v4-all") < 1e-6


@pytest.mark.parametrize("value", [False, "gaussian", "eva", "orthogonal"])
def test_how_it_was_initialized_is_no_matter(tmp_path: Path, value: object) -> None:
    open_adapter(changed(tmp_path, "v4-all", {"init_lora_weights": value}), case_config("v4-all"))


def renamed(before: str, after: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if before in name]:
            tensors[name.replace(before, after)] = tensors.pop(name)

    return change


def added(name: str, shape: tuple[int, ...]) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({name: np.ones(shape, np.float32)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (added(f"{Q}.lora_magnitude_vector.weight", (32,)), "magnitudes of DoRA"),
        (added(f"{Q}.lora_B.bias", (32,)), "a bias"),
        (added("base_model.model.model.embed_tokens.lora_embedding_A", (2, 64)), "pair of an embedding"),
        (added("base_model.model.lm_head.weight", (64, 16)), "output matrix"),
        (added("base_model.model.score.weight", (2, 16)), "not computed"),
        (added("a\n\x1b[2J", (2, 16)), "not computed"),
        (added(f"{Q}.lora_C.weight", (2, 16)), "not computed"),
        (renamed("q_proj", "r_proj"), "r_proj"),
        (renamed("layers.1.", "layers.2."), "2 layers"),
        (renamed("layers.1.", "layers.01."), "layers.01."),
        (renamed("layers.1.", f"layers.{10**30}."), "not computed"),
        (renamed("experts.3", "experts.4"), "4 experts"),
        (renamed("base_model.model.model.layers.1.", "base_model.model.layers.0."), "expected one pair for"),
        (lambda tensors: tensors.pop(f"{Q}.lora_A.weight"), "both tensors of a pair"),
        (lambda tensors: tensors.pop(f"{Q}.lora_B.weight"), "both tensors of a pair"),
        (lambda tensors: tensors.clear(), "found none"),
        (added(f"{Q}.lora_A.weight", (2, 17)), "expected shape [2, 16]"),
        (added(f"{Q}.lora_A.weight", (2,)), "expected shape [2, 16]"),
        (added(f"{Q}.lora_A.weight", ()), "a rank from 1"),
        (added(f"{Q}.lora_A.weight", (0, 16)), "a rank from 1"),
        (added(f"{Q}.lora_A.weight", (MAX_RANK + 1, 16)), "a rank from 1"),
        (added(f"{Q}.lora_B.weight", (33, 2)), "expected shape [32, 2]"),
        (added(f"{Q}.lora_B.weight", (32, 3)), "expected shape [32, 2]"),
        (lambda tensors: tensors[f"{Q}.lora_A.weight"].fill(np.nan), "finite"),
        (lambda tensors: tensors[f"{Q}.lora_B.weight"].fill(3e38), "finite"),
        (lambda tensors: tensors.update({f"{Q}.lora_A.weight": np.ones((2, 16), np.float64)}), "F64"),
    ],
)
def test_row_26_tensors_that_are_not_computed_are_refused_by_name(
    tmp_path: Path, change: Callable[[Tensors], object], words: str
) -> None:
    refused(changed(tmp_path, "v4-all", change=change), words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (added("base_model.model.model.layers.0.mlp.experts.lora_A.weight", (8, 25)), "expected a pair for experts"),
        (added("base_model.model.model.layers.0.mlp.experts.lora_A.weight", (8,)), "expected a pair for experts"),
        (added("base_model.model.model.layers.0.mlp.experts.lora_A.weight", (9, 24)), "a rank for each of 4"),
        (added("base_model.model.model.layers.0.mlp.experts.lora_B.weight", (16, 12)), "a rank for each of 4"),
        (added("base_model.model.model.layers.0.mlp.experts.lora_A.weight", (0, 24)), "a rank for each of 4"),
        (renamed("experts.base_layer", "experts.base_layer.base_layer"), "not computed"),
        (renamed("layers.1", "layers.9"), "which it does not have"),
    ],
)
def test_row_26_fused_experts_that_do_not_fit(tmp_path: Path, change: Callable[[Tensors], object], words: str) -> None:
    refused(changed(tmp_path, "v5-all", change=change), words)


def test_an_adapter_of_a_dense_model_does_not_fit_a_mixture(tmp_path: Path) -> None:
    refused(shutil.copytree(ADAPTERS / "dense-all", tmp_path / "a"), "use the adapter's own base model")
    refused(shutil.copytree(ADAPTERS / "v4-all", tmp_path / "b"), "own base model", case="dense-all")
    refused(shutil.copytree(ADAPTERS / "v5-all", tmp_path / "c"), "not computed", case="dense-all")


def test_the_first_pattern_that_matches_counts(tmp_path: Path) -> None:
    """As in PEFT: of patterns and names in their order, and no pattern begins inside a name."""

    def size(pattern: dict[str, float]) -> float:
        adapter: Adapter = open_adapter(
            changed(tmp_path / str(len(list(tmp_path.iterdir()))), "v4-attention", {"alpha_pattern": pattern}),
            case_config("v4-attention"),
        )
        return float(np.abs(deltas(adapter)["blk.0.attn_q.weight"]).max())

    one = size({"q_proj": 1})
    assert size({".*q_proj": 3, "q_proj": 1}) == pytest.approx(3 * one)
    assert size({"q_proj": 1, ".*q_proj": 3}) == pytest.approx(one)
    assert size({"_proj": 9, "layers.0.self_attn.q_proj": 2}) == pytest.approx(2 * one)
    assert size({"^self_attn.q_proj": 9, "q.proj": 4}) == pytest.approx(4 * one)
    assert size({}) == pytest.approx(6 * one)
