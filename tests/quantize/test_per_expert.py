"""A tensor and a type for each expert: the bytes of merged ones, bits where the errors are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from gguf import GGMLQuantizationType

from pymixtral import Mixtral
from pymixtral.cli.quantize import quantize as command
from pymixtral.errors import InvalidArgumentError
from pymixtral.files import imatrix
from pymixtral.files.gguf import GGUFFile
from pymixtral.files.importance import ImportanceMatrix
from pymixtral.files.layout import convert_layout
from pymixtral.files.names import merged_name
from pymixtral.quantize import budget, heat, plan, quantize
from pymixtral.quantize.planning import Plan
from support.checkpoints import TINY_MIXTRAL, Shape, make_checkpoint

Type = GGMLQuantizationType


@pytest.fixture
def small(tmp_path: Path) -> Path:
    make_checkpoint(tmp_path / "hf", Shape(n_vocab=64, hidden=256, ffn=256), seed=6)
    return tmp_path / "hf"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(command, list(map(str, arguments)), catch_exceptions=False)


def types(planned: Plan) -> dict[str, Type]:
    return {tensor.target.name: tensor.type for tensor in planned.tensors}


@pytest.mark.parametrize("kind", ["q4_k_m", "q3_k_s", "f16"])
def test_only_the_layout_differs_from_merged_experts(small: Path, tmp_path: Path, kind: str) -> None:
    quantize(small, tmp_path / "merged.gguf", kind, progress=False)
    quantize(small, tmp_path / "own.gguf", kind, per_expert=True, progress=False)
    convert_layout(tmp_path / "merged.gguf", tmp_path / "split.gguf", layout="split", progress=False)
    convert_layout(tmp_path / "own.gguf", tmp_path / "back.gguf", layout="merged", progress=False)
    assert (tmp_path / "own.gguf").read_bytes() == (tmp_path / "split.gguf").read_bytes()
    assert (tmp_path / "back.gguf").read_bytes() == (tmp_path / "merged.gguf").read_bytes()
    for source in ("merged.gguf", "split.gguf"):
        quantize(tmp_path / source, tmp_path / "again.gguf", kind, per_expert=True, force=True, progress=False)
        assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "own.gguf").read_bytes()


def test_one_expert_has_a_type_of_its_own_and_the_file_runs(tmp_path: Path, tiny_q8_0: Path, tiny_q4_0: Path) -> None:
    tensors = [("blk.1.ffn_down_exps.weight", "q8_0"), ("blk.*.ffn_*.3.weight", "q8_0")]
    quantize(TINY_MIXTRAL, tmp_path / "m.gguf", "q4_0", tensors=tensors, per_expert=True, progress=False)
    with GGUFFile(tmp_path / "m.gguf") as file, GGUFFile(tiny_q8_0) as q8_0, GGUFFile(tiny_q4_0) as q4_0:
        assert len(file.tensors) == 3 + 4 * 7 + 4 * 3 * 8
        for layer in range(4):
            for name in ("gate", "up", "down"):
                for e in range(8):
                    found = file.tensors[f"blk.{layer}.ffn_{name}.{e}.weight"]
                    expected = q8_0 if e == 3 or (layer, name) == (1, "down") else q4_0
                    np.testing.assert_array_equal(
                        found.data, expected.tensors[f"blk.{layer}.ffn_{name}_exps.weight"].data[e]
                    )
    with Mixtral(tmp_path / "m.gguf", n_ctx=64) as model, Mixtral(tiny_q8_0, n_ctx=64) as original:
        tokens = model.tokenize("Once upon a time there was a king")
        difference = model.logits(tokens) - original.logits(tokens)
    assert 0 < np.abs(difference).mean() < 0.5


@pytest.mark.parametrize("bpw", [3.3, 3.5, 4.5])
def test_the_choice_costs_less_than_that_of_merged_experts(monkeypatch: pytest.MonkeyPatch, bpw: float) -> None:
    monkeypatch.setattr(budget, "SAMPLED_ROWS", 1 << 20)  # all rows, so that both measure the same
    merged, own = (plan(TINY_MIXTRAL, target_bpw=bpw, per_expert=several, progress=False) for several in (False, True))
    assert merged.choice
    assert own.choice
    assert bpw - 0.01 < own.bits_per_weight <= bpw
    assert own.choice.objective < merged.choice.objective
    kinds: dict[str, set[Type]] = {}
    for name, kind in own.choice.types.items():
        kinds.setdefault(merged_name(name), set()).add(kind)
    assert any(len(found) > 1 for found in kinds.values())
    assert kinds.keys() == types(merged).keys()


def test_the_cost_of_experts_is_that_of_their_merged_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one type there is one choice, whose objective must not depend on the layout."""
    monkeypatch.setattr(budget, "SAMPLED_ROWS", 1 << 20)
    monkeypatch.setattr(budget, "CANDIDATES", (Type.Q4_0,))
    merged, own = (
        plan(TINY_MIXTRAL, target_bpw=9, per_expert=several, progress=False).choice for several in (False, True)
    )
    assert merged
    assert own
    assert own.objective == pytest.approx(merged.objective, rel=1e-9)


def test_experts_that_see_more_get_more_bits(small: Path, tmp_path: Path) -> None:
    matrix = ImportanceMatrix()
    for layer in range(2):
        for name in ("gate", "up", "down"):
            counts = np.array([9000.0, 300, 300, 300])
            matrix.add(f"blk.{layer}.ffn_{name}_exps.weight", counts[:, None] * np.ones((4, 256)), counts)
    imatrix.write(matrix, tmp_path / "i.gguf", force=True)
    planned = plan(small, target_bpw=4.5, imatrix=tmp_path / "i.gguf", per_expert=True, progress=False)
    n_bytes = {tensor.target.name: tensor.n_bytes for tensor in planned.tensors}
    for layer in range(2):
        for name in ("gate", "up", "down"):
            first, *others = (n_bytes[f"blk.{layer}.ffn_{name}.{e}.weight"] for e in range(4))
            assert first > max(others)
    assert planned.tensors[-1].importance is None
    shapes = {t.importance.weights.shape for t in planned.tensors if t.importance}
    assert shapes == {(1, 256)}


def test_a_single_expert_without_the_option_is_refused_with_it(small: Path) -> None:
    with pytest.raises(
        InvalidArgumentError,
        match=r"'blk\.0\.ffn_down\.3\.weight': .* found one for single experts: .* per_expert=True",
    ):
        plan(small, tensors=[("blk.0.ffn_down.3.weight", "q8_0")], progress=False)
    with pytest.raises(InvalidArgumentError, match="matches no tensor"):
        plan(small, tensors=[("blk.0.ffn_down.4.weight", "q8_0")], per_expert=True, progress=False)


def test_dense_models_are_refused(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, Shape(n_vocab=64, n_experts=0), seed=6)
    with pytest.raises(InvalidArgumentError, match="expected a model with experts"):
        plan(tmp_path, per_expert=True, progress=False)


def test_dry_run_shows_each_expert(small: Path) -> None:
    text = run(small, "--dry-run", "--per-expert", "--type", "q4_k", "--tensor", "blk.1.ffn_up.2.weight=q6_k").stdout
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "  experts up        7 q4_k, 1 q6_k " in text
    block = """\
  layers                q        k        v   output     gate       up     down
  0                  q4_k     q4_k     q4_k     q5_0
    expert 0-3                                           q4_k     q4_k     q4_k
  1                  q4_k     q4_k     q4_k     q5_0
    expert 0-1                                           q4_k     q4_k     q4_k
    expert 2                                             q4_k     q6_k     q4_k
    expert 3                                             q4_k     q4_k     q4_k
"""
    assert block in text
    assert "llama.cpp has refused" in text


def test_reports_are_by_class_and_by_expert(small: Path, tmp_path: Path) -> None:
    arguments: list[Any] = [
        small,
        tmp_path / "m.gguf",
        "--per-expert",
        "--type",
        "q4_0",
        "--report",
        tmp_path / "r.json",
    ]
    assert "  experts gate      8 q4_0 " in run(*arguments).stdout
    tensors = {tensor["name"]: tensor for tensor in json.loads((tmp_path / "r.json").read_text())["tensors"]}
    assert tensors["blk.1.ffn_down.3.weight"]["shape"] == [256, 256]
    assert 0.05 < tensors["blk.1.ffn_down.3.weight"]["relative_error"] < 0.12


def test_heat_map(small: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for several in (False, True):
        report = quantize(small, tmp_path / "m.gguf", "q4_0", per_expert=several, force=True, progress=False)
        heat.draw(report, tmp_path / f"{several}.png")
    assert (tmp_path / "True.png").read_bytes() == (tmp_path / "False.png").read_bytes()
