"""Types for a size: the budget is kept, what is spent is spent well, and importance decides."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from gguf import GGMLQuantizationType

from pymixtral.cli.quantize import quantize as command
from pymixtral.demo import demo_path
from pymixtral.errors import InvalidArgumentError
from pymixtral.files import imatrix
from pymixtral.files.gguf import GGUFFile
from pymixtral.files.importance import ImportanceMatrix
from pymixtral.files.types import Matrix
from pymixtral.quantize import budget, plan, quantize
from pymixtral.quantize.budget import NEED_IMPORTANCE, _hull, _Option, _spend
from pymixtral.quantize.encoders import formats
from pymixtral.reference.blocks import dequantize
from pymixtral.units import show_bytes
from support.checkpoints import TINY_MIXTRAL, Shape, make_checkpoint, make_tensors

Type = GGMLQuantizationType
CANDIDATES = budget.CANDIDATES
GATE = "blk.{}.ffn_gate_exps.weight"


@pytest.fixture(autouse=True)
def _few_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "CANDIDATES", (Type.Q4_0, Type.Q8_0, Type.F16))


def options(*pairs: tuple[int, float]) -> list[_Option]:
    return [_Option(Type.Q8_0, n_bytes, cost, cost**0.5) for n_bytes, cost in pairs]


def test_the_hull_leaves_out_what_no_price_buys() -> None:
    hull = _hull(options((10, 8.0), (20, 9.0), (20, 4.0), (30, 3.9), (40, 1.0), (50, 1.0), (60, 0.5)))
    assert [(option.n_bytes, option.cost) for option in hull] == [(10, 8.0), (20, 4.0), (40, 1.0), (60, 0.5)]


def test_the_choice_is_the_best_for_the_bytes_it_uses() -> None:
    """Against all combinations, where costs are convex so that the hull is everything."""
    rng = np.random.default_rng(3)
    hulls = {}
    for name in "abcdef":
        slopes = np.sort(rng.random(3))[::-1]
        costs = [10.0, *(10.0 - np.cumsum(slopes))]
        hulls[name] = options(*zip((10, 11, 12, 13), costs, strict=True))
    for total in range(60, 79):
        chosen = _spend(hulls, total)
        assert sum(option.n_bytes for option in chosen.values()) == total
        least = min(
            sum(o.cost for o in combination)
            for combination in itertools.product(*hulls.values())
            if fits(combination, total)
        )
        assert sum(option.cost for option in chosen.values()) == pytest.approx(least)


def fits(combination: tuple[_Option, ...], total: int) -> bool:
    return sum(option.n_bytes for option in combination) <= total


def test_too_small_a_target_is_refused_with_the_least_that_is_enough() -> None:
    words = r"of tensors, 4\.\d+ bits per weight, .* found one that leaves \d+ bytes less"
    with pytest.raises(InvalidArgumentError, match=words) as caught:
        plan(TINY_MIXTRAL, target_bpw=4.4, progress=False)
    found = re.search(r"([\d.]+) bits per weight, .* (\d+) bytes less", str(caught.value))
    assert found
    least = plan(TINY_MIXTRAL, target_bpw=float(found[1]), progress=False)
    assert {tensor.type for tensor in least.tensors} == {Type.F32, Type.Q4_0}
    assert int(4.4 * least.n_weights / 8) + int(found[2]) == sum(tensor.n_bytes for tensor in least.tensors)


@pytest.mark.parametrize("bpw", [4.6, 5.5, 7.0, 8.0, 12.0])
def test_bits_per_weight_are_kept_and_used(bpw: float) -> None:
    planned = plan(TINY_MIXTRAL, target_bpw=bpw, progress=False)
    assert bpw - 0.3 < planned.bits_per_weight <= bpw
    for tensor in planned.tensors:
        if tensor.target.name.endswith(("norm.weight", "ffn_gate_inp.weight")):
            assert tensor.type == Type.F32


def test_more_than_the_best_types_take_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    planned = plan(TINY_MIXTRAL, target_bpw=9, progress=False)
    assert planned.bits_per_weight < 8.6
    assert any("the target is larger than it takes" in note for note in planned.notes)
    assert not any("target" in note for note in plan(TINY_MIXTRAL, target_bpw=7, progress=False).notes)


def test_two_bits_need_importance_unless_nothing_else_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "CANDIDATES", CANDIDATES)
    for bpw, blind in ((3.2, False), (2.5, True)):
        planned = plan(demo_path(), target_bpw=bpw, progress=False)
        few = {tensor.type for tensor in planned.tensors} & NEED_IMPORTANCE
        assert bool(few) == blind
        assert any("no importance matrix covers" in note for note in planned.notes) == blind


def test_no_importance_is_missed_in_the_embedding_which_has_no_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "CANDIDATES", CANDIDATES)
    several = [("token_embd.weight", "iq2_s"), ("output.weight", "iq2_s")]
    for tensors, words in ((several[:1], ""), (several, "1, such as output.weight")):
        notes = [note for note in plan(demo_path(), "q4_0", tensors=tensors).notes if "importance" in note]
        assert len(notes) == bool(words)
        assert words in "".join(notes)


def test_more_bytes_mean_less_error() -> None:
    choices = [plan(TINY_MIXTRAL, target_bpw=bpw, progress=False).choice for bpw in (4.6, 5.5, 7.0, 8.5)]
    objectives = [choice.objective for choice in choices if choice]
    assert len(objectives) == 4
    assert objectives == sorted(objectives, reverse=True)


@pytest.mark.parametrize("n_bytes", [10_000_000, 13_100_000])
def test_the_file_is_at_most_the_target_size(tmp_path: Path, n_bytes: int) -> None:
    report = quantize(TINY_MIXTRAL, tmp_path / "m.gguf", target_bytes=n_bytes, progress=False)
    assert 0.95 * n_bytes < report.file_bytes <= n_bytes
    assert report.type == f"target size {show_bytes(n_bytes)}"
    planned = plan(TINY_MIXTRAL, target_bytes=n_bytes, progress=False)
    with GGUFFile(tmp_path / "m.gguf") as file:
        assert {name: tensor.type for name, tensor in file.tensors.items()} == {
            t.target.name: t.type for t in planned.tensors
        }


def test_errors_are_those_of_all_rows_within_sampling() -> None:
    choice = plan(TINY_MIXTRAL, target_bpw=4.6, progress=False).choice
    assert choice
    errors = [choice.errors[GATE.format(i)] for i in range(4) if choice.types[GATE.format(i)] == Type.Q4_0]
    assert errors
    assert all(0.07 < error < 0.1 for error in errors)


def test_patterns_are_kept_and_paid_for() -> None:
    planned = plan(TINY_MIXTRAL, target_bpw=7, tensors=[("token_embd.weight", "f32")], progress=False)
    assert {t.target.name: t.type for t in planned.tensors}["token_embd.weight"] == Type.F32
    assert planned.bits_per_weight <= 7


def test_the_error_is_the_documented_formula(tmp_path: Path) -> None:
    shape = Shape(n_vocab=64, n_layers=2)
    make_checkpoint(tmp_path / "hf", shape, seed=4)
    matrix, name = ImportanceMatrix(), GATE.format(1)
    matrix.add(
        name, np.random.default_rng(1).random((4, 64)) * np.array([[9], [1], [1], [0]]), np.array([900.0, 300, 800, 0])
    )
    imatrix.write(matrix, tmp_path / "i.gguf", force=True)
    planned = plan(tmp_path / "hf", target_bpw=7, imatrix=tmp_path / "i.gguf", progress=False)
    importance = matrix.importance(name, 4, 64)
    assert planned.choice
    assert importance
    tensors = make_tensors(shape, seed=4)
    noise = signal = 0.0
    kind = planned.choice.types[name]
    for expert in range(4):
        x = tensors[f"model.layers.1.block_sparse_moe.experts.{expert}.w1.weight"]
        x = x[np.linspace(0, 95, 16).astype(int)]
        error = x - dequantize(
            Matrix(kind, formats.encode(kind, x, np.asarray(importance.weights[expert], np.float32)))
        )
        noise += importance.energy[expert] * float((np.square(error) * importance.weights[expert]).sum())
        signal += importance.energy[expert] * float((np.square(x) * importance.weights[expert]).sum())
    assert planned.choice.errors[name] == pytest.approx((noise / signal) ** 0.5, rel=1e-5)
    assert any("has nothing for" in note for note in planned.notes)
    assert any(note.startswith("experts hardly seen") and note.endswith(": blk.1 3") for note in planned.notes)


def test_a_matrix_without_a_single_tensor_of_the_model_is_refused(tmp_path: Path) -> None:
    matrix = ImportanceMatrix()
    matrix.add("blk.77.attn_q.weight", np.ones((1, 256)), np.ones(1))
    imatrix.write(matrix, tmp_path / "i.gguf", force=True)
    with pytest.raises(InvalidArgumentError, match=r"expected entries for this checkpoint's tensors"):
        plan(TINY_MIXTRAL, imatrix=tmp_path / "i.gguf", progress=False)


def test_a_type_and_a_target_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="expected one of a type, a target size and target bits per weight"):
        plan(TINY_MIXTRAL, "q8_0", target_bpw=4, progress=False)


def run(*arguments: object) -> Any:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_dry_run_prints_and_writes_nothing(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "hf", Shape(n_vocab=64, hidden=256, ffn=256), seed=4)
    before = sorted(tmp_path.rglob("*"))
    for arguments in (["--type", "Q4_K_M"], ["--target-bpw", "6.5"], ["--target-size", "1.1MB"]):
        result = run(tmp_path / "hf", "--dry-run", *arguments)
        assert result.exit_code == 0
        assert all(len(line) <= 80 for line in result.stdout.splitlines())
        assert "  layers          q        k        v   output     gate       up     down\n" in result.stdout
        assert "bits per weight" in result.stdout
    assert sorted(tmp_path.rglob("*")) == before
    mix = run(tmp_path / "hf", "--dry-run", "--type", "q4_k_m").stdout
    assert "  0            q4_k     q4_k     q4_k     q5_0     q4_k     q4_k     q4_k\n" in mix
    assert "  1            q4_k     q4_k     q6_k     q5_0     q4_k     q4_k     q6_k\n" in mix
    assert "note: 2 matrices are q5_0, as their rows do not divide into blocks of 256" in mix


@pytest.mark.parametrize(
    "arguments",
    [
        ["--type", "q8_0", "--target-bpw", "4"],
        ["--target-bpw", "4", "--target-size", "1GB"],
        ["--target-size", "20 parsecs"],
        ["--target-size", "-3GB"],
        ["--target-bpw", "0.5"],
        ["--tensor", "q8_0"],
        ["--tensor", "=q8_0"],
        ["--dry-run", "--report", "r.json"],
        [],
    ],
)
def test_wrong_usage_exits_2(arguments: list[str]) -> None:
    result = run(TINY_MIXTRAL, *arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("text", "n_bytes"), [("20GiB", 20 << 30), ("21.5GB", 21_500_000_000), ("900 mb", 900_000_000), ("1234", 1234)]
)
def test_sizes(text: str, n_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}
    monkeypatch.setattr("pymixtral.quantize.convert.plan", lambda *_, **options: seen.update(options))
    assert run(TINY_MIXTRAL, "--dry-run", "--target-size", text).exit_code == 0
    assert seen["target_bytes"] == n_bytes
