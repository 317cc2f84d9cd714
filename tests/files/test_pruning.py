"""Models with fewer experts: what is copied, renumbered and said, in every layout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pymixtral import Mixtral, ModelConfig
from pymixtral.errors import InvalidArgumentError, ModelConfigError, OutputError, UnsupportedError
from pymixtral.files import rewriting
from pymixtral.files.gguf import GGUFFile
from pymixtral.files.layout import convert_layout
from pymixtral.files.pruning import drop_experts
from pymixtral.model.weights import ModelWeights, load_weights
from support.ggufs import rewrite

KEPT = [[0, 2, 3, 4, 5, 7], [1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5], [2, 3, 4, 5, 6, 7]]


def drop(source: Path, dest: Path, kept: Any = KEPT, **options: Any) -> Path:
    return drop_experts(source, dest, kept, progress=False, **options)[0]


def weights_of(path: Path) -> tuple[ModelConfig, ModelWeights]:
    with GGUFFile(path) as file:
        config = ModelConfig.from_gguf(file)
        return config, load_weights(file, config)


@pytest.mark.parametrize("layout", ["merged", "split", "fused", "shards"])
def test_blocks_of_the_experts_that_stay_are_copied(tiny_q8_0: Path, tmp_path: Path, layout: str) -> None:
    source = tmp_path / "source.gguf"
    if layout == "fused":
        rewrite(tiny_q8_0, source, fused=True)
    elif layout == "shards":
        source = convert_layout(tiny_q8_0, source, max_shard_bytes=6_000_000, progress=False)[-1]
    else:
        convert_layout(tiny_q8_0, source, layout=layout, progress=False)
    pruned = drop(source, tmp_path / "pruned.gguf")
    config, found = weights_of(pruned)
    before, expected = weights_of(tiny_q8_0)
    assert (config.n_experts, config.n_experts_used) == (6, 2)
    assert config.name == before.name
    for kept, layer, old in zip(KEPT, found.layers, expected.layers, strict=True):
        assert layer.router is not None
        assert old.router is not None
        np.testing.assert_array_equal(layer.router.data, old.router.data[kept])
        assert len(layer.experts) == 6
        for e, expert in zip(kept, layer.experts, strict=True):
            for matrix, whole in zip(expert, old.experts[e], strict=True):
                assert matrix.type == whole.type
                np.testing.assert_array_equal(matrix.data, whole.data)
        np.testing.assert_array_equal(layer.q.data, old.q.data)
    np.testing.assert_array_equal(found.head.data, expected.head.data)
    with Mixtral(pruned, n_ctx=64) as model:
        assert model.generate("Once", max_tokens=3).tokens


def test_a_layer_whose_dropped_experts_nobody_chose_is_the_same(tiny_q8_0: Path, tmp_path: Path) -> None:
    """Where every chosen expert stays, all logits are the same, bit for bit."""
    with Mixtral(tiny_q8_0, n_ctx=64) as model:
        ids = model.tokenize("Once")[:3]
        observers = model.observers()
        model.observe(ids, observers)
        expected = model.logits(ids)
    kept = [np.argsort(-observer.n_tokens, kind="stable")[:6] for observer in observers]
    assert all(
        observer.n_tokens[e].sum() == observer.n_tokens.sum() for observer, e in zip(observers, kept, strict=True)
    )
    pruned = drop(tiny_q8_0, tmp_path / "pruned.gguf", [sorted(experts.tolist()) for experts in kept])
    with Mixtral(pruned, n_ctx=64) as model:
        np.testing.assert_array_equal(model.logits(ids), expected)


def test_a_token_uses_no_more_experts_than_there_are(tiny_q8_0: Path, tmp_path: Path) -> None:
    keys = {"llama.expert_used_count": 4, "general.size_label": "8x7B"}
    source = rewrite(tiny_q8_0, tmp_path / "source.gguf", keys=keys)
    with GGUFFile(drop(source, tmp_path / "pruned.gguf", [[0, 1, 6]] * 4)) as file, GGUFFile(source) as whole:
        assert file.metadata["general.size_label"] == "3x7B"
        assert (file.metadata["llama.expert_count"], file.metadata["llama.expert_used_count"]) == (3, 3)
        changed = {"llama.expert_count", "llama.expert_used_count", "general.size_label"}
        assert list(file.encoded) == list(whole.encoded)
        assert all(bytes(file.encoded[key]) == bytes(whole.encoded[key]) for key in file.encoded if key not in changed)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_choice_gives_the_rows_of_that_choice(
    tiny_q8_0: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    n = data.draw(st.integers(2, 8))
    choice = st.lists(st.integers(0, 7), min_size=n, max_size=n, unique=True).map(sorted)
    kept = data.draw(st.lists(choice, min_size=4, max_size=4))
    config, found = weights_of(drop(tiny_q8_0, tmp_path_factory.mktemp("pruned") / "m.gguf", kept))
    _, expected = weights_of(tiny_q8_0)
    assert config.n_experts == n
    for experts, layer, old in zip(kept, found.layers, expected.layers, strict=True):
        assert layer.router is not None
        assert old.router is not None
        np.testing.assert_array_equal(layer.router.data, old.router.data[experts])
        for e, expert in zip(experts, layer.experts, strict=True):
            np.testing.assert_array_equal(expert[2].data, old.experts[e][2].data)


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        (KEPT[:3], "for each of 4 layers, found 3"),
        ([[0]] * 4, "at least 2 experts"),
        ([[1, 0]] * 4, "ascending"),
        ([[1, 1]] * 4, "ascending"),
        ([[0, 1], [0, 1, 2], [0, 1], [0, 1]], "layer 1: .* as many as in layer 0"),
        ([[0, 8]] * 4, "layer 0: expected experts from 0 to 7"),
        ([[-1, 3]] * 4, "from 0 to 7"),
    ],
)
def test_choices_that_make_no_sense(tiny_q8_0: Path, tmp_path: Path, kept: Any, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        drop(tiny_q8_0, tmp_path / "pruned.gguf", kept)
    assert not list(tmp_path.iterdir())


def test_files_that_contradict_themselves(tiny_q8_0: Path, tmp_path: Path) -> None:
    for count, error, words in ((6, ModelConfigError, "expected 6 experts"), (0, UnsupportedError, "a mixture")):
        source = rewrite(tiny_q8_0, tmp_path / f"{count}.gguf", keys={"llama.expert_count": count})
        with pytest.raises(error, match=words):
            drop(source, tmp_path / "pruned.gguf", [[0, 1]] * 4)
    empty = rewrite(tiny_q8_0, tmp_path / "empty.gguf", keys={"llama.block_count": 0})
    with pytest.raises(ModelConfigError, match=r"at least 1 as 'llama\.block_count', found 0"):
        drop(empty, tmp_path / "pruned.gguf", [])
    split = rewrite(tiny_q8_0, tmp_path / "split.gguf", split=True, keys={"llama.expert_count": 7})
    with pytest.raises(ModelConfigError, match=r"expected (7 experts|experts below 7)"):
        drop(split, tmp_path / "pruned.gguf", [[0, 1]] * 4)
    assert not (tmp_path / "pruned.gguf").exists()


def test_existing_files_and_failures(tiny_q8_0: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dest = tmp_path / "pruned.gguf"
    dest.write_text("precious")
    with pytest.raises(OutputError, match="force=True"):
        drop(tiny_q8_0, dest)
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(tiny_q8_0.read_bytes())
    with pytest.raises(OutputError):
        drop(copy, copy, force=True)

    def interrupted(*arguments: Any) -> Iterator[memoryview]:
        yield next(data(*arguments))
        raise KeyboardInterrupt

    data = rewriting._data
    with monkeypatch.context() as patch:
        patch.setattr(rewriting, "_data", interrupted)
        with pytest.raises(KeyboardInterrupt):
            drop(tiny_q8_0, dest, force=True)
    assert dest.read_text() == "precious"
    assert drop(tiny_q8_0, dest, force=True) == dest
    assert weights_of(dest)[0].n_experts == 6
    assert {path.name for path in tmp_path.iterdir()} == {"pruned.gguf", "copy.gguf"}


def test_shards_and_their_names(tiny_q8_0: Path, tmp_path: Path) -> None:
    paths = drop_experts(tiny_q8_0, tmp_path / "m.gguf", KEPT, max_shard_bytes=5_000_000, progress=False)
    assert [path.name for path in paths] == [f"m-0000{i}-of-0000{len(paths)}.gguf" for i in range(1, len(paths) + 1)]
    assert len(paths) > 1
    assert weights_of(paths[0])[0].n_experts == 6
    for wrong in (0, -1, 1.5, "4G"):
        with pytest.raises(InvalidArgumentError, match="max_shard_bytes"):
            drop(tiny_q8_0, tmp_path / "x.gguf", max_shard_bytes=wrong)
