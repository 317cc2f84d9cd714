"""Pruning: saliency as the oracle has it, the choice by it, and the command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pymixtral import Mixtral, ModelConfig, prune
from pymixtral.errors import InvalidArgumentError, OutputError, UnsupportedError
from pymixtral.evaluation.pruning import CRITERIA, best, expert_use
from pymixtral.files.gguf import GGUFFile
from pymixtral.model.weights import load_weights
from pymixtral.quantize import quantize
from pymixtral.reference import oracle
from support.checkpoints import Shape, make_checkpoint
from support.command_line import run

TEXT = (
    "Once upon a time there was a king who had three daughters, and the youngest was so beautiful "
    "that the sun wondered. " * 4
)
TEXTS = [("t", TEXT)]


@pytest.fixture(scope="module")
def model(tiny_q8_0: Path) -> Iterator[Mixtral]:
    with Mixtral(tiny_q8_0, n_ctx=64) as engine:
        yield engine


def test_saliency_is_the_mean_of_weight_times_norm(model: Mixtral) -> None:
    use = expert_use(model, TEXTS, n_ctx=32, n_windows=2, progress=False)
    n_tokens, sums = np.zeros((4, 8), np.int64), np.zeros((4, 8))
    with GGUFFile(model.path) as file:
        config = ModelConfig.from_gguf(file)
        weights = load_weights(file, config)
        ids = np.array(model.tokenize(TEXT)[:64], np.int32).reshape(2, 32)
        ids[:, 0] = model.tokenize("")[0]
        for window in ids:
            x = oracle.embed(weights.embedding, window)
            tables = oracle.rope_table(config.rope_frequencies(), np.arange(32, dtype=np.int32), config.rope_factor())
            for i, w in enumerate(weights.layers):
                x = oracle.layer_attention(x, w, config, *tables, np.float16)
                normed = oracle.rms_norm(x, w.ffn_norm, config.rms_eps)
                assert w.router is not None
                chosen, shares = oracle.route(oracle.matmul(normed, w.router), 2)
                for e, expert in enumerate(w.experts):
                    rows, slots = np.nonzero(chosen == e)
                    if len(rows):
                        out = oracle.feed_forward(normed[rows], *expert).astype(np.float64)
                        sums[i, e] += shares[rows, slots].astype(np.float64) @ np.linalg.norm(out, axis=1)
                        n_tokens[i, e] += len(rows)
                x = oracle.experts(x, normed, chosen, shares, w.experts)
    np.testing.assert_array_equal(use.n_tokens, n_tokens)
    np.testing.assert_allclose(use.output_norms, sums, rtol=1e-12)
    seen = n_tokens > 0
    np.testing.assert_allclose(use.saliency[seen], sums[seen] / n_tokens[seen], rtol=1e-12)
    assert not use.saliency[~seen].any()
    np.testing.assert_allclose(use.frequency, n_tokens / 128)


def test_the_sums_do_not_depend_on_threads_and_batches(tiny_q8_0: Path, model: Mixtral) -> None:
    expected = expert_use(model, TEXTS, n_ctx=32, progress=False)
    for options in ({"n_threads": 1}, {"n_threads": 3}):
        with Mixtral(tiny_q8_0, n_ctx=64, **options) as other:
            found = expert_use(other, TEXTS, n_ctx=32, progress=False)
        np.testing.assert_array_equal(found.output_norms, expected.output_norms)


def test_the_best_are_chosen_and_of_equal_ones_the_lower() -> None:
    scores = np.array([[1, 3, 2, 0], [5, 5, 5, 5], [0, 1, 1, 2]], np.float64)
    assert best(scores, 2) == [[1, 2], [0, 1], [1, 3]]
    assert best(scores, 3) == [[0, 1, 2], [0, 1, 2], [1, 2, 3]]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_model_with_fewer_experts(model: Mixtral, tiny_q8_0: Path, tmp_path: Path, criterion: str) -> None:
    texts = () if criterion == "random" else TEXTS
    dest = tmp_path / "pruned.gguf"
    options: dict[str, Any] = {"n_experts": 5, "texts": texts, "criterion": criterion, "n_ctx": 32, "progress": False}
    result = prune(tiny_q8_0, dest, **options)
    assert result.files == [dest]
    use = expert_use(model, TEXTS, n_ctx=32, progress=False)
    if criterion == "random":
        other = prune(tiny_q8_0, tmp_path / "other.gguf", seed=1, **options)
        assert result.use is None
        assert other.kept != result.kept
        assert prune(tiny_q8_0, dest, force=True, **options).kept == result.kept
    else:
        scores = use.saliency if criterion == "reap" else use.n_tokens / use.n_tokens.sum(axis=1, keepdims=True)
        np.testing.assert_array_equal(result.scores, scores)
    for kept, row in zip(result.kept, result.scores, strict=True):
        assert len(kept) == 5
        assert min(row[kept]) >= max(np.delete(row, kept))
    with GGUFFile(dest) as file, GGUFFile(tiny_q8_0) as whole:
        assert ModelConfig.from_gguf(file).n_experts == 5
        for i, kept in enumerate(result.kept):
            name = f"blk.{i}.ffn_down_exps.weight"
            np.testing.assert_array_equal(file.tensors[name].data, whole.tensors[name].data[kept])


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"n_experts": 1}, "n_experts to be an integer from 2 to 7"),
        ({"n_experts": 8}, "n_experts to be an integer from 2 to 7"),
        ({"n_experts": True}, "n_experts"),
        ({"criterion": "best"}, "a criterion of reap, frequency, random"),
        ({"criterion": ["reap"]}, "a criterion"),
        ({"texts": []}, "texts for the criterion reap"),
        ({"texts": [("short", "a")]}, "short: expected a text with at least one window"),
        ({"seed": -1}, "seed"),
        ({"n_windows": 0}, "n_windows"),
        ({"n_windows": -1}, "n_windows"),
        ({"max_shard_bytes": 0, "texts": [("short", "a")]}, "max_shard_bytes"),  # before anything is measured
    ],
)
def test_arguments_that_make_no_sense(tiny_q8_0: Path, tmp_path: Path, changed: Any, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        prune(
            tiny_q8_0, tmp_path / "m.gguf", **{"n_experts": 6, "texts": TEXTS, "n_ctx": 32, "progress": False} | changed
        )
    assert not list(tmp_path.iterdir())


def test_models_and_places_that_cannot_be(tiny_q8_0: Path, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "dense", Shape(n_experts=0), seed=1)
    quantize(tmp_path / "dense", tmp_path / "dense.gguf", "q8_0", progress=False)
    with pytest.raises(UnsupportedError, match="a mixture of experts, found a dense model"):
        prune(tmp_path / "dense.gguf", tmp_path / "m.gguf", n_experts=2, texts=TEXTS)
    (tmp_path / "m.gguf").write_text("precious")
    with pytest.raises(OutputError, match="force=True"):  # before anything is measured
        prune(tiny_q8_0, tmp_path / "m.gguf", n_experts=6, texts=[("t", "too short")])
    with pytest.raises(OutputError):
        prune(tiny_q8_0, tiny_q8_0, n_experts=6, texts=TEXTS, force=True)


def test_the_command(tiny_q8_0: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(TEXT)
    arguments = ["--experts", 6, "--calibration", tmp_path / "t.txt", "-c", 32]
    expected = prune(tiny_q8_0, tmp_path / "a.gguf", n_experts=6, texts=TEXTS, n_ctx=32, progress=False)
    done = run("prune", tiny_q8_0, tmp_path / "b.gguf", *arguments)
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "b.gguf").read_bytes() == (tmp_path / "a.gguf").read_bytes()
    rows = done.stdout.splitlines()[1:5]
    for row, kept, scores in zip(rows, expected.kept, expected.scores, strict=True):
        cells = row.split()[1:]
        assert [e for e, cell in enumerate(cells) if "(" not in cell] == kept
        assert [float(cell.strip("()")) for cell in cells] == pytest.approx(scores.tolist(), rel=6e-3)
    assert f"{tmp_path / 'b.gguf'}: 6 of 8 experts in each layer, by reap" in done.stdout.replace("\n", " ")
    found = json.loads(run("prune", tiny_q8_0, tmp_path / "c.gguf", *arguments, "--json").stdout)
    assert found["files"] == [str(tmp_path / "c.gguf")]
    assert [layer["kept"] for layer in found["layers"]] == expected.kept
    assert all(sorted(layer["kept"] + layer["dropped"]) == list(range(8)) for layer in found["layers"])
    assert expected.use is not None
    assert [layer["tokens"] for layer in found["layers"]] == expected.use.n_tokens.tolist()
    again = run("prune", tiny_q8_0, tmp_path / "t.txt", *arguments, "--force")  # the text itself
    assert again.exit_code == 2
    assert (tmp_path / "t.txt").read_text() == TEXT


def test_experts_that_no_token_reached_are_named(tiny_q8_0: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a b " * 40)
    done = run("prune", tiny_q8_0, tmp_path / "b.gguf", "--experts", 6, "--calibration", tmp_path / "t.txt", "-c", 8,
               "--windows", 1)  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert "No token of the texts went to these experts" in done.stdout
